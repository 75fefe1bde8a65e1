//go:build integration

package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/backup"
)

// All servers are lost; a snapshot is restored on one host. The others, on which
// nothing was changed, join it when they are started, and what was written after
// the snapshot is gone.
func TestEpochServersRejoinARestoredOne(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} { // whether a new server joined after the snapshot
		name := "same members"
		if late {
			name = "one joined later"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := threeServers(t)
			a, b, c := hosts[0], hosts[1], hosts[2]
			a.write(t, "before")
			snapshot := snapshotOf(t, b)
			b.write(t, "after")
			if late {
				d := newHost("d", t.TempDir())
				join(t, a, d)
				d.boot(t)
				c = d.ready(t)
				hosts = append(hosts, d)
			}
			revision := a.now().state.Revision()
			key := filepath.Join(a.config.DataDir, "pki", "cluster.key")
			for _, h := range hosts {
				h.halt(t)
			}
			again := newHost("a", filepath.Join(t.TempDir(), "data"))
			again.config.Port, again.config.RaftPort, again.config.GossipPort = a.config.Port, a.config.RaftPort, a.config.GossipPort
			restore(t, snapshot, key, again)
			began := time.Now()
			again.boot(t)
			again.ready(t)
			again.write(t, "first")
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("the first write took %s", took)
			}
			again.inEpoch(t, 2)
			for _, h := range []*host{b, c} {
				h.boot(t)
			}
			for _, h := range []*host{b, c} {
				h.inEpoch(t, 2)
				if !h.has(t, "before") || h.has(t, "after") || !h.has(t, "first") {
					t.Errorf("%s has another content", h.config.Name)
				}
				if aside, _ := filepath.Glob(filepath.Join(h.config.DataDir, "raft.epoch-1", "raft.db")); len(aside) != 1 {
					t.Errorf("the former log of %s is not kept", h.config.Name)
				}
			}
			allVote(t, again, 3)
			c.write(t, "through-the-other")
			if now := again.now().state.Revision(); now < revision+backup.DefaultRevisionStep/2 {
				t.Errorf("revision %d after %d", now, revision)
			}
			// All of them start again as what they are.
			b.halt(t)
			b.boot(t)
			b.ready(t)
			if b.now().epoch.Number != 2 || b.runs != 4 {
				t.Errorf("%d runs, %s", b.runs, b.now().epoch)
			}
		})
	}
}

// A server on a restored snapshot does not begin while the cluster lives, and
// begins when it is stopped; those that are running without a quorum then join.
func TestEpochRestoreBesideALivingCluster(t *testing.T) {
	t.Parallel()
	hosts := threeServers(t)
	a, b, c := hosts[0], hosts[1], hosts[2]
	a.write(t, "before")
	snapshot := snapshotOf(t, a)
	again := newHost("z", filepath.Join(t.TempDir(), "data")) // on a host that nobody knows
	restore(t, snapshot, filepath.Join(a.config.DataDir, "pki", "cluster.key"), again)
	again.boot(t)
	err := <-again.ended
	again.cancel = nil
	if !errors.Is(err, ErrRefusedStart) || !strings.Contains(err.Error(), "use skiff restore --live") || !strings.Contains(err.Error(), "is alive: server ") {
		t.Fatalf("it ended with %v", err)
	}
	a.halt(t)
	b.halt(t)
	c.leaderless(t)
	again.boot(t)
	again.ready(t)
	again.write(t, "first")
	c.inEpoch(t, 2) // it ran all the time
	if !c.has(t, "first") {
		t.Error("it has another content")
	}
	// One that was stopped does not make a quorum of the old history.
	b.boot(t)
	b.inEpoch(t, 2)
	allVote(t, again, 3)
}

