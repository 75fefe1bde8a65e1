package consensus

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// grow starts a cluster of one and lets others join it until they are voters.
func grow(t testing.TB, heartbeat time.Duration, others ...Config) []*member {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	all := []*member{start(t, Config{
		NodeID: "a", DataDir: t.TempDir(), Listener: l, HeartbeatTimeout: heartbeat,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	})}
	all[0].awaitReady(t)
	for i, c := range others {
		c.NodeID, c.DataDir, c.HeartbeatTimeout = string(rune('b'+i)), t.TempDir(), heartbeat
		c.Join = []string{"127.0.0.1:1", all[len(all)-1].c.AdvertiseAddr}
		all = append(all, start(t, c))
		all[i+1].awaitReady(t)
	}
	eventually(t, "all are voters", func() bool { return voters(all[0]) == len(all) })
	return all
}

func voters(m *member) (n int) {
	for _, s := range m.Members() {
		if s.Voter {
			n++
		}
	}
	return n
}

// crash stops a member without letting it hand anything over.
func (m *member) crash(t testing.TB) {
	t.Helper()
	m.abrupt = true
	m.stop(t)
}

func TestJoin(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	// The third joins through the second, a follower.
	members := grow(t, hasty, Config{Version: "v9"}, Config{})
	t.Logf("three voters after %v, with timeouts of a fifth of the usual", time.Since(begin))
	members[0].put(t, "/a", "1", 0)
	if err := members[2].ReadIndex(t.Context()); err != nil || members[2].get("/a") != "1" {
		t.Errorf("the third reads %q, %v", members[2].get("/a"), err)
	}
	eventually(t, "all are known and well", func() bool {
		stats, err := members[2].MemberStats(t.Context())
		ok := err == nil && len(stats) == 3
		for i, s := range stats {
			ok = ok && s.Healthy && s.Voter && s.Leader == members[i].IsLeader() && s.Address == members[i].c.AdvertiseAddr &&
				s.FsyncP99 > 0 && s.LastIndex > 0 && s.Term > 0 && (s.Version == "v9") == (i == 1)
		}
		return ok
	})
	// A member with the data of before starts at another address.
	c := members[1].config
	members[1].stop(t)
	c.Listener, c.FSM, c.AdvertiseAddr, c.Join = nil, nil, "", nil
	moved := start(t, c)
	moved.awaitReady(t)
	eventually(t, "its address is corrected", func() bool {
		m, ok := members[0].member("b")
		return ok && m.Address == moved.c.AdvertiseAddr && m.Voter
	})
	// And the leader itself.
	c = members[0].config
	members[0].stop(t)
	c.Listener, c.FSM, c.AdvertiseAddr, c.Bootstrap = nil, nil, "", nil
	first := start(t, c)
	first.awaitReady(t)
	eventually(t, "its address is corrected", func() bool {
		m, ok := moved.member("a")
		return ok && m.Address == first.c.AdvertiseAddr && m.Voter
	})
}

// TestJoinOverTheSameAddress: a server that lost its data comes back with a new
// ID, which replaces the old. With the ID it had nobody talks to it.
func TestJoinOverTheSameAddress(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{})
	members[0].put(t, "/a", "1", 0)
	addr := members[2].c.AdvertiseAddr
	members[2].crash(t)
	again := start(t, Config{NodeID: "x", DataDir: t.TempDir(), Listener: listen(t, addr), HeartbeatTimeout: hasty,
		Join: []string{members[0].c.AdvertiseAddr}})
	again.awaitReady(t)
	eventually(t, "it has replaced the one at its address", func() bool {
		_, old := members[0].member("c")
		m, ok := members[0].member("x")
		return !old && ok && m.Voter
	})
	again.crash(t)
	eventually(t, "somebody leads", func() bool { return members[0].IsLeader() || members[1].IsLeader() })
	empty := start(t, Config{NodeID: "x", DataDir: t.TempDir(), Listener: listen(t, addr), HeartbeatTimeout: hasty,
		Join: []string{members[0].c.AdvertiseAddr}})
	eventually(t, "it is told why it can't be let in", func() bool {
		if empty.raft.Load() == nil {
			return false
		}
		err := empty.askToJoin(t.Context(), empty.raft.Load(), true)
		return errors.Is(err, ErrRefused) && strings.Contains(err.Error(), "has lost its data")
	})
	if got := len(empty.Members()); got != 0 {
		t.Errorf("it was told of %d members", got)
	}
}

// TestAmnesia: a voter that lost its data does not help to elect one that lacks
// what it had acknowledged.
func TestAmnesia(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{})
	a, b, c := members[0], members[1], members[2]
	c.crash(t)
	eventually(t, "a leader without it", func() bool { return a.IsLeader() || b.IsLeader() })
	a.put(t, "/a", "acknowledged by a and b", -1)
	a.crash(t)
	b.crash(t)
	c = c.restart(t)
	empty := b.config
	empty.DataDir, empty.Listener, empty.FSM, empty.Join = t.TempDir(), listen(t, empty.AdvertiseAddr), nil, []string{c.c.AdvertiseAddr, a.c.AdvertiseAddr}
	b = start(t, empty)
	for range 2 {
		time.Sleep(5 * hasty)
		if c.IsLeader() || b.IsLeader() {
			t.Fatal("they have a leader")
		}
		b = b.restart(t)
	}
	a = a.restart(t)
	for _, m := range []*member{a, c} {
		m.awaitReady(t)
		if err := m.ReadIndex(t.Context()); err != nil || m.get("/a") != "acknowledged by a and b" {
			t.Errorf("%s has %q: %v", m.c.NodeID, m.get("/a"), err)
		}
	}
}

