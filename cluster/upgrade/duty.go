package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skiff-sh/skiff/fsm/store"
)

const prefix = "/skiff/upgrade/"

// Duty drives the roll-out while this server leads, until ctx ends. It writes
// only what changes: while it waits, nothing.
func (s *Service) Duty(ctx context.Context) error {
	defer s.setWaits(nil)
	said := ""
	for ctx.Err() == nil {
		w := s.c.Store.Watch(prefix, s.c.Store.Revision())
		going, err := s.look(ctx)
		if err != nil && ctx.Err() == nil {
			if text := err.Error(); text != said {
				said = text
				s.c.Logger.Warn("the roll-out does not go on for now", "error", err)
			}
		} else {
			said = ""
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if going || err != nil {
			wait, cancel = context.WithTimeout(ctx, s.c.Poll)
		}
		_, _, _ = w.Next(wait)
		cancel()
	}
	return nil
}

func (s *Service) setWaits(waits []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = waits
}

// look does what is to be done now. It tells whether there is something to look
// for again without a word in the state.
func (s *Service) look(ctx context.Context) (going bool, err error) {
	view := s.c.Store.View()
	r, revision, err := read[Rollout](view, RolloutKey)
	if err != nil || !r.Going() {
		s.setWaits(nil)
		return false, err
	}
	if r.Epoch != "" && r.Epoch != s.c.Epoch() {
		next := r.clone()
		next.apply([]step{{Kind: kindStop, Text: "the cluster was restored or recovered since it began: look at what runs, then resume it or roll it back"}}, nil, s.c.Now())
		return true, s.write(ctx, next, revision, nil)
	}
	in, err := s.inputs(ctx, view, r)
	if err != nil {
		return true, err
	}
	steps, waits := decide(in)
	s.setWaits(waits)
	next := r.clone()
	done := make([]step, 0, len(steps))
	var errs []error
	for _, st := range steps {
		ok, err := s.perform(ctx, next, &st)
		if err != nil {
			errs = append(errs, err)
		}
		if ok {
			done = append(done, st)
		}
	}
	if ctx.Err() != nil {
		return false, nil
	}
	orders := next.apply(done, in.Members, s.c.Now())
	if !same(r, next) {
		if err := s.write(ctx, next, revision, orders); err != nil && !errors.Is(err, errRace) {
			errs = append(errs, err)
		}
		for _, e := range next.History[min(len(r.History), len(next.History)):] {
			s.c.Logger.Info("upgrade", "to", r.Binary.Version, "member", e.Member, "event", e.Text)
		}
	}
	return !r.Paused || len(next.focus()) > 0 || len(waits) > 1, errors.Join(errs...)
}

func same(a, b *Rollout) bool {
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err == nil && err2 == nil && slices.Equal(x, y)
}

// inputs gathers what decide looks at.
func (s *Service) inputs(ctx context.Context, view *store.View, r *Rollout) (Inputs, error) {
	in := Inputs{Now: s.c.Now(), Leader: s.c.Name, Rollout: r, Members: map[string]Facts{}}
	infos, err := s.c.Cluster.Members(ctx)
	if err != nil {
		return in, fmt.Errorf("look at the members: %w", err)
	}
	for _, i := range infos {
		f := i.Facts
		if f.Report, _, err = read[Report](view, ReportPrefix+i.Name); err != nil {
			return in, err
		}
		in.Members[i.Name] = f
	}
	for _, name := range r.focus() {
		f, ok := in.Members[name]
		if !ok || !f.Node {
			continue
		}
		if err := s.c.Cluster.Pods(ctx, name, r.member(name).Pods, &f); err != nil {
			return in, fmt.Errorf("look at the pods of %s: %w", name, err)
		}
		in.Members[name] = f
	}
	return in, nil
}

// drainEvery is how often pods that could not be evicted are tried again.
const drainEvery = 2 * time.Second

// perform does what a step needs to be done before it is written. ok: it is done.
func (s *Service) perform(ctx context.Context, r *Rollout, st *step) (ok bool, err error) {
	switch st.Kind {
	case kindSave:
		saved, err := s.c.Cluster.Save(ctx)
		if ctx.Err() != nil {
			return false, nil
		}
		if err != nil {
			*st = step{Kind: kindStop, Text: fmt.Sprintf("the snapshot: %v", err)}
			return true, nil
		}
		r.Snapshot = saved
		r.note(s.c.Now(), saved.Server, "keeps the snapshot "+saved.File)
		*st = step{Kind: kindStage, Stage: StageFetch}
		return true, nil
	case kindDrain:
		s.mu.Lock()
		due := s.c.Now().Sub(s.drained[st.Member]) >= drainEvery
		if due {
			s.drained[st.Member] = s.c.Now()
		}
		s.mu.Unlock()
		if !due {
			return false, nil
		}
		if st.Cordoned, err = s.c.Cluster.Drain(ctx, st.Member); err != nil {
			err = fmt.Errorf("drain %s: %w", st.Member, err)
		}
		return st.Cordoned || err == nil, err
	case kindUncordon:
		if err := s.c.Cluster.Uncordon(ctx, st.Member); err != nil {
			return false, fmt.Errorf("make %s schedulable again: %w", st.Member, err)
		}
	case kindHandOver:
		if err := s.c.Cluster.HandOver(ctx, st.Member); err != nil {
			return false, fmt.Errorf("hand over to %s: %w", st.Member, err)
		}
		return false, nil // the next leader goes on
	}
	return true, nil
}
