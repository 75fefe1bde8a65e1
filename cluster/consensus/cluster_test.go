package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

const (
	hasty  = 500 * time.Millisecond
	steady = time.Second
)

// cluster starts n new members. Where leaders get lost on purpose the heartbeat
// timeout is short, elsewhere it is one that a busy machine does not exceed.
func cluster(t testing.TB, n int, heartbeat time.Duration) []*member {
	t.Helper()
	var configs []Config
	var servers []Server
	for i := range n {
		l := listen(t, "127.0.0.1:0")
		id := string(rune('a' + i))
		servers = append(servers, Server{ID: id, Addr: l.Addr().String()})
		configs = append(configs, Config{NodeID: id, DataDir: t.TempDir(), Listener: l, HeartbeatTimeout: heartbeat})
	}
	var members []*member
	for _, c := range configs {
		c.Bootstrap = servers
		members = append(members, start(t, c))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	return members
}

// leaderOf waits for the one of the members that leads.
func leaderOf(t testing.TB, members []*member) (leader *member, others []*member) {
	t.Helper()
	eventually(t, "a leader", func() bool {
		leader, others = nil, nil
		for _, m := range members {
			if m.IsLeader() {
				leader = m
			} else {
				others = append(others, m)
			}
		}
		return leader != nil
	})
	return leader, others
}

func TestFollowersForward(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, followers := leaderOf(t, members)
	f := followers[0]

	r := f.put(t, "/a", "1", 0)
	if r.Err != nil || r.Current == nil || r.Current.ModRevision != r.Revision || string(r.Current.Value) != "1" {
		t.Errorf("forwarded put: %+v", r)
	}
	if got := f.get("/a"); got != "1" {
		t.Errorf("the follower that wrote reads %q", got)
	}
	if r := f.put(t, "/a", "2", 0); !errors.Is(r.Err, store.ErrExists) || string(r.Current.Value) != "1" {
		t.Errorf("forwarded create of what exists: %+v", r)
	}
	if r := f.put(t, "/b", "2", 99); !errors.Is(r.Err, store.ErrNotFound) || r.Current != nil {
		t.Errorf("forwarded update of what is not there: %+v", r)
	}
	r, err := f.Propose(t.Context(), fsm.Batch(
		fsm.Op{Type: fsm.Put, Key: "/c", Expect: 0},
		fsm.Op{Type: fsm.Delete, Key: "/a", Expect: 12345}))
	if err != nil || !errors.Is(r.Err, store.ErrConflict) || r.Op != 1 || f.get("/c") != "<none>" {
		t.Errorf("forwarded batch: %+v, %v", r, err)
	}
	if id, addr := f.Leader(); id != leader.c.NodeID || addr != leader.c.AdvertiseAddr {
		t.Errorf("the follower knows leader %s at %s", id, addr)
	}
	if err := f.Barrier(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("barrier on a follower: %v", err)
	}
	// Whatever one member acknowledges, a read index makes visible on all.
	for i := range 20 {
		w, r := members[i%3], members[(i+1)%3]
		w.put(t, "/n", fmt.Sprint(i), -1)
		if err := r.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.get("/n"); got != fmt.Sprint(i) {
			t.Errorf("after a read index %s reads %q, want %d", r.c.NodeID, got, i)
		}
	}
	if id := f.config.FSM.ClusterID(); id == "" || id != leader.config.FSM.ClusterID() {
		t.Errorf("cluster ids %q and %q", id, leader.config.FSM.ClusterID())
	}
}

// TestLeaderLoss stops leaders under load: no acknowledged write may be lost,
// and no read may miss one.
func TestLeaderLoss(t *testing.T) {
	members := cluster(t, 3, steady) // leaders hand over when they are stopped: no need to be hasty
	var mu sync.Mutex                // guards members
	pick := func(i int) *member {
		mu.Lock()
		defer mu.Unlock()
		return members[i%3]
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	const writers = 6
	var acked [writers]atomic.Int64
	for w := range writers {
		wg.Go(func() {
			key := fmt.Sprintf("/w%d", w)
			for i := int64(1); ctx.Err() == nil; i++ {
				op := fsm.Op{Type: fsm.Put, Key: key, Value: []byte(fmt.Sprint(i)), Expect: fsm.Any}
				rctx, done := context.WithTimeout(ctx, 2*time.Second)
				_, err := pick(w).Propose(rctx, fsm.One(op))
				if err == nil {
					acked[w].Store(i)
				}
				if m := pick(w + 1); err == nil && m.ReadIndex(rctx) == nil {
					var got int64
					fmt.Sscan(m.get(key), &got)
					if got < i {
						t.Errorf("%s: %s reads %d after %d was acknowledged", key, m.config.NodeID, got, i)
					}
				}
				done()
			}
		})
	}
	for range 3 {
		mark := acked[0].Load()
		eventually(t, "progress", func() bool { return acked[0].Load() > mark+20 })
		mu.Lock()
		all := append([]*member(nil), members...)
		mu.Unlock()
		leader, followers := leaderOf(t, all)
		lost := time.Now()
		leader.stop(t)
		leaderOf(t, followers)
		t.Logf("a new leader after %v", time.Since(lost))
		again := leader.restart(t)
		again.awaitReady(t)
		mu.Lock()
		for i, m := range members {
			if m == leader {
				members[i] = again
			}
		}
		mu.Unlock()
	}
	cancel()
	wg.Wait()
	for _, m := range members {
		if err := m.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		for w := range writers {
			var got int64
			fmt.Sscan(m.get(fmt.Sprintf("/w%d", w)), &got)
			if got < acked[w].Load() {
				t.Errorf("%s holds %d of writer %d, %d was acknowledged", m.config.NodeID, got, w, acked[w].Load())
			}
		}
	}
}

func TestWithoutQuorum(t *testing.T) {
	members := cluster(t, 3, steady)
	members[0].put(t, "/a", "1", 0)
	for _, m := range members {
		if err := m.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	leader, followers := leaderOf(t, members)
	changes := leader.LeadershipChanges()
	if !<-changes {
		t.Error("a leader's changes begin with false")
	}
	followers[0].stop(t)
	followers[1].stop(t)
	select {
	case led := <-changes:
		if led {
			t.Error("leads again")
		}
	case <-time.After(patience):
		t.Fatal("the leader does not notice that it is alone")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := leader.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: "/b"})); !errors.Is(err, ErrNoLeader) {
		t.Errorf("propose without a quorum: %v", err)
	}
	if err := leader.ReadIndex(ctx); !errors.Is(err, ErrNoLeader) {
		t.Errorf("read index without a quorum: %v", err)
	}
	if got := leader.get("/a"); got != "1" {
		t.Errorf("local read: %q", got)
	}
	f := followers[0].restart(t)
	f.awaitReady(t)
	f.put(t, "/b", "2", 0)
}

func TestRunEndsEverything(t *testing.T) {
	before := goleak.IgnoreCurrent()
	func() {
		members := cluster(t, 3, steady)
		for _, m := range members {
			m.put(t, "/"+m.c.NodeID, "x", -1)
		}
		for _, m := range members {
			m.stop(t)
		}
		m := members[0]
		if _, err := m.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/a"})); !errors.Is(err, ErrStopped) {
			t.Errorf("propose after the end: %v", err)
		}
		if err := m.Run(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("second Run: %v", err)
		}
	}()
	eventually(t, "what it began has ended", func() bool { return goleak.Find(before) == nil })
}

