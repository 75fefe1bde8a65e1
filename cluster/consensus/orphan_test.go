package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// patient makes followers wait very long for heartbeats.
func patient(t *testing.T, followers []*member) {
	t.Helper()
	for _, f := range followers {
		f.reload(f.raft.Load(), func(rc *raft.ReloadableConfig) { rc.HeartbeatTimeout, rc.ElectionTimeout = time.Hour, time.Hour })
	}
}

// TestDeadLeaderIsReplacedAtOnce: nobody waits for the heartbeat timeout when
// the leader's process has died.
func TestDeadLeaderIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		members := cluster(t, 3, steady)
		leader, others := leaderOf(t, members)
		term := leader.raft.Load().CurrentTerm()
		patient(t, others)
		began := time.Now()
		leader.crash(t)
		next, _ := leaderOf(t, others)
		took := time.Since(began)
		if got := next.raft.Load().CurrentTerm(); got != term+1 {
			t.Errorf("term %d after %d: votes were split", got, term)
		}
		next.put(t, "/a", "1", -1)
		t.Logf("%s leads after %v", next.c.NodeID, took)
	}
}

// TestLostConnectionsAreNoDeath: a leader whose connections break goes on.
func TestLostConnectionsAreNoDeath(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	term := leader.raft.Load().CurrentTerm()
	patient(t, others)
	for range 5 {
		leader.port.closeRaft(func(*trackedConn) bool { return true })
		others[0].put(t, "/a", "1", -1)
	}
	time.Sleep(2 * orphanLooks * orphanPause)
	if got := leader.raft.Load().CurrentTerm(); got != term || !leader.IsLeader() {
		t.Errorf("term %d became %d", term, got)
	}
}

// TestTurn: the followers stand for election one after the other, a witness
// last.
func TestTurn(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{Witness: true}, Config{})
	for i, want := range []int{0, 3, 2} {
		m := members[i+1]
		eventually(t, "it knows all voters", func() bool { return voters(m) == len(members) })
		if place, votes := m.turn("a"); !votes || place != want {
			t.Errorf("%s: place %d, not %d, votes %t", m.c.NodeID, place, want, votes)
		}
	}
}
