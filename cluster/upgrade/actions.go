package upgrade

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Request is what an administrator asks for.
type Request struct {
	Binary  Binary  `json:"binary,omitzero"`
	Holder  string  `json:"holder,omitempty"` // server that has it, as the upload said
	Options Options `json:"options,omitzero"`
	By      string  `json:"by,omitempty"` // set by the server
}

// Status is what is answered to every Request.
type Status struct {
	Level int `json:"featureLevel"`
	// Finalize is what the level could be raised to now, and Unready why not.
	Finalize int      `json:"finalizeTo,omitempty"`
	Unready  []string `json:"finalizeBlockers,omitempty"`

	Rollout *Rollout `json:"rollout,omitempty"`
	// Waits say what is waited for now.
	Waits   []string `json:"waits,omitempty"`
	Members []Info   `json:"members,omitempty"`
	Plan    *Plan    `json:"plan,omitempty"`
	// Partial says why this is only what the server that was asked has in its
	// state; empty if the leader answered.
	Partial string `json:"partial,omitempty"`
}

// The actions, as names of what is below Path.
const (
	ActPlan     = "plan"
	ActApply    = "apply"
	ActPause    = "pause"
	ActResume   = "resume"
	ActRollback = "rollback"
	ActFinalize = "finalize"
	ActStatus   = "status"
)

const methodPrefix = "upgrade/"

// MethodNames are those of Service.Methods.
func MethodNames() (out []string) {
	for _, action := range []string{ActPlan, ActApply, ActPause, ActResume, ActRollback, ActFinalize, ActStatus} {
		out = append(out, methodPrefix+action)
	}
	return out
}

// Methods are run on the leader.
func (s *Service) Methods() map[string]func(ctx context.Context, from string, body []byte) ([]byte, error) {
	out := map[string]func(context.Context, string, []byte) ([]byte, error){}
	for name, f := range map[string]func(context.Context, Request) (*Status, error){
		ActPlan: s.plan, ActApply: s.begin, ActPause: s.pause, ActResume: s.resume, ActRollback: s.rollback, ActFinalize: s.finalize, ActStatus: s.status,
	} {
		out[methodPrefix+name] = func(ctx context.Context, _ string, body []byte) ([]byte, error) {
			var q Request
			if err := json.Unmarshal(body, &q); err != nil {
				return nil, fmt.Errorf("request: %w", err)
			}
			var a answer
			var err error
			if a.Status, err = f(ctx, q); err != nil && !errors.As(err, &a.Refusal) {
				return nil, err
			}
			return json.Marshal(a)
		}
	}
	return out
}

