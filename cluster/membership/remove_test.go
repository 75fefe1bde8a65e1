package membership

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

// servers makes the bench one of a (this one), b, c...: "a" is up, "B" is a
// voter that is down, "?" before the letter one that does not vote.
func (b *bench) servers(spec string) {
	b.raft.mu.Lock()
	defer b.raft.mu.Unlock()
	b.raft.members = nil
	var peers []Peer
	votes := true
	for i, r := range spec {
		if r == '?' {
			votes = false
			continue
		}
		name := strings.ToLower(string(r))
		up := name == string(r)
		m := RaftMember{ID: "id-" + name, Address: "10.0.0.1:6444", Voter: votes, Healthy: up, LastIndex: 5, FsyncP99: time.Millisecond}
		p := peer(name, m.ID, "10.0.0."+string(rune('1'+i)), RoleServer, Alive)
		if !up {
			p.State, m.LastIndex, m.Problem, m.LastContact = Dead, 0, "no answer", time.Minute
		}
		peers, votes = append(peers, p), true
		b.raft.members = append(b.raft.members, m)
	}
	b.setPeers(peers...)
}

func TestRemovingServers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		servers, remove string
		force           bool
		refused, note   string
	}{
		{servers: "abcd", remove: "d"},
		{servers: "abcde", remove: "c"},
		{servers: "abC", remove: "c"},
		{servers: "ab", remove: "b"},
		{servers: "ab?c", remove: "c"},
		{servers: "abc", remove: "b", refused: "without b the loss of one more server stops all writes: add another server first, or say --force"},
		{servers: "abc", remove: "b", force: true, note: "without b the loss of one more server stops all writes"},
		{servers: "a", remove: "a", refused: "a is the only server"},
		{servers: "a", remove: "a", force: true, refused: "a is the only server"},
		{servers: "abC", remove: "b", refused: "without b only 1 of 2 servers would be up (c down)"},
		{servers: "abC", remove: "b", force: true, refused: "not even the removal"},
		{servers: "abc", remove: "x", refused: `there is no member "x"; see skiff member list`},
	} {
		name := tc.servers + "-" + tc.remove
		if tc.force {
			name += " by force"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.servers(tc.servers)
			before := len(b.raft.members)
			r, err := b.Remove(context.Background(), tc.remove, "skiff:admin", tc.force)
			id := "id-" + tc.remove
			if tc.refused != "" {
				refusedWith(t, err, tc.refused)
				if len(b.raft.members) != before || b.removal(id) != nil {
					t.Error("something was removed all the same")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !b.Removed(id) || b.Admit(id, "") == nil || len(b.raft.members) != before-1 {
				t.Error("it is a member still")
			}
			if slices.ContainsFunc(b.cluster().Servers, func(o Server) bool { return o.ID == id }) {
				t.Error("others are sent to it")
			}
			if b.Removed("id-a") || b.Admit("id-a", "") != nil {
				t.Error("another is refused too")
			}
			if tc.note != "" && !slices.Contains(r.Notes, tc.note) {
				t.Errorf("notes %q", r.Notes)
			}
			if !slices.Contains(b.forgotten, tc.remove) {
				t.Error("gossip has not forgotten it")
			}
		})
	}
}

// A leader to which leadership was just handed over has not heard of the others
// yet, though they answer.
func TestRemovalByNewLeader(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("abc")
	b.raft.unheard = 3
	if _, err := b.Remove(context.Background(), "b", "skiff:admin", true); err != nil {
		t.Error(err)
	}
	b.servers("abc")
	b.raft.unheard = 1000
	_, err := b.Remove(context.Background(), "c", "skiff:admin", true)
	refusedWith(t, err, "without c only 1 of 2 servers would be up (b down)")
}

