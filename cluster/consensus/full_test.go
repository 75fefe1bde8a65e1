package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// TestFullLeader: a leader whose disk is full leaves it to a server with room;
// when no server has any, writes say so, until one has.
func TestFullLeader(t *testing.T) {
	var servers []Server
	var configs []Config
	disks := map[string]string{}
	for _, id := range []string{"a", "b", "c"} {
		l := listen(t, "127.0.0.1:0")
		disks[id] = smallDisk(t, 24<<20)
		servers = append(servers, Server{ID: id, Addr: l.Addr().String()})
		configs = append(configs, Config{NodeID: id, DataDir: filepath.Join(disks[id], "data"), Listener: l,
			HeartbeatTimeout: steady, Reserve: 1 << 20})
	}
	var members []*member
	for _, c := range configs {
		c.Bootstrap = servers
		members = append(members, start(t, c))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	leader, others := leaderOf(t, members)
	ballast := map[string]string{leader.c.NodeID: fill(t, disks[leader.c.NodeID])}
	for i := range 200 { // until all that the leader had is used up, and more
		began := time.Now()
		op := fsm.Op{Type: fsm.Put, Key: "/a", Value: make([]byte, 32<<10), Expect: fsm.Any}
		if _, err := others[i%2].Propose(t.Context(), fsm.One(op)); err != nil {
			t.Fatalf("write %d, after %v: %v", i, time.Since(began), err)
		}
	}
	if leader.IsLeader() {
		t.Error("the server with a full disk leads")
	}
	for _, m := range others {
		ballast[m.c.NodeID] = fill(t, disks[m.c.NodeID])
	}
	put := func() error {
		op := fsm.Op{Type: fsm.Put, Key: "/a", Value: make([]byte, 32<<10), Expect: fsm.Any}
		_, err := members[0].Propose(t.Context(), fsm.One(op))
		return err
	}
	eventually(t, "writes are refused for want of room", func() bool { return errors.Is(put(), ErrNoSpace) })
	for _, m := range members { // those that have all of it serve reads
		if err := m.ReadIndex(t.Context()); err != nil && !(errors.Is(err, ErrBehind) && errors.Is(err, ErrNoSpace)) {
			t.Errorf("read from %s: %v", m.c.NodeID, err)
		}
	}
	leader, _ = leaderOf(t, members)
	if err := leader.ReadIndex(t.Context()); err != nil {
		t.Errorf("read from the leader: %v", err)
	}
	for id := range ballast {
		if err := os.Remove(ballast[id]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "writes go on", func() bool { return put() == nil })
}