func TestAdmission(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	var allow atomic.Bool
	first := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: l, HeartbeatTimeout: hasty,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
		Admit: func(id, addr string) error {
			if !allow.Load() {
				return errors.New("not this one")
			}
			return nil
		}})
	first.awaitReady(t)
	b := start(t, Config{NodeID: "b", DataDir: t.TempDir(), HeartbeatTimeout: hasty, Join: []string{first.c.AdvertiseAddr}})
	eventually(t, "Raft runs", func() bool { return b.raft.Load() != nil })
	err := b.askToJoin(t.Context(), b.raft.Load(), true)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not this one") {
		t.Errorf("refused with %v", err)
	}
	if len(first.Members()) != 1 {
		t.Error("it was let in")
	}
	allow.Store(true)
	b.awaitReady(t)
	if err := first.admit(t.Context(), joinRequest{ID: "old", Addr: "127.0.0.1:1", CommandVersion: 0}); !errors.Is(err, ErrVersion) {
		t.Errorf("a server of an old version: %v", err)
	}
	if err := first.admit(t.Context(), joinRequest{ID: "a", Addr: "127.0.0.1:1", CommandVersion: 1}); !errors.Is(err, ErrRefused) {
		t.Errorf("a server with the leader's ID: %v", err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{})
	if err := members[1].Remove(t.Context(), "nobody"); !errors.Is(err, ErrNotMember) {
		t.Errorf("remove who is none: %v", err)
	}
	// The leader, asked through another, hands over first.
	eventually(t, "the leader is removed", func() bool {
		err := members[1].Remove(t.Context(), "a") // unless it could not hand over in time
		return err == nil || errors.Is(err, ErrNotMember)
	})
	leader, _ := leaderOf(t, members[1:])
	leader.put(t, "/a", "1", -1)
	eventually(t, "two members", func() bool { return len(leader.Members()) == 2 })
	// It does not come back by itself.
	time.Sleep(5 * hasty)
	if len(leader.Members()) != 2 {
		t.Error("the removed server is a member again")
	}
	other := members[1]
	if leader == other {
		other = members[2]
	}
	members[0].stop(t)
	other.crash(t)
	eventually(t, "no leader", func() bool { return !leader.IsLeader() })
	ctx, cancel := context.WithTimeout(t.Context(), 5*hasty)
	defer cancel()
	if err := leader.Remove(ctx, other.c.NodeID); !errors.Is(err, ErrNoLeader) {
		t.Errorf("remove without a quorum: %v", err)
	}
}

// TestQuorumRisk: with one of three dead, neither of the others can go.
func TestQuorumRisk(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, hasty)
	leader, others := leaderOf(t, members)
	others[0].crash(t)
	eventually(t, "it is known to be dead", func() bool { return !leader.lives(others[0].c.NodeID) })
	for _, m := range []*member{others[1], leader} {
		if err := others[1].Remove(t.Context(), m.c.NodeID); !errors.Is(err, ErrQuorumRisk) {
			t.Errorf("remove %s: %v", m.c.NodeID, err)
		}
	}
	if err := others[1].Remove(t.Context(), others[0].c.NodeID); err != nil {
		t.Errorf("remove the dead one: %v", err)
	}
	eventually(t, "two voters", func() bool { return voters(leader) == 2 })
}

// TestReplacement: when a fourth has come for a dead one of three, that is
// removed; a dead one of three stays.
func TestReplacement(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, hasty)
	leader, others := leaderOf(t, members)
	dead := others[0]
	dead.crash(t)
	time.Sleep(15 * hasty)
	if len(leader.Members()) != 3 {
		t.Fatal("one of three was removed although nobody has replaced it")
	}
	c := start(t, Config{NodeID: "n", DataDir: t.TempDir(), HeartbeatTimeout: hasty, Join: []string{others[1].c.AdvertiseAddr}})
	c.awaitReady(t)
	eventually(t, "the dead one is replaced", func() bool {
		_, there := leader.member(dead.c.NodeID)
		return !there && voters(leader) == 3
	})
}