// A removal that the log refuses leaves no trace; one whose outcome is unknown
// is finished by the leader.
func TestRemovalsThatFail(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("abcde")
	b.raft.refuse = errQuorumRisk
	_, err := b.Remove(context.Background(), "e", "skiff:admin", false)
	refusedWith(t, err, "server e stays")
	if b.removal("id-e") != nil {
		t.Error("it is marked")
	}
	b.raft.refuse = consensus.ErrUnknownOutcome
	if _, err = b.Remove(context.Background(), "e", "skiff:admin", false); !errors.Is(err, consensus.ErrUnknownOutcome) {
		t.Errorf("got %v", err)
	}
	if r := b.removal("id-e"); r == nil || !r.Pending || b.Removed("id-e") {
		t.Errorf("removal %+v", r)
	}
	b.raft.refuse = nil
	b.mu.Lock()
	b.offset = 2 * pendingGrace
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.FinishRemovals(ctx) }()
	eventually(t, "the removal is finished", func() bool { return b.Removed("id-e") && len(b.raft.Members()) == 4 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Or it is undone.
	b.raft.refuse = consensus.ErrUnknownOutcome
	_, _ = b.Remove(context.Background(), "d", "skiff:admin", false)
	b.raft.refuse = errQuorumRisk
	if err := b.finishRemoval(context.Background(), "id-d", *b.removal("id-d")); err != nil || b.removal("id-d") != nil {
		t.Errorf("%v, %v", err, b.removal("id-d"))
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

func TestWithoutALeaderNobodyIsRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("abc")
	b.raft.leader = ""
	if _, err := b.Remove(context.Background(), "c", "skiff:admin", true); !errors.Is(err, consensus.ErrNoLeader) || !strings.Contains(err.Error(), "needs a quorum") {
		t.Errorf("got %v", err)
	}
}

func TestRemovingAnAgentSaysWhatBecomesOfItsPods(t *testing.T) {
	t.Parallel()
	b, ctx := newBench(t), context.Background()
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.setPeers(peer("w", "id-w", "10.0.0.9", RoleAgent, Alive))
	if _, err := b.kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := func(name, owner string, phase corev1.PodPhase) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: corev1.PodSpec{NodeName: "w"}, Status: corev1.PodStatus{Phase: phase}}
		if owner != "" {
			p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&metav1.ObjectMeta{Name: "o"}, appsv1.SchemeGroupVersion.WithKind(owner))}
		}
		if _, err := b.kube.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pod("web-1", "ReplicaSet", corev1.PodRunning)
	pod("web-2", "ReplicaSet", corev1.PodPending)
	pod("log-1", "DaemonSet", corev1.PodRunning)
	pod("tool", "", corev1.PodRunning)
	pod("done", "", corev1.PodSucceeded)
	r, err := b.Remove(ctx, "w", "skiff:admin", false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"2 of its pods are deleted and replaced on other nodes by their controllers", "pods without a controller are lost: shop/tool",
		"the host still runs: on it, stop skiff and run skiff reset --delete-data, which ends its pods and makes it free to join again"}
	if !slices.Equal(r.Notes, want) {
		t.Errorf("notes %q", r.Notes)
	}
	if _, err := b.kube.CoreV1().Nodes().Get(ctx, "w", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the node: %v", err)
	}
	if rec, _, _ := b.record("w"); rec != nil {
		t.Error("it holds its name still")
	}
	_, err = b.Remove(ctx, "w", "skiff:admin", false)
	refusedWith(t, err, "w was removed already by skiff:admin at")
}

// Removals of agents are forgotten when no certificate of theirs can be valid.
func TestRemovalsAreForgotten(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.servers("abcd")
	for _, name := range []string{"w", "d"} {
		if _, err := b.Remove(context.Background(), name, "skiff:admin", false); err != nil {
			t.Fatal(err)
		}
	}
	var due []string
	for _, e := range b.store.Expired(time.Now().Add(removalMemory+time.Hour).Unix(), 10) {
		if strings.HasPrefix(e.Key, removedPrefix) {
			due = append(due, e.Key)
		}
	}
	if !slices.Equal(due, []string{removedPrefix + "id-w"}) {
		t.Errorf("due: %v", due)
	}
	if len(b.store.Expired(time.Now().Add(366*24*time.Hour).Unix(), 10)) > 2 { // the tokens
		t.Error("forgotten while its certificate is valid")
	}
}

