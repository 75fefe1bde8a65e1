package consensus

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
)

// leadership follows who leads, and tells those who wait for it.
type leadership struct {
	notify chan bool // from Raft, which blocks on it
	led    atomic.Uint64
	seen   chan raft.Observation // of another leader
	peers  chan struct{}         // of one place: members came or went
	full   chan struct{}         // of one place: this leader's disk is full

	mu     sync.Mutex
	term   uint64        // in which this member leads and has applied all before; else 0
	change chan struct{} // closed at every change
	subs   []chan bool
}

func (l *leadership) init() {
	l.notify = make(chan bool, 8)
	l.change = make(chan struct{})
	l.seen = make(chan raft.Observation, 16)
	l.peers, l.full = make(chan struct{}, 1), make(chan struct{}, 1)
}

// observe follows what Raft tells about itself. The filter runs within Raft's
// own steps: before it takes another.
func (n *Node) observe(r *raft.Raft) {
	r.RegisterObserver(raft.NewObserver(n.lead.seen, false, func(o *raft.Observation) bool {
		switch d := o.Data.(type) {
		case raft.LeaderObservation:
			return true
		case raft.RaftState:
			if d == raft.Leader {
				n.trans.begin(o.Raft.CurrentTerm())
			} else {
				n.trans.end()
			}
			n.adapt(o.Raft, d == raft.Leader)
		case raft.PeerObservation:
			select {
			case n.lead.peers <- struct{}{}:
			default:
			}
			n.trans.news()
		}
		return false
	}))
	if r.State() == raft.Leader {
		n.trans.begin(r.CurrentTerm())
	}
	if r.State() != raft.Leader {
		n.trans.end()
	}
}

// changed is closed at the next change of leader.
func (l *leadership) changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change
}

// announce closes the channel of changed.
func (l *leadership) announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.change)
	l.change = make(chan struct{})
}

// leadingTerm is the term in which this member leads and has applied everything
// that earlier leaders committed; 0 if it does not.
func (l *leadership) leadingTerm() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term
}

// lastTerm is the last term in which leadingTerm was set.
func (l *leadership) lastTerm() uint64 { return l.led.Load() }

// set changes what leadingTerm says.
func (l *leadership) set(term uint64) {
	l.mu.Lock()
	was := l.term != 0
	l.term = term
	if term != 0 {
		l.led.Store(term)
	}
	if is := term != 0; is != was {
		for _, s := range l.subs {
			tell(s, is)
		}
	}
	l.mu.Unlock()
	l.announce()
}

// tell puts the newest state into a channel of one place.
func tell(s chan bool, v bool) {
	select {
	case <-s:
	default:
	}
	s <- v
}

// run follows Raft's notifications until the node stops.
func (l *leadership) run(n *Node) {
	r := n.raft.Load()
	var wg sync.WaitGroup
	defer wg.Wait()
	resign := func() {}
	defer func() { resign() }()
	end := func() {
		l.set(0)
		resign()
		wg.Wait() // one term's duties end before the next's begin
		l.set(0)
	}
	begin := func() {
		ctx, cancel := context.WithCancel(context.Background())
		resign = cancel
		wg.Go(func() { l.assume(ctx, n, r) })
	}
	for {
		select {
		case leads := <-l.notify:
			end()
			if leads {
				begin()
			}
		case <-n.stall.changed:
			if n.stall.problem() != nil {
				end()
			} else if r.State() == raft.Leader && l.leadingTerm() == 0 {
				end()
				begin() // if Raft gave up leadership, it fails
			}
		case <-l.seen:
			l.announce()
		case <-n.stopped:
			l.set(0)
			return
		}
	}
}

// assume does what a new leader has to do before it may serve reads.
func (l *leadership) assume(ctx context.Context, n *Node, r *raft.Raft) {
	term := r.CurrentTerm()
	if err := n.stall.problem(); err != nil {
		return // begun again when the disk answers
	}
	if err := waitFuture(ctx, n, r.Barrier(0)); err != nil {
		n.c.Logger.Info("lost leadership before taking it up", "error", err)
		return
	}
	if n.c.FSM.ClusterID() == "" {
		cmd := fsm.Command{Configuration: &fsm.Configuration{ClusterID: rand.Text()}}
		data, err := fsm.AppendCommand(nil, cmd)
		if err == nil {
			_, _, err = n.proposeHere(ctx, data)
		}
		if err != nil {
			n.c.Logger.Warn("name the new cluster", "error", err)
		}
	}
	if ctx.Err() != nil {
		return
	}
	n.c.Logger.Info("leading the cluster", "term", term)
	l.set(term)
	n.correctAddress(ctx, r)
	n.behind.Go(func() { n.compare(ctx) })
	n.govern(ctx, r)
}

// correctAddress tells the cluster this member's address if it has changed
// since the member was added.
func (n *Node) correctAddress(ctx context.Context, r *raft.Raft) {
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if string(s.ID) != n.c.NodeID || string(s.Address) == n.c.AdvertiseAddr {
			continue
		}
		n.c.Logger.Info("address of this server has changed", "from", s.Address, "to", n.c.AdvertiseAddr)
		f := r.AddVoter(s.ID, raft.ServerAddress(n.c.AdvertiseAddr), 0, 10*time.Second)
		if err := waitFuture(ctx, n, f); err != nil {
			n.c.Logger.Warn("tell the cluster the new address", "error", err)
		}
	}
}

// waitFuture waits for f, or until ctx or the node ends.
func waitFuture(ctx context.Context, n *Node, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stopped:
		return ErrStopped
	}
}

// IsLeader says whether this member leads and has applied everything that
// earlier leaders committed.
func (n *Node) IsLeader() bool { return n.lead.leadingTerm() != 0 }

// Leader is the present leader, or empty strings if none is known.
func (n *Node) Leader() (id, addr string) {
	r := n.raft.Load()
	if r == nil {
		return "", ""
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// LeadershipChanges returns a new channel of one place that holds the latest
// change: true when IsLeader becomes true, false when it no longer is. If this
// member leads already, true is in it.
func (n *Node) LeadershipChanges() <-chan bool {
	l := &n.lead
	l.mu.Lock()
	defer l.mu.Unlock()
	s := make(chan bool, 1)
	if l.term != 0 {
		s <- true
	}
	l.subs = append(l.subs, s)
	return s
}