// TestCopiedData: a second server on a copy of the data is refused while the
// first lives.
func TestCopiedData(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{})
	q := joinRequest{ID: "b", Addr: "127.0.0.1:1", CommandVersion: 1, Instance: "other"}
	if err := members[0].admit(t.Context(), q); !errors.Is(err, ErrRefused) {
		t.Errorf("a second server: %v", err)
	}
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	// On a busy machine it can take longer than Raft waits.
	eventually(t, "the chosen one leads", func() bool {
		return others[0].TransferLeadership(t.Context(), others[0].c.NodeID) == nil && others[0].IsLeader()
	})
	eventually(t, "leadership is handed over", func() bool { return leader.TransferLeadership(t.Context(), "") == nil })
	eventually(t, "another leads", func() bool { return !others[0].IsLeader() && (leader.IsLeader() || others[1].IsLeader()) })
	// Who stops hands over: others lead without a timeout.
	leader, others = leaderOf(t, members)
	leader.put(t, "/a", "1", -1)
	patient(t, others)
	begin := time.Now()
	leader.stop(t)
	leaderOf(t, others)
	t.Logf("stopped, and a new leader after %v", time.Since(begin))
}

// TestWitness: a witness gives leadership away, and takes it when it must.
func TestWitness(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{Witness: true})
	eventually(t, "the witness is made the leader", func() bool {
		return members[0].TransferLeadership(t.Context(), "c") == nil
	})
	eventually(t, "the witness gives it away", func() bool { return members[0].IsLeader() || members[1].IsLeader() })
	// Nor does anybody prefer it who stops.
	eventually(t, "the leader knows the witness and both of its heirs", func() bool {
		leader, _ := leaderOf(t, members)
		heirs := leader.heirs(true)
		return len(leader.lastStats()) == 3 && len(heirs) == 2 && heirs[1].ID == "c" && len(leader.heirs(false)) == 1
	})
}

func TestCalls(t *testing.T) {
	t.Parallel()
	handlers := func(id string) map[string]Handler {
		return map[string]Handler{
			"echo": func(_ context.Context, from string, body []byte) ([]byte, error) {
				return []byte(id + "<" + from + ":" + string(body)), nil
			},
			"fail":   func(context.Context, string, []byte) ([]byte, error) { return nil, errors.New("broken") },
			"unsure": func(context.Context, string, []byte) ([]byte, error) { return nil, ErrUnknownOutcome },
		}
	}
	var configs []Config
	for _, id := range []string{"b", "c"} {
		configs = append(configs, Config{Handlers: handlers(id)})
	}
	members := grow(t, steady, configs...)
	b := members[1]
	eventually(t, "the third leads", func() bool {
		return b.TransferLeadership(t.Context(), "c") == nil && members[2].IsLeader()
	})
	for _, m := range members {
		out, err := m.CallLeader(t.Context(), "echo", []byte("x"))
		if want := "c<" + m.c.NodeID + ":x"; err != nil || string(out) != want {
			t.Errorf("CallLeader of %s: %q, %v", m.c.NodeID, out, err)
		}
		out, err = m.Call(t.Context(), "b", "echo", []byte("y"))
		if want := "b<" + m.c.NodeID + ":y"; err != nil || string(out) != want {
			t.Errorf("Call of %s: %q, %v", m.c.NodeID, out, err)
		}
	}
	if _, err := b.CallLeader(t.Context(), "fail", nil); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("fail: %v", err)
	}
	if _, err := b.CallLeader(t.Context(), "unsure", nil); !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("unsure: %v", err)
	}
	if _, err := b.Call(t.Context(), "a", "echo", nil); err == nil || !strings.Contains(err.Error(), "echo") {
		t.Errorf("a method that the member has not: %v", err)
	}
	if _, err := b.Call(t.Context(), "nobody", "echo", nil); !errors.Is(err, ErrNotMember) {
		t.Errorf("a member that there is not: %v", err)
	}
	members[0].crash(t)
	if _, err := b.Call(t.Context(), "a", "echo", nil); !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("a member that is gone: %v", err)
	}
	for _, broken := range [][]byte{nil, {0}, {0, 200}, {0, 1, 'a'}, {0, 1, 'a', 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}} {
		if _, err := b.answerCall(t.Context(), broken); err == nil {
			t.Errorf("call %v is accepted", broken)
		}
	}
}

// TestVersionGate: a command that a member could not apply is refused.
func TestVersionGate(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{})
	for _, m := range members {
		m.versionOf = func([]byte) int { return 2 }
	}
	if _, err := members[1].Propose(t.Context(), onePut("/a", "1")); !errors.Is(err, ErrVersion) {
		t.Errorf("a command of a newer version: %v", err)
	}
}

func TestPromote(t *testing.T) {
	t.Parallel()
	const slow = 20 * steady // by itself it would be a voter after 100 s
	members := grow(t, slow)
	b := start(t, Config{NodeID: "b", DataDir: t.TempDir(), HeartbeatTimeout: slow, Join: []string{members[0].c.AdvertiseAddr}})
	b.awaitReady(t)
	if m, ok := b.member("b"); !ok || m.Voter {
		t.Errorf("it joined as %+v", m)
	}
	if err := b.Promote(t.Context(), "nobody"); !errors.Is(err, ErrNotMember) {
		t.Errorf("promote nobody: %v", err)
	}
	eventually(t, "it is promoted", func() bool {
		err := b.Promote(t.Context(), "b")
		if err != nil && !errors.Is(err, ErrNotReady) { // the leader may not have heard of it yet
			t.Fatal(err)
		}
		return err == nil
	})
	if m, _ := members[0].member("b"); !m.Voter {
		t.Error("it is no voter")
	}
}