func TestPromote(t *testing.T) {
	t.Parallel()
	b, ctx := newBench(t), context.Background()
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.mustJoin(t, serverRequest("s", "id-s"))
	b.servers("ab?c")
	refusedWith(t, b.Promote(ctx, "b"), "server b votes already")
	refusedWith(t, b.Promote(ctx, "w"), "w is an agent")
	refusedWith(t, b.Promote(ctx, "s"), "server s has not reached the log yet")
	refusedWith(t, b.Promote(ctx, "x"), "there is no member")
	if err := b.Promote(ctx, "c"); err != nil || !slices.Equal(b.raft.promoted, []string{"id-c"}) {
		t.Errorf("%v, %v", b.raft.promoted, err)
	}
}

// The first server of a cluster has not joined: it writes its record itself.
func TestAServerRegistersItself(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.log.fails(errTest)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	time.Sleep(10 * time.Millisecond)
	b.log.fails(nil)
	eventually(t, "a record", func() bool { r, _, _ := b.record("a"); return r != nil && r.ID == "id-a" && r.Role == RoleServer })
	revision := b.store.Revision()
	if err := b.registerOnce(ctx); err != nil || b.store.Revision() != revision {
		t.Errorf("written again: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestARemovedServerNoticesIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("abcd")
	var lines strings.Builder
	left := make(chan struct{})
	b.c.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	b.c.LeaveGossip = func(context.Context) error { close(left); return nil }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	eventually(t, "a record", func() bool { r, _, _ := b.record("a"); return r != nil })
	// The write that begins the removal is the last that the server gets to see.
	op, _ := putRemoval("id-a", Removal{Name: "a", Role: RoleServer, By: "skiff:admin", At: time.Now(), Pending: true})
	if err := b.propose(ctx, "test", op); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.Membership().Done():
		t.Fatal("gone while it votes")
	case <-time.After(2 * configurationPoll):
	}
	if err := b.raft.Remove(ctx, "id-a"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []<-chan struct{}{b.Membership().Done(), left} {
		select {
		case <-c:
		case <-time.After(20 * time.Second):
			t.Fatal("not noticed")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !strings.Contains(lines.String(), "this server was removed from the cluster") || !strings.Contains(lines.String(), "run skiff reset --delete-data, and start it with --join and a new token") {
		t.Errorf("log: %s", lines.String())
	}
}

// A server that was removed while it was down learns it from the others.
func TestAServerAsksWhetherItWasRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t) // of "a", which others removed
	other := newBench(t)
	keys := b.pki.Keys()
	if err := other.pki.Set(keys); err != nil {
		t.Fatal(err)
	}
	b.c.Servers = func() []Server {
		at := netip.MustParseAddrPort(other.addr())
		return []Server{b.c.Self(), {Name: "dead", ID: "id-dead", Address: at.Addr(), APIPort: 1}, {Name: "b", ID: "id-b", Address: at.Addr(), APIPort: at.Port()}}
	}
	if r := b.askRemoved(context.Background()); r != nil {
		t.Errorf("it was not removed: %+v", r)
	}
	op, _ := putRemoval("id-a", Removal{Name: "a", Role: RoleServer, By: "skiff:admin", At: time.Now(), Pending: true})
	if err := other.propose(context.Background(), "test", op); err != nil {
		t.Fatal(err)
	}
	if r := b.askRemoved(context.Background()); r != nil {
		t.Error("pending is not removed")
	}
	op, _ = putRemoval("id-a", Removal{Name: "a", Role: RoleServer, By: "skiff:admin", At: time.Now()})
	if err := other.propose(context.Background(), "test", op); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other server says it", func() bool { // who does not answer for 2 s is not waited for
		r := b.askRemoved(context.Background())
		return r != nil && r.By == "skiff:admin"
	})
	if testing.Short() {
		return
	}
	b.raft.leader = ""
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	select {
	case <-b.Membership().Done():
	case <-time.After(20 * time.Second):
		t.Error("not noticed")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
