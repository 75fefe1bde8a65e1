package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
)

// A restore of the living cluster is an entry of the log (fsm.Restore), with all
// that this promises: it comes after what was acknowledged before and before what
// comes after, on all members, or not at all. Raft's own Restore promises less: a
// leader that loses its followers on the way has a state that they never get, and
// serves it, and what was proposed meanwhile is answered by "aborted" though it may
// be carried out. The entry is small; its file is brought to the members before.

const methodFilePull, methodFileGet, methodFileDrop = ownMethods + "file/pull", ownMethods + "file/get", ownMethods + "file/drop"

// SpreadProgress says how many bytes each member has, by ID.
type SpreadProgress func(have map[string]int64)

// Spread brings a file that this member has to all members that live, and returns
// when those can restore it at once. It is ErrNotReady if the leader, or a
// majority, can't.
func (n *Node) Spread(ctx context.Context, file string, size int64, progress SpreadProgress) error {
	body, err := json.Marshal(filePlace{File: file, Size: size, From: n.c.NodeID})
	if err != nil {
		return err
	}
	type seen struct {
		fileState
		at time.Time // of the last progress
	}
	by := map[string]*seen{}
	for {
		voters, ready, waiting := 0, 0, 0
		leader, _ := n.Leader()
		have := map[string]int64{}
		var why error
		for _, m := range n.Members() {
			s := by[m.ID]
			if s == nil {
				s = &seen{at: time.Now()}
				by[m.ID] = s
			}
			if !s.Ready && s.Error == "" {
				if st, err := n.askPull(ctx, m.ID, body); err == nil {
					if st.Have > s.Have || st.Ready {
						s.at = time.Now()
					}
					s.fileState = st
				}
			}
			have[m.ID] = s.Have
			given := s.Error != "" || time.Since(s.at) > fileTimeout || time.Since(s.at) > 2*time.Second && !n.alive(m.ID)
			switch {
			case s.Ready && m.Voter:
				ready++
			case s.Ready:
			case given && m.ID == leader:
				return fmt.Errorf("%w: the leader can't get the file: %s", ErrNotReady, orNoAnswer(s.Error))
			case given:
				why = errors.Join(why, fmt.Errorf("%s: %s", m.ID, orNoAnswer(s.Error)))
			default:
				waiting++
			}
			if m.Voter {
				voters++
			}
		}
		if progress != nil {
			progress(have)
		}
		switch {
		case waiting > 0:
		case ready <= voters/2:
			return fmt.Errorf("%w: only %d of %d servers have got the file: %w", ErrNotReady, ready, voters, why)
		default:
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-n.stopped:
			return ErrStopped
		}
	}
}

func orNoAnswer(s string) string {
	if s == "" {
		return "no answer"
	}
	return s
}

func (n *Node) alive(id string) bool { return n.c.Alive == nil || n.c.Alive(id) }

func (n *Node) askPull(ctx context.Context, id string, body []byte) (s fileState, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	b, err := n.Call(ctx, id, methodFilePull, body)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

// DropFile removes a file that Spread brought, where it was not restored. Members
// that do not answer keep it for an hour.
func (n *Node) DropFile(ctx context.Context, file string) {
	body, err := json.Marshal(filePlace{File: file})
	if err != nil {
		return
	}
	for _, m := range n.Members() {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		if _, err := n.Call(short, m.ID, methodFileDrop, body); err != nil {
			n.c.Logger.Debug("drop the file of a restore", "member", m.ID, "error", err)
		}
		cancel()
	}
}

// restoreHere proposes a Restore on this member, which should lead. It is
// ErrNotReady if this member lacks the file: the others would wait for it.
func (n *Node) restoreHere(ctx context.Context, data []byte) (fsm.Result, uint64, error) {
	if n.lead.leadingTerm() == 0 {
		return fsm.Result{}, 0, ErrNotLeader
	}
	r := fsm.RestoreIn(append(fsm.EntryHeader(nil), data...))
	if r == nil || !n.c.FSM.Preloaded(r.File) {
		return fsm.Result{}, 0, fmt.Errorf("%w: the leader does not have the file of the restore", ErrNotReady)
	}
	resume := func() {}
	if n.c.Restoring != nil {
		var err error
		if resume, err = n.c.Restoring(ctx); err != nil {
			return fsm.Result{}, 0, fmt.Errorf("%w: end the leader's duties: %w", ErrNotReady, err)
		}
	}
	p := &proposal{data: data, alone: true, done: make(chan struct{})}
	n.behind.Go(func() { // the duties begin anew when its outcome is known, or another leads
		defer resume()
		select {
		case <-p.done:
		case <-n.stopped:
		}
	})
	result, index, err := n.await(ctx, p)
	if err != nil && p.state.Load() == abandoned {
		close(p.done)
	}
	return result, index, err
}

// restored is told of entries that were applied.
func (n *Node) restored(logs []*raft.Log) {
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		if r := fsm.RestoreIn(l.Data); r != nil {
			n.c.Logger.Info("restored a snapshot into the running cluster, unless it was refused", "file", r.File, "entry", l.Index, "revision", n.c.FSM.Store().Revision())
			n.compact.hurry()
		}
	}
}
