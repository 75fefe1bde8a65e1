package consensus

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestHandingOverInVain: who tries to hand over to a member that does not answer,
// more than once, goes on to lead and to write.
func TestHandingOverInVain(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, 2*steady)
	leader, others := leaderOf(t, members)
	leader.put(t, "/a", "1", -1)
	others[0].crash(t)
	leader.put(t, "/a", "2", -1) // it will not have this
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := leader.transferHere(ctx, others[0].c.NodeID)
		cancel()
		if err == nil {
			t.Fatal("a dead member leads")
		}
		if errors.Is(err, ErrNotLeader) {
			t.Fatal("the leader has lost its place")
		}
	}
	eventually(t, "a write", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := leader.Propose(ctx, onePut("/a", "3"))
		return err == nil
	})
	again := others[0].restart(t)
	again.awaitReady(t)
	eventually(t, "it can lead when it is back", func() bool {
		return leader.TransferLeadership(t.Context(), again.c.NodeID) == nil && again.IsLeader()
	})
}

func TestFollows(t *testing.T) {
	t.Parallel()
	var c contacts
	now := time.Now()
	if c.owe("a"); c.follows("a", time.Hour) {
		t.Error("one that never answered follows")
	}
	c.answered("a", 1, now, 0)
	if c.follows("a", time.Hour) {
		t.Error("one that answers heartbeats only follows")
	}
	c.answered("a", 1, now, 7)
	if !c.follows("a", time.Hour) || c.follows("a", 0) {
		t.Error("one that has answered an append lately does not follow")
	}
	c.owe("a")
	if c.follows("a", time.Hour) {
		t.Error("it follows after leadership could not be handed over")
	}
	c.answered("a", 1, now, 8)
	if c.follows("a", time.Hour) {
		t.Error("an answer to what was sent before counts")
	}
	c.answered("a", 1, time.Now().Add(time.Millisecond), 8)
	if !c.follows("a", time.Hour) {
		t.Error("an answer to what was sent afterwards does not count")
	}
}