type answer struct {
	Status  *Status  `json:"status,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
}

// Do has the leader do something.
func (s *Service) Do(ctx context.Context, action string, q Request) (*Status, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	b, err := s.c.Log.CallLeader(ctx, methodPrefix+action, body)
	if err != nil {
		if action == ActStatus {
			return s.local(err)
		}
		return nil, err
	}
	var a answer
	switch err := json.Unmarshal(b, &a); {
	case err != nil:
		return nil, fmt.Errorf("answer of the leader: %w", err)
	case a.Refusal != nil:
		return nil, a.Refusal
	case a.Status == nil:
		return nil, errors.New("the leader's answer is empty")
	}
	return a.Status, nil
}

// local is the status without the leader.
func (s *Service) local(why error) (*Status, error) {
	v := s.c.Store.View()
	r, _, err := read[Rollout](v, RolloutKey)
	return &Status{Level: fsm.LevelOf(v), Rollout: r, Partial: fmt.Sprintf("the leader's view is missing: %v", why)}, err
}

func (s *Service) status(ctx context.Context, _ Request) (*Status, error) {
	v := s.c.Store.View()
	r, _, err := read[Rollout](v, RolloutKey)
	if err != nil {
		return nil, err
	}
	infos, err := s.c.Cluster.Members(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{Level: fsm.LevelOf(v), Rollout: r, Members: ordered(infos)}
	s.mu.Lock()
	st.Waits = slices.Clone(s.waits)
	s.mu.Unlock()
	to := levelAfter(infos)
	if to > st.Level {
		st.Finalize = to
	}
	if to > st.Level || r != nil && r.Stage == StageDone {
		st.Unready = unready(r, infos)
	}
	return st, nil
}

// planOf gathers what a plan needs. It takes a snapshot to nowhere.
func (s *Service) planOf(ctx context.Context, q Request) (*Plan, error) {
	v := s.c.Store.View()
	r, _, err := read[Rollout](v, RolloutKey)
	if err != nil {
		return nil, err
	}
	in := PlanInputs{Binary: q.Binary, Options: q.Options, Level: fsm.LevelOf(v), Rollout: r}
	if in.Members, err = s.c.Cluster.Members(ctx); err != nil {
		return nil, err
	}
	in.Trouble = s.c.Cluster.Trouble(ctx)
	if q.Options.Drain {
		var nodes []string
		for _, i := range in.Members {
			if i.Node {
				nodes = append(nodes, i.Name)
			}
		}
		if in.Budgets, err = s.c.Cluster.Budgets(ctx, nodes); err != nil {
			return nil, err
		}
	}
	return makePlan(in), nil
}

func (s *Service) plan(ctx context.Context, q Request) (*Status, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	p, err := s.planOf(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Status{Level: p.Level, Plan: p}, nil
}

func (q *Request) check() error {
	b := q.Binary
	switch {
	case b.Version == "" || b.SHA256 == "" || b.Size <= 0 || b.Platform == "" || b.MaxLevel < b.MinLevel || b.MinLevel < 1:
		return refuse(http.StatusBadRequest, "the binary is not described: its version, SHA-256, size, platform and feature levels are needed")
	case q.Options.MaxUnavailable < 0:
		return refuse(http.StatusBadRequest, "--max-unavailable %d: want at least 1", q.Options.MaxUnavailable)
	}
	return nil
}

// begin starts a roll-out if nothing stands against it.
func (s *Service) begin(ctx context.Context, q Request) (*Status, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	p, err := s.planOf(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(p.Blockers) > 0 {
		return nil, refuse(http.StatusConflict, "%s", strings.Join(p.Blockers, "; "))
	}
	if !slices.ContainsFunc(p.Members, func(m PlanMember) bool { return m.Name == q.Holder && m.Role != "agent" }) {
		return nil, refuse(http.StatusBadRequest, "no server %q has the binary", q.Holder)
	}
	now := s.c.Now().UTC()
	r := &Rollout{ID: strings.ToLower(rand.Text()[:10]), Binary: q.Binary, Holder: q.Holder, Options: p.Options, By: q.By, Epoch: s.c.Epoch(),
		Stage: StageSave, Since: now, Started: now}
	for _, m := range p.Members {
		member := Member{Name: m.Name, Server: m.Role != "agent", From: m.Version, State: StateWaiting, Since: now}
		if m.Target == "" {
			member.State, member.Error = StateSkipped, "it is dead"
		}
		r.Members = append(r.Members, member)
	}
	r.note(now, "", "begun by "+q.By)
	s.clear(ctx, s.c.Store.View()) // what is left of the one before
	r, err = s.change(ctx, func(old *Rollout) (*Rollout, map[string]Order, error) {
		if old != nil && !old.Stage.Over() {
			return nil, nil, refuse(http.StatusConflict, "the roll-out to %s is going on: see skiff upgrade status", old.Binary.Version)
		}
		return r, nil, nil
	})
	if err != nil {
		return nil, err
	}
	return &Status{Level: p.Level, Rollout: r, Plan: p}, nil
}

// edit changes the present roll-out.
func (s *Service) edit(ctx context.Context, f func(*Rollout) error) (*Status, error) {
	r, err := s.change(ctx, func(r *Rollout) (*Rollout, map[string]Order, error) {
		if r == nil {
			return nil, nil, refuse(http.StatusNotFound, "there was no roll-out yet: begin one with skiff upgrade apply")
		}
		return r, nil, f(r)
	})
	if err != nil {
		return nil, err
	}
	return &Status{Level: fsm.LevelOf(s.c.Store.View()), Rollout: r}, nil
}

func over(r *Rollout) error {
	return refuse(http.StatusConflict, "the roll-out to %s is over (%s)", r.Binary.Version, r.Stage)
}

func (s *Service) pause(ctx context.Context, q Request) (*Status, error) {
	return s.edit(ctx, func(r *Rollout) error {
		switch {
		case r.Stage.Over():
			return over(r)
		case r.Paused:
			return refuse(http.StatusConflict, "it is paused already")
		}
		r.Paused = true
		r.note(s.c.Now(), "", "paused by "+q.By+": who is changing comes to its end")
		return nil
	})
}

// resume goes on after a pause, or tries again what it stopped at.
func (s *Service) resume(ctx context.Context, q Request) (*Status, error) {
	return s.edit(ctx, func(r *Rollout) error {
		switch {
		case r.Stage.Over():
			return over(r)
		case !r.Paused && r.Stopped == "":
			return refuse(http.StatusConflict, "it is going on: see skiff upgrade status")
		}
		now := s.c.Now().UTC()
		r.Paused, r.Stopped, r.Since, r.Epoch = false, "", now, s.c.Epoch()
		for i := range r.Members {
			m := &r.Members[i]
			switch {
			case m.State.busy() || m.State == StateFetching: // it was not its turn to stop
				m.Since = now
			case m.State == StateFailed:
				m.again(now)
			}
		}
		r.note(now, "", "resumed by "+q.By)
		return nil
	})
}

// again lets a member that has failed be tried again. One that did not go back
// gets another order as it is.
func (m *Member) again(now time.Time) {
	switch {
	case m.Was == StateReturning:
	case m.Changed && m.Was.busy():
		m.set(step{State: m.Was}, now)
	default:
		m.set(step{State: StateWaiting}, now)
	}
}

// rollback turns round, also when all was done and not finalized.
func (s *Service) rollback(ctx context.Context, q Request) (*Status, error) {
	view := s.c.Store.View()
	return s.edit(ctx, func(r *Rollout) error {
		switch {
		case r.Stage == StageBack:
			return over(r)
		case r.Back() && r.Stopped == "" && !r.Paused:
			return refuse(http.StatusConflict, "it goes back already (%s)", r.Stage)
		case r.Stage == StageFinal:
			return refuse(http.StatusConflict, "the roll-out to %s is finalized: the feature level is %d, below which there is no way back", r.Binary.Version, fsm.LevelOf(view))
		}
		now := s.c.Now().UTC()
		r.Paused, r.Stopped, r.Ended, r.Epoch = false, "", time.Time{}, s.c.Epoch()
		for i := range r.Members {
			if m := &r.Members[i]; m.State == StateFailed && r.Back() {
				m.again(now)
			}
		}
		if !r.Back() {
			r.Stage, r.Since = StageBackAgents, now
		}
		r.note(now, "", "rolled back by "+q.By)
		return nil
	})
}

// unready says why a cluster can't be finalized.
func unready(r *Rollout, infos []Info) (why []string) {
	if r != nil && r.Stage != StageDone && r.Stage != StageBack && r.Stage != StageFinal {
		why = append(why, fmt.Sprintf("the roll-out to %s is not over: see skiff upgrade status", r.Binary.Version))
	}
	versions := map[string][]string{}
	for _, i := range infos {
		if !i.Alive {
			why = append(why, fmt.Sprintf("%s %s is not heard of, and may come back with an older version: bring it up, or remove it (skiff member remove %s)", i.Role, i.Name, i.Name))
			continue
		}
		versions[i.Version] = append(versions[i.Version], i.Name)
	}
	if len(versions) > 1 {
		var parts []string
		for _, v := range sortedNames(versions) {
			parts = append(parts, v+" on "+few(versions[v]))
		}
		why = append(why, "members run different versions: "+strings.Join(parts, ", "))
	}
	return why
}

// finalize raises the feature level to what all members' programs know.
func (s *Service) finalize(ctx context.Context, q Request) (*Status, error) {
	infos, err := s.c.Cluster.Members(ctx)
	if err != nil {
		return nil, err
	}
	view := s.c.Store.View()
	r, _, err := read[Rollout](view, RolloutKey)
	if err != nil {
		return nil, err
	}
	level, to := fsm.LevelOf(view), levelAfter(infos)
	if why := unready(r, infos); len(why) > 0 {
		return nil, refuse(http.StatusConflict, "%s", strings.Join(why, "; "))
	}
	if to > level {
		if err := s.c.Cluster.RaiseLevel(ctx, to); err != nil {
			return nil, err
		}
	}
	if r == nil || r.Stage != StageDone {
		if to <= level {
			return nil, refuse(http.StatusConflict, "there is nothing to finalize: the feature level is %d, which is the highest that the programs of all members know", level)
		}
		return s.status(ctx, q)
	}
	if _, err := s.edit(ctx, func(r *Rollout) error {
		if r.Stage == StageDone {
			r.Stage, r.Since, r.Ended = StageFinal, s.c.Now().UTC(), s.c.Now().UTC()
			for i := range r.Members {
				r.Members[i].Changed = false // there is no way back
			}
			r.note(r.Since, "", fmt.Sprintf("finalized by %s: the feature level is %d", q.By, to))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	s.clear(ctx, s.c.Store.View())
	return s.status(ctx, q)
}

// clear removes orders and reports that nobody needs any more.
func (s *Service) clear(ctx context.Context, v *store.View) {
	for _, prefix := range []string{OrderPrefix, ReportPrefix} {
		for _, c := range fsm.Clear(v, prefix) {
			if _, err := s.c.Log.Propose(ctx, c); err != nil {
				s.c.Logger.Warn("orders of the roll-out stay in the state", "error", err)
			}
		}
	}
}
