//go:build nextlevel

package consensus

import (
	"errors"
	"testing"

	"github.com/skiff-sh/skiff/fsm"
)

// TestRaiseLevel: once all members know it the level rises, its command is
// proposed, a server of the version before is not let in, and a new one gets the
// state in the new form.
func TestRaiseLevel(t *testing.T) {
	t.Parallel()
	members := grow(t, steady, Config{SnapshotEntries: 4, Trailing: 1}, Config{})
	leader, _ := leaderOf(t, members)
	propose := func(c fsm.Command) {
		t.Helper()
		if r, err := leader.Propose(t.Context(), c); err != nil || r.Err != nil {
			t.Fatal(err, r.Err)
		}
	}
	for _, key := range []string{"/old/a", "/old/b", "/keep"} {
		propose(onePut(key, "1"))
	}
	view := leader.c.FSM.Store().View()
	if c := fsm.Clear(view, "/old/"); len(c) != 1 || len(c[0].Ops) != 2 {
		t.Fatalf("at level 1: %+v", c)
	}
	before := joinRequest{ID: "before", Addr: "127.0.0.1:1", CommandVersion: 1, Levels: Levels{1, 1}}
	if err := leader.RaiseLevel(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := leader.admit(t.Context(), before); !errors.Is(err, ErrVersion) {
		t.Errorf("a server of the version before: %v", err)
	}
	c := fsm.Clear(leader.c.FSM.Store().View(), "/old/")
	propose(c[0])
	if _, ok := leader.c.FSM.Store().View().Get("/old/a"); ok || len(c[0].Ops) != 0 {
		t.Errorf("cleared by %+v", c)
	}
	for range 8 {
		propose(onePut("/keep", "2"))
	}
	b := start(t, Config{NodeID: "new", DataDir: t.TempDir(), HeartbeatTimeout: steady, Join: []string{leader.c.AdvertiseAddr}})
	b.awaitReady(t)
	if b.c.FSM.Level() != 2 || b.c.FSM.Capture().Format != 2 {
		t.Errorf("the new server is at level %d", b.c.FSM.Level())
	}
}
