package cluster

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/gossip"
)

// TestWhoGossipDoesNotKnow: a member that was dead when this server started must
// not be taken for alive for ever, or the log never gets rid of it.
func TestWhoGossipDoesNotKnow(t *testing.T) {
	t.Parallel()
	g, err := gossip.New(gossip.Config{Name: "a", Bind: netip.MustParseAddr("127.0.0.1"), Keys: [][]byte{make([]byte, 32)},
		Tags: gossip.Tags{ID: "id-a", Role: gossip.RoleServer, ClusterID: "c"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, c := range []struct {
		id    string
		up    time.Duration
		alive bool
	}{{"id-a", 0, true}, {"id-a", 2 * aliveUnknown, true}, {"id-b", 0, true}, {"id-b", aliveUnknown / 2, true}, {"id-b", 2 * aliveUnknown, false}} {
		s := &Server{started: time.Now().Add(-c.up)}
		if !s.alive(c.id) {
			t.Errorf("%s, %v after the start, before gossip runs: dead", c.id, c.up)
		}
		s.gossip.Store(g)
		if got := s.alive(c.id); got != c.alive {
			t.Errorf("%s, %v after the start: %t", c.id, c.up, got)
		}
	}
}
