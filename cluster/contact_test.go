package cluster

import (
	"log/slog"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/membership"
)

func TestRoster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	now := time.Now()
	peer := func(id string, port uint16, state membership.State) membership.Peer {
		return membership.Peer{Server: membership.Server{ID: id, Name: id}, NodePort: port, State: state, Since: now}
	}
	server := membership.Peer{Server: membership.Server{ID: "server"}, Role: membership.RoleServer, State: membership.Dead}
	r := OpenRoster(dir, log)
	self := peer("self", 1, membership.Alive)
	check := func(what string, want float64, peers ...membership.Peer) {
		t.Helper()
		if got := r.AliveFraction(peers, "self"); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("nobody is known yet", 1, self, server)
	check("no server was ever heard of", 0, self, peer("b", 1, membership.Alive))
	mine := self
	mine.Role = membership.RoleServer
	check("no other server was ever heard of", 0, mine)
	all := []membership.Peer{self, peer("b", 1, membership.Alive), peer("c", 1, membership.Alive), peer("d", 1, membership.Dead), server}
	r.Update(all, nil)
	check("one of four is dead", 0.75, all...)

	// After a restart that finds nobody.
	r = OpenRoster(dir, log)
	check("alone after a restart", 0.25, self, server)
	r.Update([]membership.Peer{self, peer("b", 1, membership.Left)}, nil)
	check("one has left", 1.0/3, self, server)
	r.Update([]membership.Peer{self}, func(id string) bool { return id == "c" })
	check("one was removed", 0.5, self, server)
	r.now = func() time.Time { return now.Add(rosterAge + time.Minute) }
	r.Update([]membership.Peer{self}, nil)
	check("one was not seen for long", 1, self, server)
}

// Weeks in which nothing changes do not make the others forgotten: neither those
// that die then, nor those that a restart does not find.
func TestRosterInQuietTimes(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Now()
	peers := func(state membership.State, since time.Time) (out []membership.Peer) {
		for _, id := range []string{"self", "b", "c", "d"} {
			p := membership.Peer{Server: membership.Server{ID: id, Name: id}, Role: membership.RoleServer, NodePort: 1, State: membership.Alive, Since: since}
			if id != "self" {
				p.State = state
			}
			out = append(out, p)
		}
		return out
	}
	r := OpenRoster(dir, slog.New(slog.DiscardHandler))
	r.now = func() time.Time { return now }
	alive := peers(membership.Alive, now)
	r.Update(alive, nil)
	for range 2 {
		now = now.Add(rosterAge - time.Hour)
		r.Update(alive, nil)
	}
	r = OpenRoster(dir, slog.New(slog.DiscardHandler))
	r.now = func() time.Time { return now }
	now = now.Add(2 * time.Hour)
	r.Update(alive[:1], nil)
	if got := r.AliveFraction(alive[:1:1], "other"); got != 0.25 {
		t.Errorf("after a restart that finds nobody: %v of the nodes, want 0.25", got)
	}
	now = now.Add(3 * rosterAge)
	dead := peers(membership.Dead, now)
	r.Update(dead, nil)
	if got := r.AliveFraction(dead, "self"); got != 0.25 {
		t.Errorf("when all others die: %v of the nodes, want 0.25", got)
	}
}

func TestProcessorTime(t *testing.T) {
	t.Parallel()
	busy, all := parseProcessorTime("cpu  100 10 40 800 30 1 2 3 50 5")
	if busy != 156 || all != 986 {
		t.Errorf("busy %d of %d, want 156 of 986", busy, all)
	}
	if busy, all := parseProcessorTime("cpu x"); busy != 0 || all != 0 {
		t.Errorf("garbage gives %d of %d", busy, all)
	}
	if _, all := processorTime(); all == 0 {
		t.Error("this machine's processors have no time")
	}
}
