package consensus

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// TestLevelGate: what the cluster's feature level does not have is not proposed,
// and a server whose program does not work at it is not let in.
func TestLevelGate(t *testing.T) {
	t.Parallel()
	members := grow(t, steady, Config{})
	leader, others := leaderOf(t, members)
	follower := others[0]
	if err := leader.RaiseLevel(t.Context(), fsm.MaxLevel+1); !errors.Is(err, fsm.ErrLevel) {
		t.Errorf("raised beyond what this program knows: %v", err)
	}
	if err := leader.RaiseLevel(t.Context(), 1); !errors.Is(err, fsm.ErrInvalid) {
		t.Errorf("raised to what it is: %v", err)
	}
	if err := follower.RaiseLevel(t.Context(), fsm.MaxLevel+1); !errors.Is(err, ErrNotLeader) {
		t.Errorf("raised by a follower: %v", err)
	}
	later := joinRequest{ID: "later", Addr: "127.0.0.1:1", CommandVersion: 9, Levels: Levels{MinLevel: 2, MaxLevel: 9}}
	if err := leader.admit(t.Context(), later); !errors.Is(err, ErrVersion) {
		t.Errorf("a server that works from a later level on: %v", err)
	}
	for l, fits := range map[Levels][]bool{{}: {true, false}, {1, 1}: {true, false}, {1, 2}: {true, true}, {2, 3}: {false, true}} {
		for i, want := range fits {
			if err := l.fit(i + 1); (err == nil) != want {
				t.Errorf("%+v at level %d: %v", l, i+1, err)
			}
		}
	}
}

// TestLaterSnapshotIsNoDamage: a log whose snapshot a later version wrote is not
// to be restored from elsewhere.
func TestLaterSnapshotIsNoDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{NodeID: "a", DataDir: dir, HeartbeatTimeout: hasty, Listener: l, Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}}})
	m.awaitReady(t)
	if r, err := m.Propose(t.Context(), fsm.SetLevel(m.c.FSM.Store().View(), fsm.MaxLevel+1)); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	if err := m.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	m.stop(t)
	c := m.config
	c.Listener, c.FSM = listen(t, "127.0.0.1:0"), fsm.New(store.New(store.Config{}))
	_, err := New(c)
	c.Listener.Close()
	if !errors.Is(err, fsm.ErrLevel) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "or a newer one") {
		t.Errorf("opened with %v", err)
	}
}

// TestProtocolsAreOfTheLevel: what the Raft port speaks is what the highest
// feature level says.
func TestProtocolsAreOfTheLevel(t *testing.T) {
	v := fsm.AtLevel(fsm.MaxLevel).RPC
	if protoRaft != fmt.Sprintf("skiff-raft/%d", v) || protoRPC != fmt.Sprintf("skiff-rpc/%d", v) {
		t.Errorf("%s and %s at a level with version %d", protoRaft, protoRPC, v)
	}
}
