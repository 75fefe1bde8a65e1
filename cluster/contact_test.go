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
	r := OpenRoster(dir, log)
	self := peer("self", 1, membership.Alive)
	check := func(what string, want float64, peers ...membership.Peer) {
		t.Helper()
		if got := r.AliveFraction(peers); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("nobody is known yet", 1, self)
	all := []membership.Peer{self, peer("b", 1, membership.Alive), peer("c", 1, membership.Alive), peer("d", 1, membership.Dead), peer("witness", 0, membership.Alive)}
	r.Update(all, nil)
	check("one of four is dead", 0.75, all...)

	// After a restart that finds nobody.
	r = OpenRoster(dir, log)
	check("alone after a restart", 0.25, self)
	r.Update([]membership.Peer{self, peer("b", 1, membership.Left)}, nil)
	check("one has left", 1.0/3, self)
	r.Update([]membership.Peer{self}, func(id string) bool { return id == "c" })
	check("one was removed", 0.5, self)
	r.now = func() time.Time { return now.Add(rosterAge + time.Minute) }
	r.Update([]membership.Peer{self}, nil)
	check("one was not seen for long", 1, self)
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