// TestFarBehind brings back a member that needs entries which the others have
// dropped: it gets a snapshot, and starts again on the gap that leaves in its log.
func TestFarBehind(t *testing.T) {
	members := cluster(t, 3, steady)
	members[0].put(t, "/first", "1", 0)
	_, followers := leaderOf(t, members)
	late := followers[0]
	late.stop(t)
	rest := []*member{}
	for _, m := range members {
		if m != late {
			m.compact.mu.Lock()
			m.c.SnapshotEntries, m.c.SnapshotBytes = 100, 1<<20
			m.compact.mu.Unlock()
			rest = append(rest, m)
		}
	}
	value := strings.Repeat("v", 100<<10)
	leader, _ := leaderOf(t, rest)
	for i := range 400 {
		leader.put(t, fmt.Sprintf("/k%d", i%10), value, -1)
	}
	eventually(t, "the log of the leader is shortened", func() bool {
		first, _ := leader.log.FirstIndex()
		if first > 50 {
			return true
		}
		leader.put(t, "/more", value, -1)
		return false
	})
	late = late.restart(t)
	late.awaitReady(t)
	if err := late.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := rest[0].ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := late.Stats(), rest[0].Stats(); got.Revision != want.Revision || got.ClusterID != want.ClusterID {
		t.Errorf("the late member is at %+v, the others at %+v", got, want)
	}
	if len(late.snaps.Files()) == 0 {
		t.Error("it caught up without a snapshot: the test tests nothing")
	}
	late.put(t, "/last", "x", 0)
	late = late.restart(t)
	late.awaitReady(t)
	if late.get("/last") != "x" || late.get("/first") != "1" {
		t.Errorf("after another restart: %q, %q", late.get("/last"), late.get("/first"))
	}
}
