package consensus

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process dies takes its connections along, and its port refuses
// new ones. A follower that sees both need not wait for the heartbeat timeout: if
// a majority of the voters finds it so (see agree.go), it stands for election at
// once, with the request that a leader hands over with (the others then vote
// although they think that they have a leader). The followers do it one after the
// other, so that votes are not split. A host that dies closes nothing; it is
// missed by the heartbeat timeout.
const (
	orphanPause   = 20 * time.Millisecond // between two looks at the leader's port
	orphanLooks   = 15
	orphanStagger = 100 * time.Millisecond // between two followers, with a fast disk
)

// succeed stands for election whenever the leader's process has died, until the
// node stops.
func (n *Node) succeed(r *raft.Raft) {
	ctx, cancel := n.untilStopped(context.Background())
	defer cancel()
	for {
		select {
		case <-n.port.lost:
			n.succeedDead(ctx, r, time.Now())
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) succeedDead(ctx context.Context, r *raft.Raft, lost time.Time) {
	addr, leader := r.LeaderWithID()
	orphaned := func() bool {
		_, id := r.LeaderWithID()
		return ctx.Err() == nil && leader != "" && id == leader && r.State() == raft.Follower && r.LastContact().Before(lost)
	}
	turn, votes := n.turn(string(leader))
	if !votes || !orphaned() {
		return
	}
	for look := 0; !n.refused(ctx, string(addr)); look++ {
		if look == orphanLooks || !orphaned() || !pause(ctx, orphanPause) {
			return
		}
	}
	wait := time.Duration(turn) * max(orphanStagger, 5*time.Duration(n.slowest.Load()))
	if !orphaned() || !pause(ctx, wait) || !orphaned() || !n.agreed(ctx, r, string(leader)) {
		return
	}
	n.stand(ctx, r, func() bool {
		_, votes := n.turn(string(leader))
		return votes && orphaned()
	})
}

// stand makes Raft stand for election, if that is still right when it comes to
// it: where the disk is slow, that can be a while, and others may lead by then.
func (n *Node) stand(ctx context.Context, r *raft.Raft, right func() bool) {
	q := raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: n.header()}, RespChan: make(chan raft.RPCResponse, 1)}
	for right() && !n.tooEarly(r, q) {
		select {
		case n.trans.received <- q: // Raft takes it now, or not at all
			n.c.Logger.Info("the leader's process has ended, standing for election")
			return
		case <-time.After(orphanPause):
		case <-ctx.Done():
			return
		}
	}
}

// turn is this member's place among the live voters beside the leader. Witnesses
// and those that cannot write come behind all others.
func (n *Node) turn(leader string) (place int, votes bool) {
	var others []string
	for _, m := range n.Members() {
		if m.ID == n.c.NodeID {
			votes = m.Voter
		} else if m.Voter && m.ID != leader && (n.c.Alive == nil || n.c.Alive(m.ID)) {
			others = append(others, m.ID)
		}
	}
	slices.Sort(others)
	place, _ = slices.BinarySearch(others, n.c.NodeID)
	if n.c.Witness || n.log.Room() != nil || n.stall.problem() != nil {
		place = len(others) + 1
	}
	return place, votes
}

// refused says whether nobody listens on an address. One that does not answer
// is not known to be without a listener.
func (n *Node) refused(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := n.port.connect(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// pause returns false if ctx ends before d is over.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Read implements net.Conn. That the other side has ended a connection to here
// can be the leader's end.
func (c *trackedConn) Read(b []byte) (int, error) {
	k, err := c.Conn.Read(b)
	if err != nil && c.target == "" && !errors.Is(err, net.ErrClosed) {
		select {
		case c.port.lost <- struct{}{}:
		default:
		}
	}
	return k, err
}
