package consensus

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestTimeouts(t *testing.T) {
	t.Parallel()
	const s, ms = time.Second, time.Millisecond
	for _, c := range []struct {
		slow     time.Duration
		leads    bool
		hb, elec time.Duration
	}{
		{0, false, 600 * ms, s}, {50 * ms, false, 600 * ms, s}, {300 * ms, false, 900 * ms, 3 * s}, {500 * ms, false, 1500 * ms, 5 * s},
		{0, true, s, s}, {500 * ms, true, s, 5 * s}, {time.Minute, false, 3 * s, 10 * s},
	} {
		if h, e := timeouts(s, c.slow, c.leads); h != c.hb || e != c.elec {
			t.Errorf("%+v: %v, %v", c, h, e)
		}
	}
	m := single(t, t.TempDir())
	m.awaitReady(t)
	for range 64 {
		m.wrote(300 * ms)
	}
	rc := m.raft.Load().ReloadableConfig()
	if rc.ElectionTimeout != 3*s || rc.HeartbeatTimeout > s+ms {
		t.Errorf("a leader with a slow disk has %+v", rc)
	}
	for range 600 {
		m.wrote(ms)
	}
	if rc := m.raft.Load().ReloadableConfig(); rc.ElectionTimeout > s+ms {
		t.Errorf("a leader with a fast disk has %+v", rc)
	}
}

// TestReturnIsSwift: a member that comes back after a long time has the log at
// once, in spite of Raft's waiting ever longer between its tries.
func TestReturnIsSwift(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	late := others[0]
	late.stop(t)
	for i := range 20 {
		leader.put(t, "/a", fmt.Sprint(i), -1)
		time.Sleep(150 * time.Millisecond) // Raft alone would wait for seconds by now
	}
	begin := time.Now()
	c := late.config
	c.Listener, c.FSM = listen(t, c.AdvertiseAddr), nil
	late = start(t, c)
	eventually(t, "it has the log", func() bool { return late.get("/a") == "19" })
	t.Logf("after %v", time.Since(begin))
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("only after %v", d)
	}
}

// TestStepDownReleasesCalls: calls to a peer that is gone end with the reign.
func TestStepDownReleasesCalls(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	others[0].crash(t)
	leader.put(t, "/a", "1", -1)
	done := make(chan error, 1)
	term := leader.raft.Load().CurrentTerm()
	go func() {
		req := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: 1, PrevLogTerm: 1, LeaderCommitIndex: 1}
		done <- leader.trans.AppendEntries(raft.ServerID(others[0].c.NodeID), raft.ServerAddress(others[0].c.AdvertiseAddr), req, &raft.AppendEntriesResponse{})
	}()
	select {
	case err := <-done:
		t.Fatalf("the call ended by itself: %v", err)
	case <-time.After(3 * hasty):
	}
	eventually(t, "another leads", func() bool { return leader.TransferLeadership(t.Context(), others[1].c.NodeID) == nil })
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("the call goes on after the reign")
	}
}

// TestStall freezes the disk of the leader, and then that of a follower.
func TestStall(t *testing.T) {
	t.Parallel()
	var frozen [3]atomic.Pointer[chan struct{}]
	members := make([]*member, 3)
	var servers []Server
	var listeners []net.Listener
	for i := range members {
		listeners = append(listeners, listen(t, "127.0.0.1:0"))
		servers = append(servers, Server{ID: string(rune('a' + i)), Addr: listeners[i].Addr().String()})
	}
	for i := range members {
		members[i] = start(t, Config{NodeID: servers[i].ID, DataDir: t.TempDir(), Listener: listeners[i], HeartbeatTimeout: steady,
			ElectionWait: 2 * time.Second, Bootstrap: servers, Step: func(step string) {
				if c := frozen[i].Load(); c != nil && strings.HasSuffix(step, ":before") {
					<-*c
				}
			}})
	}
	freeze := func(m *member) (thaw func()) {
		i, c := slices.Index(members, m), make(chan struct{})
		frozen[i].Store(&c)
		thaw = func() {
			if frozen[i].Swap(nil) != nil {
				close(c)
			}
		}
		t.Cleanup(thaw)
		return thaw
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	leader, others := leaderOf(t, members)
	leader.put(t, "/a", "1", -1)
	thaw := freeze(leader)
	outcome := make(chan error, 1)
	go func() {
		_, err := leader.Propose(t.Context(), onePut("/b", "lost or not"))
		outcome <- err
	}()
	begin := time.Now()
	next, _ := leaderOf(t, others)
	t.Logf("another leads %v after the disk hung, which is noticed after %v", time.Since(begin), leader.hangAfter())
	next.put(t, "/a", "2", -1)
	if err := <-outcome; !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("the write that hung: %v", err)
	}
	if _, err := leader.Propose(t.Context(), onePut("/a", "x")); !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("a write on the old leader: %v", err)
	}
	if err := leader.ReadIndex(t.Context()); !errors.Is(err, ErrNoLeader) {
		t.Errorf("a read on the old leader: %v", err)
	}
	if p := leader.Stats().Problem; !strings.Contains(p, "disk") {
		t.Errorf("its problem is %q", p)
	}
	thaw()
	eventually(t, "it follows again", func() bool { return leader.ReadIndex(t.Context()) == nil && leader.get("/a") == "2" })

	leader, others = leaderOf(t, members)
	patient(t, others[:1]) // who stands for election waits for its disk, and knows no leader
	thaw = freeze(others[0])
	for i := range 20 {
		begin := time.Now()
		leader.put(t, "/c", fmt.Sprint(i), -1)
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("write %d took %v beside a follower whose disk hangs", i, d)
		}
	}
	time.Sleep(leader.hangAfter() + 5*hasty)
	if !leader.IsLeader() {
		t.Error("a follower's disk has cost the leader its place")
	}
	if _, err := others[0].Propose(t.Context(), onePut("/d", "x")); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, ErrBehind) {
		t.Errorf("a write through a follower whose disk hangs: %v", err)
	}
	thaw()
	eventually(t, "it catches up", func() bool { return others[0].get("/c") == "19" })
}
