package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// How timeouts follow the disk, with d for what all but one of a hundred of its
// last 512 synced writes take (of less than a hundred: all but one of ten):
//
//	election   10 d: the candidate and each voter save term and vote, three
//	           writes, one after the other, and the new leader appends
//	heartbeat  3 d: a follower saves the term of a new leader before it answers
//
// They are at least Config.HeartbeatTimeout and three fifths of that, and at most
// 10 and 3 times that: a follower with a fast disk misses a leader that sends
// every 0.1 to 0.2 s after 0.6 to 1.2 s. They change when the election timeout would grow by a quarter or halve. A
// leader keeps the heartbeat timeout of the configuration, because its heartbeats
// and its lease depend on it and heartbeats need no disk.
func timeouts(base, d time.Duration, leads bool) (heartbeat, election time.Duration) {
	heartbeat = min(max(3*d, base*3/5), 3*base)
	election = min(max(10*d, base), 10*base)
	if leads {
		heartbeat = base
	}
	return heartbeat, election
}

const (
	adaptEvery = 32 // writes
	adaptFirst = 10
)

// wrote is called by the log after each synced write, with what it took.
func (n *Node) wrote(d time.Duration) {
	n.writes.Observe(d)
	count := n.writes.Count()
	if count != adaptFirst && count%adaptEvery != 0 {
		return
	}
	q := 0.99
	if count < 100 {
		q = 0.9
	}
	slow := n.writes.Quantile(q)
	n.slowest.Store(int64(slow))
	_, would := timeouts(n.c.HeartbeatTimeout, slow, false)
	_, now := timeouts(n.c.HeartbeatTimeout, time.Duration(n.adapted.Load()), false)
	if 4*would < 5*now && 2*would > now {
		return
	}
	n.adapted.Store(int64(slow))
	if r := n.raft.Load(); r != nil {
		n.adapt(r, r.State() == raft.Leader)
	}
}

// adapt gives Raft the timeouts that it should have now.
func (n *Node) adapt(r *raft.Raft, leads bool) {
	h, e := timeouts(n.c.HeartbeatTimeout, time.Duration(n.adapted.Load()), leads)
	n.reload(r, func(rc *raft.ReloadableConfig) {
		rc.HeartbeatTimeout, rc.ElectionTimeout = h, e
	})
}

// reload changes what can be changed while Raft runs.
func (n *Node) reload(r *raft.Raft, change func(*raft.ReloadableConfig)) {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	rc := r.ReloadableConfig()
	before := rc
	change(&rc)
	if rc == before {
		return
	}
	if err := r.ReloadConfig(rc); err != nil {
		n.c.Logger.Warn("raft refused its configuration", "error", err)
	}
}
