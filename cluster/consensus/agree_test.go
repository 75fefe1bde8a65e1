package consensus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// walls refuse connections from one member to another, as a firewall does that
// answers for the host behind it.
type walls struct {
	mu sync.Mutex
	up map[[2]string]bool // ID of who dials, address
}

func (w *walls) set(from, to *member, up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up[[2]string{from.c.NodeID, to.c.AdvertiseAddr}] = up
}

// walled is cluster with walls, none of which is up.
func walled(t *testing.T, n int) ([]*member, *walls) {
	t.Helper()
	w := &walls{up: map[[2]string]bool{}}
	var servers []Server
	var configs []Config
	for i := range n {
		l := listen(t, "127.0.0.1:0")
		id := string(rune('a' + i))
		servers = append(servers, Server{ID: id, Addr: l.Addr().String()})
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			w.mu.Lock()
			refused := w.up[[2]string{id, addr}]
			w.mu.Unlock()
			if refused {
				return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		configs = append(configs, Config{NodeID: id, DataDir: t.TempDir(), Listener: l, HeartbeatTimeout: steady, Dial: dial})
	}
	var members []*member
	for _, c := range configs {
		c.Bootstrap = servers
		members = append(members, start(t, c))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	return members, w
}

// TestFirewallIsNoDeath: a follower whose connections to the leader are refused
// does not depose it while the others reach it.
func TestFirewallIsNoDeath(t *testing.T) {
	t.Parallel()
	members, w := walled(t, 3)
	leader, others := leaderOf(t, members)
	patient(t, others)
	term := leader.raft.Load().CurrentTerm()
	w.set(others[0], leader, true)
	for range 3 {
		others[1].port.drop(others[0].c.AdvertiseAddr)
		leader.port.drop(others[0].c.AdvertiseAddr)
		time.Sleep(orphanLooks * orphanPause)
	}
	if got := leader.raft.Load().CurrentTerm(); got != term || !leader.IsLeader() {
		t.Errorf("term %d became %d", term, got)
	}
	leader.put(t, "/a", "1", -1)
}

// TestShorterLogGivesWay: one that lacks what another has does not stand for
// election, which would only keep the other from it.
func TestShorterLogGivesWay(t *testing.T) {
	t.Parallel()
	members, w := walled(t, 3)
	leader, others := leaderOf(t, members)
	patient(t, others)
	term := leader.raft.Load().CurrentTerm()
	first, second := others[0], others[1]
	w.set(leader, first, true)
	leader.port.drop(first.c.AdvertiseAddr)
	for i := range 5 {
		second.put(t, "/a", fmt.Sprint(i), -1)
	}
	if f, s := first.raft.Load().LastIndex(), second.raft.Load().LastIndex(); f >= s {
		t.Fatalf("the first has %d entries, the second %d: the test tests nothing", f, s)
	}
	leader.crash(t)
	first.port.lost <- struct{}{}
	next, _ := leaderOf(t, others)
	if got := next.raft.Load().CurrentTerm(); next != second || got != term+1 {
		t.Errorf("%s leads in term %d after %d", next.c.NodeID, got, term)
	}
	if next.get("/a") != "4" {
		t.Errorf("%q", next.get("/a"))
	}
}

// TestOneOfTwoWaits: who cannot win an election leaves the term as it is.
func TestOneOfTwoWaits(t *testing.T) {
	t.Parallel()
	members, _ := walled(t, 2)
	leader, others := leaderOf(t, members)
	patient(t, others)
	term := leader.raft.Load().CurrentTerm()
	leader.crash(t)
	time.Sleep(2 * orphanLooks * orphanPause)
	if r := others[0].raft.Load(); r.CurrentTerm() != term || r.State() != raft.Follower {
		t.Errorf("%s in term %d, it was %d", r.State(), r.CurrentTerm(), term)
	}
}
