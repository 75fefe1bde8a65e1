package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ReadIndex returns when the local FSM holds everything that was acknowledged
// before the call, by whichever member. Nothing is written for it. It waits for
// a leader for at most Config.ElectionWait.
func (n *Node) ReadIndex(ctx context.Context) error {
	if r := n.raft.Load(); r != nil && n.removed() == nil && n.knowsAll(r) {
		return nil
	}
	err := n.withLeader(ctx, func(r *raft.Raft, leader string) error {
		if leader == "" {
			_, err := n.readIndexHere(ctx)
			return err
		}
		index, err := n.peers.readIndex(ctx, leader)
		if errors.Is(err, ErrUnknownOutcome) {
			return fmt.Errorf("%w: %w", ErrNotLeader, err) // reading can be tried again
		}
		if err != nil {
			return err
		}
		return n.awaitApplied(ctx, index)
	})
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	return nil
}

// awaitApplied waits until the FSM has applied the entry at index. A member
// whose log takes no writes may never come so far, and says so after
// Config.ElectionWait.
func (n *Node) awaitApplied(ctx context.Context, index uint64) error {
	if applied, _ := n.c.FSM.Applied(); applied >= index {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, n.c.ElectionWait)
	defer cancel()
	err := n.waitApplied(short, index)
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, why := range []error{n.log.Room(), n.stall.problem()} {
		if why != nil {
			return fmt.Errorf("%w: %w", ErrBehind, why)
		}
	}
	return n.waitApplied(ctx, index)
}

// readIndexHere confirms that this member leads, and returns the index that a
// reader has to have applied. That is what the FSM has applied here: writes are
// acknowledged after that.
func (n *Node) readIndexHere(ctx context.Context) (uint64, error) {
	r := n.raft.Load()
	term := n.lead.leadingTerm()
	if term == 0 {
		return 0, ErrNotLeader // or not yet: what earlier leaders committed is being applied
	}
	index, _ := n.c.FSM.Applied()
	if n.soleVoter(r) {
		return index, nil
	}
	if err := n.verify.leader(ctx, n, r, term); err != nil {
		return 0, err
	}
	return index, nil
}

// knowsAll says whether nobody but this member can have acknowledged a write
// since it last led. Then the FSM holds all of them, even while the member can't
// lead because its disk is full.
func (n *Node) knowsAll(r *raft.Raft) bool {
	led := n.lead.lastTerm()
	return led != 0 && n.log.LastTerm() == led && n.soleVoter(r)
}

// Barrier returns when this member leads and its FSM holds everything that was
// committed before, under this leader and earlier ones. Leaders call it before
// they take up their duties. Nothing is written for it.
func (n *Node) Barrier(ctx context.Context) error {
	if n.raft.Load() == nil || n.lead.leadingTerm() == 0 {
		return fmt.Errorf("barrier: %w", ErrNotLeader)
	}
	if _, err := n.readIndexHere(ctx); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	return nil
}

// verifier shares one round of asking the followers among all readers that
// began to wait before it.
type verifier struct {
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	term uint64
	done chan struct{}
	err  error
}

// leader returns nil if a majority has confirmed, to a request that was sent
// after the call, that this member leads in term.
func (v *verifier) leader(ctx context.Context, n *Node, r *raft.Raft, term uint64) error {
	v.mu.Lock()
	if v.next != nil && v.next.term != term {
		v.mu.Unlock()
		return ErrNotLeader
	}
	if v.next == nil {
		v.next = &round{term: term, done: make(chan struct{})}
	}
	mine := v.next
	if !v.running {
		v.running = true
		go v.run(n, r)
	}
	v.mu.Unlock()
	for {
		changed := n.lead.changed()
		if n.lead.leadingTerm() != term {
			return ErrNotLeader
		}
		select {
		case <-mine.done:
			return mine.err
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.stopped:
			return ErrStopped
		}
	}
}

func (v *verifier) run(n *Node, r *raft.Raft) {
	for {
		v.mu.Lock()
		now := v.next
		v.next = nil
		if now == nil {
			v.running = false
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
		now.err = n.confirm(r, now.term)
		close(now.done)
	}
}

// confirm asks the followers whether they still follow. Raft's VerifyLeader makes
// it ask them, but also counts answers to what was sent before; those can be old,
// as when this process was stopped for a while, and a new leader may have taken
// writes since. So only answers to what was sent after the begin count here.
func (n *Node) confirm(r *raft.Raft, term uint64) error {
	begin := time.Now()
	for {
		answer := n.contacts.next()
		if err := r.VerifyLeader().Error(); err != nil {
			if errors.Is(err, raft.ErrRaftShutdown) {
				return ErrStopped
			}
			return fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		voters, yes := 0, 0
		for _, m := range n.Members() {
			if m.Voter {
				voters++
				if m.ID == n.c.NodeID || n.contacts.confirmed(m.ID, term, begin) {
					yes++
				}
			}
		}
		if yes >= voters/2+1 {
			return nil
		}
		select {
		case <-answer:
		case <-time.After(20 * time.Millisecond):
		case <-n.stopped:
			return ErrStopped
		}
		if n.lead.leadingTerm() != term {
			return ErrNotLeader
		}
	}
}
