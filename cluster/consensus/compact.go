package consensus

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

const (
	trailingBytes  = 16 << 20 // log kept behind a snapshot, for members that lag a little
	minTrailing    = 64
	maxTrailing    = 4096
	retrySnapshots = 10 * time.Second
)

// compactor takes a snapshot when the log since the last has grown so that
// replaying it would take noticeable time. It counts appends, and sleeps while
// there are none.
type compactor struct {
	n    *Node
	wake chan struct{}

	renewing atomic.Bool // see renew

	mu      sync.Mutex
	entries uint64 // since the last snapshot
	bytes   int64
	all     uint64 // since New, to know the size of an average entry
	size    int64
	next    time.Time // not before
	hasty   bool      // a snapshot is due whatever the numbers say
}

func (c *compactor) init(n *Node, snapshot uint64, found raftdir.Contents) {
	c.n, c.wake = n, make(chan struct{}, 1)
	if found.Last > 0 {
		c.all, c.size = found.Last-found.First+1, found.Bytes
	}
	if found.Last > snapshot {
		c.entries = found.Last - max(snapshot, found.First-1)
		c.bytes = c.size / int64(max(c.all, 1)) * int64(c.entries)
	}
}

// appended is called by the log.
func (c *compactor) appended(entries int, size int64) {
	c.mu.Lock()
	c.entries += uint64(entries)
	c.bytes += size
	c.all += uint64(entries)
	c.size += size
	due := c.due()
	c.mu.Unlock()
	if due {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// hurry lets the next snapshot come soon: the log holds what takes as long to
// apply as a snapshot to read.
func (c *compactor) hurry() {
	c.mu.Lock()
	c.hasty = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// due is called with mu held. A large state is not written for a little log.
func (c *compactor) due() bool {
	bytes := max(c.n.c.SnapshotBytes, c.n.c.FSM.Store().View().Bytes()/2)
	return (c.hasty || c.entries >= c.n.c.SnapshotEntries || c.bytes >= bytes) && time.Now().After(c.next)
}

func (c *compactor) run() {
	for {
		select {
		case <-c.wake:
			c.snapshot(c.n.raft.Load())
		case <-c.n.stopped:
			return
		}
	}
}

func (c *compactor) snapshot(r *raft.Raft) {
	c.mu.Lock()
	if !c.due() {
		c.mu.Unlock()
		return
	}
	entries, bytes := c.entries, c.bytes
	average := max(c.size/int64(max(c.all, 1)), 1)
	c.mu.Unlock()

	keep := uint64(minTrailing)
	if !c.n.soleVoter(r) {
		keep = uint64(min(max(trailingBytes/average, minTrailing), maxTrailing))
	}
	if t := c.n.c.Trailing; t > 0 {
		keep = t
	}
	c.n.reload(r, func(rc *raft.ReloadableConfig) { rc.TrailingLogs = keep })
	err := c.n.takeSnapshot(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.hasty = false
		c.entries -= entries
		c.bytes -= bytes
	case errors.Is(err, raft.ErrRaftShutdown):
	default:
		c.next = time.Now().Add(retrySnapshots)
		c.n.c.Logger.Warn("can't shorten the log; it is tried again", "error", err, "after", retrySnapshots)
	}
}

// takeSnapshot lets Raft take a snapshot, while none is installed.
func (n *Node) takeSnapshot(r *raft.Raft) error {
	n.snapshot <- struct{}{}
	defer func() { <-n.snapshot }()
	return r.Snapshot().Error()
}
