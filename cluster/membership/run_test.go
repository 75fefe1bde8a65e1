package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

// logLines is a log that tests read while it is written.
type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func (r *fakeRaft) looks() int { r.mu.Lock(); defer r.mu.Unlock(); return r.looked }

func (b *bench) logTo() *logLines {
	l := &logLines{}
	b.c.Logger = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// A server whose state names another as the holder of its name, as after a
// restore on a new data directory, takes the name over once that one is certain
// to be no member.
func TestAServerTakesTheNameOfAFormerOne(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, tc := range []struct {
		what    string
		old     Record
		set     func(*bench)
		refused string // "": taken over
	}{
		{what: "a server that is no member", old: Record{ID: "id-z", Role: RoleServer, Address: "10.9.9.9"}, set: func(*bench) {}},
		{what: "an agent that is dead", old: Record{ID: "id-z", Role: RoleAgent, Address: "10.9.9.9"}, set: func(b *bench) {
			b.setPeers(peer("a", "id-z", "10.9.9.9", RoleAgent, Dead))
		}},
		{what: "a voter", old: Record{ID: "id-b", Role: RoleServer, Address: "10.9.9.9"}, set: func(b *bench) { b.servers("aBc") }, refused: "the name a is taken by another member, at 10.9.9.9"},
		{what: "a server that lives", old: Record{ID: "id-z", Role: RoleServer, Address: "10.9.9.9"}, set: func(b *bench) {
			b.setPeers(peer("a", "id-z", "10.9.9.9", RoleServer, Alive))
		}, refused: "the name a is taken by another member"},
		{what: "an agent that lives, under another name", old: Record{ID: "id-z", Role: RoleAgent, Address: "10.9.9.9"}, set: func(b *bench) {
			b.setPeers(peer("a", "id-a", "10.0.0.1", RoleServer, Alive), peer("z", "id-z", "10.9.9.9", RoleAgent, Alive))
		}, refused: "the name a is taken by another member"},
		{what: "this server has another name", old: Record{ID: "id-z", Role: RoleServer}, set: func(b *bench) {
			op, _ := putRecord("first", Record{ID: "id-a", Role: RoleServer}, 0)
			if err := b.propose(ctx, "test", op); err != nil {
				t.Error(err)
			}
		}, refused: "start it with --name first"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.stop()
			op, _ := putRecord("a", tc.old, 0)
			if err := b.propose(ctx, "test", op); err != nil {
				t.Fatal(err)
			}
			tc.set(b)
			if err := b.registerOnce(ctx); tc.refused == "" && !errors.Is(err, errTryAgain) {
				t.Errorf("before gossip had time: %v", err)
			}
			b.mu.Lock()
			b.offset = 2 * settleTime
			b.mu.Unlock()
			err := b.registerOnce(ctx)
			rec, _, _ := b.record("a")
			if tc.refused != "" {
				refusedWith(t, err, tc.refused)
				if rec.ID != tc.old.ID || b.removal(tc.old.ID) != nil {
					t.Errorf("it was taken over all the same: %+v", rec)
				}
				return
			}
			if err != nil || rec.ID != "id-a" || rec.Role != RoleServer || rec.Address != "10.0.0.1" {
				t.Errorf("%v, %+v", err, rec)
			}
			if !b.Removed(tc.old.ID) || b.Admit(tc.old.ID, "") == nil {
				t.Error("the former one is let in still")
			}
			revision := b.store.Revision()
			if err := b.registerOnce(ctx); err != nil || b.store.Revision() != revision {
				t.Errorf("written again: %v", err)
			}
		})
	}
}

