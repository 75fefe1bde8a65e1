package consensus

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// Autopilot looks at the members every other second. What it then promotes may
// have been removed in between, or have moved.
func TestAutopilotBringsBackNobody(t *testing.T) {
	t.Parallel()
	members := grow(t, steady, Config{}, Config{})
	leader, others := leaderOf(t, members)
	gone, stays := others[0].c, others[1].c
	r := ofMembers{leader.raft.Load()}
	if err := r.AddVoter(raft.ServerID(stays.NodeID), "10.0.0.1:1", 0, time.Second).Error(); !errors.Is(err, ErrNotMember) {
		t.Errorf("at an address of the past: %v", err)
	}
	if err := r.AddVoter(raft.ServerID(stays.NodeID), raft.ServerAddress(stays.AdvertiseAddr), 0, time.Second).Error(); err != nil {
		t.Errorf("a member: %v", err)
	}
	if err := leader.Remove(t.Context(), gone.NodeID); err != nil {
		t.Fatal(err)
	}
	if err := r.AddVoter(raft.ServerID(gone.NodeID), raft.ServerAddress(gone.AdvertiseAddr), 0, time.Second).Error(); !errors.Is(err, ErrNotMember) {
		t.Errorf("a removed server: %v", err)
	}
	if n := len(leader.Members()); n != 2 {
		t.Errorf("%d members", n)
	}
}
