package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
)

const (
	maxEntryBytes    = 1 << 20 // an entry with more than one command is not larger
	maxEntryCommands = 2048
	appendsInFlight  = 2 // one on its way to the disk, and one to follow it at once
)

// Propose carries out a command, on the leader if that is another member. It
// waits for a leader for at most Config.ElectionWait. What an error means is
// said at the package. store.ErrConflict and the like are in the Result.
func (n *Node) Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	data, err := fsm.AppendCommand(nil, cmd)
	if err != nil {
		return fsm.Result{}, fmt.Errorf("propose: %w", err)
	}
	var result fsm.Result
	err = n.withLeader(ctx, func(r *raft.Raft, leader string) error {
		if leader == "" {
			result, _, err = n.proposeHere(ctx, data)
			return err
		}
		var index uint64
		result, index, err = n.peers.propose(ctx, leader, data)
		if err != nil {
			return err
		}
		// Whoever wrote on this member expects to read it here.
		if err := n.awaitApplied(ctx, index); err != nil {
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		return nil
	})
	if err != nil {
		return fsm.Result{}, fmt.Errorf("propose: %w", err)
	}
	return result, nil
}

// withLeader calls do with the leader's address, "" when it is this member. It
// waits for a leader, and calls do again if it says ErrNotLeader, for as long as
// Config.ElectionWait and ctx allow.
func (n *Node) withLeader(ctx context.Context, do func(r *raft.Raft, leader string) error) error {
	var timeout <-chan time.Time
	var last error = ErrNoLeader
	for {
		changed := n.lead.changed()
		select {
		case <-n.stopped:
			return ErrStopped
		default:
		}
		if err := n.removed(); err != nil {
			return err
		}
		if r := n.raft.Load(); r != nil {
			addr, id := r.LeaderWithID()
			switch {
			case r.State() == raft.Leader:
				addr = ""
				fallthrough
			case id != "" && string(id) != n.c.NodeID:
				err := do(r, string(addr))
				if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnreachable) {
					return err
				}
				last = fmt.Errorf("%w: %w", ErrNoLeader, err)
			default:
				if err := n.log.Room(); err != nil && n.soleVoter(r) {
					return err // it is why nobody leads
				}
				last = ErrNoLeader
			}
		}
		if timeout == nil {
			timeout = time.After(n.c.ElectionWait)
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // a member may know less than the one it asks
		case <-timeout:
			return last
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", last, ctx.Err())
		case <-n.stopped:
			return ErrStopped
		}
	}
}

// proposeHere proposes an encoded command on this member, which should lead.
func (n *Node) proposeHere(ctx context.Context, data []byte) (fsm.Result, uint64, error) {
	if err := n.log.Room(); err != nil {
		return fsm.Result{}, 0, n.leaveToOthers(err)
	}
	if n.stall.problem() != nil {
		return fsm.Result{}, 0, fmt.Errorf("%w: its disk does not answer", ErrNotLeader)
	}
	if err := n.allowed(data); err != nil {
		return fsm.Result{}, 0, err
	}
	if fsm.IsRestore(data) {
		return n.restoreHere(ctx, data)
	}
	return n.await(ctx, &proposal{data: data, done: make(chan struct{})})
}

// await proposes and waits for the outcome.
func (n *Node) await(ctx context.Context, p *proposal) (fsm.Result, uint64, error) {
	n.batch.add(p)
	var why error
	for why == nil {
		changed := n.lead.changed()
		if n.stall.problem() != nil {
			if p.state.CompareAndSwap(queued, abandoned) {
				return fsm.Result{}, 0, fmt.Errorf("%w: its disk does not answer", ErrNotLeader)
			}
			why = errors.New("the leader's disk does not answer")
			break
		}
		select {
		case <-p.done:
			return p.result, p.index, p.err
		case <-ctx.Done():
			why = ctx.Err()
		case <-n.stopped:
			why = ErrStopped
		case <-changed:
		}
	}
	if p.state.CompareAndSwap(queued, abandoned) {
		return fsm.Result{}, 0, fmt.Errorf("before it was proposed: %w", why)
	}
	select { // it may just have ended well
	case <-p.done:
		return p.result, p.index, p.err
	default:
		return fsm.Result{}, 0, fmt.Errorf("%w: %w", ErrUnknownOutcome, why)
	}
}

// proposal is a command on its way through the batcher.
type proposal struct {
	data  []byte
	alone bool // in an entry of its own
	state atomic.Int32

	done   chan struct{} // closed when the rest is set
	result fsm.Result
	index  uint64
	err    error
}

// States of a proposal.
const (
	queued = iota
	taken
	abandoned
)

// batcher commits proposals in groups: what comes in while appends are under
// way goes into the next entry together.
type batcher struct {
	n     *Node
	mu    sync.Mutex
	queue []*proposal
	wake  chan struct{}
	slots chan struct{}
}

func newBatcher(n *Node) *batcher {
	return &batcher{n: n, wake: make(chan struct{}, 1), slots: make(chan struct{}, appendsInFlight)}
}

func (b *batcher) add(p *proposal) {
	b.mu.Lock()
	b.queue = append(b.queue, p)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take removes from the queue what fits one entry.
func (b *batcher) take() (group []*proposal, entry []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size, used := 0, 0
	for _, p := range b.queue {
		if len(group) > 0 && (p.alone || group[0].alone || size+len(p.data) > maxEntryBytes || len(group) == maxEntryCommands) {
			break
		}
		used++
		if p.state.CompareAndSwap(queued, taken) {
			group = append(group, p)
			size += len(p.data)
		}
	}
	if used == len(b.queue) {
		b.queue = nil
	} else {
		b.queue = b.queue[used:]
	}
	if len(group) == 0 {
		return nil, nil
	}
	entry = fsm.EntryHeader(make([]byte, 0, size+1))
	for _, p := range group {
		entry = append(entry, p.data...)
		p.data = nil
	}
	return group, entry
}

// run proposes until the node stops.
func (b *batcher) run() {
	r := b.n.raft.Load()
	for {
		select {
		case <-b.wake:
		case <-b.n.stopped:
			return
		}
		for {
			select {
			case b.slots <- struct{}{}:
			case <-b.n.stopped:
				return
			}
			group, entry := b.take()
			if len(group) == 0 {
				<-b.slots
				break
			}
			// While the disk hangs Raft takes nothing: what it does not take is
			// given back.
			future := r.Apply(entry, b.n.hangAfter())
			go b.finish(group, future)
		}
	}
}

// finish waits for an entry and hands out its results. Nobody waits for its
// goroutine: Raft forgets futures that are on their way to the FSM when it is
// shut down.
func (b *batcher) finish(group []*proposal, future raft.ApplyFuture) {
	err := proposeError(future.Error())
	<-b.slots
	var results []fsm.Result
	if err == nil {
		var applied bool
		if results, applied = future.Response().([]fsm.Result); !applied { // see fsm.FileSource
			err = fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrStopped)
		}
	}
	for i, p := range group {
		p.err = err
		if err == nil {
			p.result, p.index = results[i], future.Index()
		}
		close(p.done)
	}
}

// proposeError says in this package's terms what became of an entry.
func proposeError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrNoSpace):
		return err
	case errors.Is(err, raft.ErrNotLeader),
		errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrStopped)
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}
