package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// replicator is raft.NetworkTransport, and around what a leader sends:
//
//   - A replication call (no heartbeat) that fails is tried again within the call
//     until the reign ends or the peer leaves the configuration. Raft itself would
//     wait up to ten seconds between two tries.
//   - An append that would tell a follower nothing new is held back until there
//     is news, see pipeline. So followers learn of commits at once, and a quiet
//     leader sends heartbeats only.
//   - Nothing is sent for a reign that is over: Raft could put into it the commit
//     index that the next leader told.
type replicator struct {
	*raft.NetworkTransport
	n *Node

	mu     sync.Mutex
	term   uint64 // of the reign
	reign  context.Context
	depose context.CancelFunc
	breaks map[raft.ServerID]uint64 // failed calls
	moved  chan struct{}            // closed at the next news; nil when nobody waits

	received chan raft.RPC // for Raft, see receive

	sent, beats atomic.Uint64 // appends and heartbeats that went out
}

var errDeposed = errors.New("this server no longer leads")

func newReplicator(n *Node) *replicator {
	t := &replicator{n: n, breaks: map[raft.ServerID]uint64{}, received: make(chan raft.RPC)}
	t.reign, t.depose = context.WithCancel(context.Background())
	t.depose()
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: n.port, MaxPool: 3, Timeout: 10 * time.Second, Logger: newHCLogger(n.c.Logger),
		MsgpackUseNewTimeFormat: true, ServerAddressProvider: addressBook{n},
	})
	n.port.wg.Go(t.receive)
	return t
}

// addressBook tells Raft's transport where members are.
type addressBook struct{ n *Node }

// ServerAddr implements raft.ServerAddressProvider.
func (b addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	m, ok := b.n.member(string(id))
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrNotMember, id)
	}
	return memberAt(id, m.Address), nil
}

// EncodePeer implements raft.Transport: others are told addresses as they are.
func (t *replicator) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// begin says that this member leads in term.
func (t *replicator) begin(term uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term == term && t.reign.Err() == nil {
		return
	}
	t.depose()
	t.term = term
	t.reign, t.depose = context.WithCancel(context.Background())
}

// end says that this member does not lead. Calls of its reign return.
func (t *replicator) end() {
	t.mu.Lock()
	t.depose()
	t.mu.Unlock()
	t.news()
}

// reignOf is done when the reign of that term is over.
func (t *replicator) reignOf(term uint64) context.Context {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term != term {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		return over
	}
	return t.reign
}

// news wakes those who hold back appends: the log, the commit index or a
// connection has changed.
func (t *replicator) news() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.moved != nil {
		close(t.moved)
		t.moved = nil
	}
}

// next is closed at the next news.
func (t *replicator) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.moved == nil {
		t.moved = make(chan struct{})
	}
	return t.moved
}

// failed says that a call to a peer failed: it may have restarted.
func (t *replicator) failed(id raft.ServerID) {
	t.mu.Lock()
	t.breaks[id]++
	t.mu.Unlock()
	t.news()
}

func (t *replicator) breaksOf(id raft.ServerID) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.breaks[id]
}

// note remembers an answer.
func (t *replicator) note(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, sent time.Time) {
	if !resp.Success || resp.Term > req.Term {
		return
	}
	t.n.contacts.answered(string(id), req.Term, sent, lastOf(req))
}

// lastOf is the index up to which a follower that accepted it has the log; 0 for
// a heartbeat.
func lastOf(req *raft.AppendEntriesRequest) uint64 {
	if n := len(req.Entries); n > 0 {
		return req.Entries[n-1].Index
	}
	return req.PrevLogEntry
}

// isHeartbeat is true of what Raft's transport takes for one.
func isHeartbeat(req *raft.AppendEntriesRequest) bool {
	return req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0
}

// AppendEntries implements raft.Transport.
func (t *replicator) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	reign := t.reignOf(req.Term)
	if reign.Err() != nil {
		return errDeposed
	}
	if isHeartbeat(req) {
		return t.heartbeat(id, target, req, resp)
	}
	pause := 100 * time.Millisecond
	for {
		sent := time.Now()
		t.sent.Add(1)
		err := t.NetworkTransport.AppendEntries(id, target, req, resp)
		if err == nil {
			t.note(id, req, resp, sent)
			if resp.Success || resp.NoRetryBackoff || resp.Term > req.Term {
				return nil
			}
			// The follower can't write, or read what it has: it gets the same again.
			err = errors.New("the follower could not store log entries")
			pause = min(2*pause, 2*time.Second)
		} else {
			t.failed(id)
		}
		var there bool
		if target, there = t.await(reign, id, pause); !there {
			return err
		}
		*resp = raft.AppendEntriesResponse{}
	}
}

// await pauses before a peer is tried again. It returns false if that makes no
// sense any more.
func (t *replicator) await(reign context.Context, id raft.ServerID, pause time.Duration) (raft.ServerAddress, bool) {
	m, there := t.n.member(string(id))
	if !there {
		return "", false
	}
	select {
	case <-time.After(pause + rand.N(pause)):
	case <-reign.Done():
		return "", false
	case <-t.n.port.stop.Done():
		return "", false
	}
	return raft.ServerAddress(m.Address), true
}

// heartbeat sends one. When the answer takes too long the connections to the
// peer are given up: they may lead to where it is no more.
func (t *replicator) heartbeat(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	t.beats.Add(1)
	sent := time.Now()
	giveUp := time.AfterFunc(3*t.n.c.HeartbeatTimeout, func() { t.n.port.drop(string(target)) })
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	giveUp.Stop()
	if err != nil {
		t.failed(id)
		return err
	}
	t.note(id, req, resp, sent)
	return nil
}

// InstallSnapshot implements raft.Transport. It waits for the peer to be there
// before the snapshot is read.
func (t *replicator) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	reign := t.reignOf(req.Term)
	for reign.Err() == nil {
		conn, err := t.n.port.Dial(memberAt(id, string(addr)), dialTimeout)
		if err == nil {
			conn.Close()
			return t.NetworkTransport.InstallSnapshot(id, addr, req, resp, data)
		}
		t.failed(id)
		var there bool
		if addr, there = t.await(reign, id, 100*time.Millisecond); !there {
			return err
		}
	}
	return errDeposed
}

// AppendEntriesPipeline implements raft.Transport.
func (t *replicator) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		t.failed(id)
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, t: t, id: id, out: make(chan raft.AppendFuture), done: make(chan struct{})}
	t.n.port.wg.Go(p.forward)
	return p, nil
}

// TimeoutNow implements raft.Transport. While Raft waits for the answer it
// accepts no writes.
func (t *replicator) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	type answer struct {
		resp raft.TimeoutNowResponse
		err  error
	}
	done := make(chan answer, 1)
	t.n.port.wg.Go(func() {
		var a answer
		a.err = t.NetworkTransport.TimeoutNow(id, target, req, &a.resp)
		done <- a
	})
	select {
	case a := <-done:
		*resp = a.resp
		return a.err
	case <-time.After(2 * t.n.c.HeartbeatTimeout):
		return errors.New("no answer")
	}
}