// leaderless waits until the server has known no leader for two seconds: one that
// stopped may have handed over to it, and then it leads for a moment yet.
func (h *host) leaderless(t testing.TB) {
	t.Helper()
	since := time.Now()
	within(t, time.Minute, "no leader, and none to come", func() bool {
		if id, _ := h.now().node.Leader(); id != "" {
			since = time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}

// Two of three servers are lost for good: the third goes on alone. A minority that
// comes back is refused, and joins when it is told to.
func TestEpochRecovery(t *testing.T) {
	t.Parallel()
	hosts := threeServers(t)
	a, b, c := hosts[0], hosts[1], hosts[2]
	a.write(t, "before")
	if plan := a.now().recoveryPlan(t.Context(), false); !strings.Contains(plan.Refused, "has a quorum") {
		t.Errorf("with a quorum: %+v", plan)
	}
	within(t, 20*time.Second, "c has it", func() bool { return c.has(t, "before") })
	a.halt(t)
	b.halt(t)
	c.leaderless(t)
	plan := c.now().recoveryPlan(t.Context(), false)
	if plan.Refused != "" || len(plan.Doubts) > 0 || plan.Next.Number != 2 || len(plan.Next.Followers) != 0 || len(plan.Losses) != 1 || !strings.Contains(plan.Losses[0], "a or b") {
		t.Fatalf("plan %+v", plan)
	}
	if err := c.now().recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	c.inEpoch(t, 2)
	if !c.has(t, "before") {
		t.Error("what it had is lost")
	}
	c.write(t, "alone")

	// b comes back, and is kept out.
	b.boot(t)
	within(t, 20*time.Second, "b is kept out", func() bool { return b.now().members.Membership().Err() != nil })
	why := context.Cause(b.now().members.Membership()).Error()
	if !strings.Contains(why, "run skiff recover --rejoin") || !strings.Contains(why, "ends with entry") {
		t.Errorf("it says %s", why)
	}
	if b.now().node.Started() {
		t.Error("its log is in use")
	}
	a.boot(t) // with it there would be a quorum of the old history
	within(t, 20*time.Second, "a is kept out", func() bool { return a.now().members.Membership().Err() != nil })
	if id, _ := a.now().node.Leader(); id != "" {
		t.Error("the old history has a leader")
	}
	for _, h := range []*host{a, b} {
		plan := h.now().recoveryPlan(t.Context(), true)
		if plan.Refused != "" || plan.Target != "c" && (h == a || plan.Target != "a") { // a is back when b is asked
			t.Fatalf("plan %+v", plan)
		}
		if other := h.now().recoveryPlan(t.Context(), false); !strings.Contains(other.Refused, "run skiff recover --rejoin here") {
			t.Errorf("recover beside a cluster that lives: %+v", other)
		}
		if err := h.now().recover(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		h.inEpoch(t, 2)
		if !h.has(t, "alone") {
			t.Error("it has another content")
		}
	}
	allVote(t, c, 3)
}

// Of those that survive the one with the most log recovers, and the others join it
// by themselves.
func TestEpochSurvivorsFollow(t *testing.T) {
	t.Parallel()
	hosts := threeServers(t)
	a, b, c := hosts[0], hosts[1], hosts[2]
	for _, name := range []string{"d", "e"} {
		h := newHost(name, t.TempDir())
		join(t, a, h)
		h.boot(t)
		hosts = append(hosts, h.ready(t))
	}
	allVote(t, a, 5)
	a.write(t, "before")
	for _, h := range hosts[2:] {
		h.halt(t)
	}
	a.leaderless(t)
	b.leaderless(t)
	plan := a.now().recoveryPlan(t.Context(), false)
	if len(plan.Doubts) > 0 { // b may have one entry more
		a, b = b, a
		if plan = a.now().recoveryPlan(t.Context(), false); len(plan.Doubts) > 0 {
			t.Fatalf("nobody may: %+v", plan)
		}
	}
	if !slices.Equal(plan.Next.Followers, []string{b.now().ID()}) {
		t.Errorf("plan %+v", plan)
	}
	if err := a.now().recover(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	a.inEpoch(t, 2)
	b.inEpoch(t, 2)
	if !b.has(t, "before") {
		t.Error("it has another content")
	}
	// Three of five, which were a quorum, come back together.
	for _, h := range []*host{c, hosts[3], hosts[4]} {
		h.boot(t)
	}
	for _, h := range []*host{c, hosts[3], hosts[4]} {
		within(t, 20*time.Second, h.config.Name+" is kept out", func() bool { return h.now().members.Membership().Err() != nil })
	}
}