// A server has one record: it is moved when its name is another, and what an
// earlier version left is removed.
func TestTheRecordOfAServerIsMoved(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	joined := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, second := range []bool{false, true} { // it has one under the new name, too
		b := newBench(t)
		put := func(name string, r Record) {
			t.Helper()
			op, err := putRecord(name, r, 0)
			if err == nil {
				err = b.propose(ctx, "test", op)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		put("first", Record{ID: "id-a", Role: RoleServer, Joined: joined, Address: "10.0.0.7"})
		put("w", Record{ID: "id-w", Role: RoleAgent})
		if second {
			put("a", Record{ID: "id-a", Role: RoleServer, Joined: joined.Add(time.Hour)})
		}
		if err := b.registerOnce(ctx); err != nil {
			t.Fatal(err)
		}
		all := b.records()
		if _, other := all["w"]; len(all) != 2 || !other || all["a"] != (Record{ID: "id-a", Role: RoleServer, Joined: joined, Address: "10.0.0.1", APIPort: 6443, RaftPort: 6444, GossipPort: 6445}) {
			t.Errorf("records %+v", all)
		}
		if b.removal("id-a") != nil {
			t.Error("it was removed")
		}
		revision := b.store.Revision()
		if err := b.registerOnce(ctx); err != nil || b.store.Revision() != revision {
			t.Errorf("written again: %v", err)
		}
		b.mustJoin(t, agentRequest(t, "first", "id-x")) // the former name is free
	}
}

// Whatever keeps the record from being written is said once.
func TestARefusedRecordIsSaidOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lines := b.logTo()
	b.setPeers(peer("z", "id-z", "10.9.9.9", RoleAgent, Alive))
	op, _ := putRecord("a", Record{ID: "id-z", Role: RoleAgent, Address: "10.9.9.9"}, 0)
	if err := b.propose(context.Background(), "test", op); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan struct{})
	go func() { b.register(ctx); close(ended) }()
	eventually(t, "a second attempt", func() bool { return b.log.asked() > 1 })
	cancel() // the attempt goes on to its end
	<-ended
	if n := lines.count("this server's record is not written"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestTwoVotersAreWarnedOfOnceForEachChange(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lines := b.logTo()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { b.watchVoters(ctx); close(ended) }()
	const warning = "two servers vote, and losing either server stops writes: add a third or a --witness"
	for i, step := range []struct {
		servers string
		said    int
	}{{"a?b", 0}, {"ab", 1}, {"aB", 1}, {"abc", 1}, {"ab?c", 2}} {
		b.servers(step.servers)
		before := b.raft.looks()
		// What the next look finds is said before the one after it.
		eventually(t, "two looks", func() bool { return b.raft.looks() > before+1 })
		if n := lines.count(warning); n != step.said {
			t.Errorf("step %d, %s: said %d times, want %d", i, step.servers, n, step.said)
		}
		if testing.Short() && i == 2 {
			break
		}
	}
	cancel()
	<-ended
}

// Who makes two of one is told so with the answer.
func TestAJoiningServerIsWarnedOfTwoVoters(t *testing.T) {
	t.Parallel()
	for servers, want := range map[string]bool{"a": true, "ab": false, "a?b": false} {
		b := newBench(t)
		b.servers(servers)
		a := b.mustJoin(t, serverRequest("s", "id-s"))
		if got := slices.Contains(a.Warnings, "with this server two vote, and losing either server stops writes: add a third or a --witness"); got != want {
			t.Errorf("%s: warnings %q", servers, a.Warnings)
		}
		if a := b.mustJoin(t, agentRequest(t, "w", "id-w")); len(a.Warnings) > 0 {
			t.Errorf("%s: an agent is warned: %q", servers, a.Warnings)
		}
	}
}

// A server does not remove itself: it hands leadership over and asks the leader.
func TestAServerThatLeavesIsRemovedByAnother(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, other := newBench(t), newBench(t)
	for _, b := range []*bench{a, other} {
		b.servers("abcd")
	}
	other.Service.c.Self = func() Server { return peer("b", "id-b", "10.0.0.2", RoleServer, Alive).Server }
	a.raft.methods = other.Methods()
	r, err := a.Remove(ctx, "a", "skiff leave on a", false)
	if err != nil || r.Name != "a" || r.ID != "id-a" {
		t.Fatalf("%v, %+v", err, r)
	}
	if a.raft.leader != "id-b" || len(a.raft.members) != 4 || a.removal("id-a") != nil {
		t.Error("it has done more than to hand leadership over")
	}
	if !other.Removed("id-a") || len(other.raft.members) != 3 || other.removal("id-a").By != "skiff leave on a" {
		t.Errorf("the other has not removed it: %+v", other.removal("id-a"))
	}
	done := make(chan error, 1)
	run, cancel := context.WithCancel(ctx)
	a.Service.c.Servers = func() []Server { return nil }
	go func() { done <- a.Run(run) }()
	select {
	case <-a.Membership().Done():
	case <-time.After(20 * time.Second):
		t.Error("it does not notice")
	}
	if why := context.Cause(a.Membership()); why == nil || !strings.Contains(why.Error(), "this server was removed from the cluster by skiff leave on a") ||
		!strings.Contains(why.Error(), "run skiff reset --delete-data and join again") {
		t.Errorf("the reason is %v", why)
	}
	if w := a.Status(ctx).Warnings; len(w) != 1 || !strings.Contains(w[0], "was removed") {
		t.Errorf("warnings %q", w)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAServerThatMayNotLeave(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, tc := range []struct {
		servers, refused string
		force            bool
	}{
		{"a", "a is the only server", true},
		{"abc", "without a the loss of one more server stops all writes", false},
		{"aB", "without a only 0 of 1 servers would be up", true},
	} {
		b := newBench(t)
		b.servers(tc.servers)
		_, err := b.Remove(ctx, "a", "x", tc.force)
		refusedWith(t, err, tc.refused)
		if b.raft.leader != "id-a" {
			t.Errorf("%s: leadership was handed over", tc.servers)
		}
	}
	// What the leader refuses is passed on, and what it cannot do is an error.
	b := newBench(t)
	b.servers("abcd")
	b.raft.methods = map[string]func(context.Context, string, []byte) ([]byte, error){MethodRemove: func(context.Context, string, []byte) ([]byte, error) {
		return []byte(fmt.Sprintf(`{"refusal":{"Status":%d,"Message":"not now"}}`, http.StatusConflict)), nil
	}}
	_, err := b.Remove(ctx, "a", "x", false)
	refusedWith(t, err, "not now")
	b = newBench(t)
	b.servers("abcd")
	if _, err := b.answerRemove(ctx, "", []byte(`{"name":"a"}`)); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("it removes itself: %v", err)
	}
}
