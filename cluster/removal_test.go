package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// newToken makes a token at s.
func newToken(t testing.TB, s *testServer, role membership.Role) membership.Token {
	t.Helper()
	var made membership.NewToken
	if code := skiffAPI(t, s.config, "POST", membership.TokensPath, fmt.Sprintf(`{"role":%q,"ttl":60000000000}`, role), &made); code != http.StatusOK {
		t.Fatalf("token: %d", code)
	}
	token, err := membership.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// joined is the configuration of a server that s has admitted.
func joined(t testing.TB, s *testServer, name string, role membership.Role) Config {
	t.Helper()
	c := testConfig(t.TempDir())
	c.Name, c.Role = name, role
	id, err := NodeID(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := membership.Join(context.Background(), strings.TrimPrefix(s.config.Host, "https://"), newToken(t, s, membership.RoleServer),
		membership.JoinRequest{Role: role, Name: name, NodeID: id, Version: c.Version, Address: "127.0.0.1", GossipPort: c.GossipPort})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(c.DataDir, "pki")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, b := range a.PKI {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := membership.SaveCluster(c.DataDir, &a.Cluster); err != nil {
		t.Fatal(err)
	}
	return c
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func (s *testServer) remove(t testing.TB, name string, force bool) (int, membership.Removed) {
	t.Helper()
	var r membership.Removed
	path := membership.MembersPath + "/" + name
	if force {
		path += "?force=true"
	}
	return skiffAPI(t, s.config, "DELETE", path, "", &r), r
}

// A cluster grows to three servers and shrinks again: the removed ones notice
// it, running or not, and do not come back.
func TestServersJoinAndAreRemoved(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newServer(t)
	cb, cc := joined(t, a, "b", membership.RoleServer), joined(t, a, "c", membership.RoleWitness)
	b := startServer(t, cb)
	c := startServer(t, cc)
	within(t, 60*time.Second, "all vote and are known by name", func() bool {
		st := b.Status(ctx)
		return st.FailureTolerance == 1 && len(st.Members) == 3 && st.Members[0].Name == "b" && st.Partial == "" && st.Leader == "test"
	})
	if code, _ := a.remove(t, "c", false); code != http.StatusConflict {
		t.Errorf("the last spare server is removed without force: %d", code)
	}
	watch, err := c.client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// From a follower, of a follower.
	code, r := b.remove(t, "c", true)
	if code != http.StatusOK || r.Role != membership.RoleWitness || len(r.Notes) == 0 || !strings.Contains(r.Notes[0], "stops all writes") {
		t.Errorf("remove: %d, %+v", code, r)
	}
	select {
	case <-c.members.Membership().Done():
	case <-time.After(30 * time.Second):
		t.Error("the removed server does not notice it")
	}
	within(t, 20*time.Second, "two voters", func() bool { return len(a.node.Members()) == 2 && len(b.node.Members()) == 2 })
	write := func(s *testServer, name string) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_, err := s.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	began := time.Now()
	if err := write(c, "from-c"); err == nil || !strings.Contains(err.Error(), "this server was removed from the cluster by skiff:admin") ||
		!strings.Contains(err.Error(), "run skiff reset --delete-data and join again") || time.Since(began) > 2*time.Second {
		t.Errorf("the removed server takes a write: %v, after %s", err, time.Since(began))
	}
	if _, err := c.client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err == nil {
		t.Error("it tells what it knew")
	}
	ended := time.After(10 * time.Second)
	for open := true; open; {
		select {
		case _, open = <-watch.ResultChan():
		case <-ended:
			t.Fatal("a watch goes on that will never tell anything")
		}
	}
	for path, ok := range map[string]bool{"/livez": true, "/readyz": false} {
		_, err := c.client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(ctx)
		if (err == nil) != ok {
			t.Errorf("%s of the removed server: %v", path, err)
		}
	}
	if w := c.Status(ctx).Warnings; len(w) != 1 || !strings.Contains(w[0], "this server was removed") {
		t.Errorf("warnings of the removed server: %q", w)
	}
	for _, s := range []*testServer{a, b} {
		within(t, 20*time.Second, "the others forget it", func() bool {
			m, known := s.gossip.Load().Member("c")
			k, err := os.ReadFile(s.KubeconfigPath())
			return (!known || m.State != gossip.Alive) && err == nil && !strings.Contains(string(k), fmt.Sprintf(":%d", c.cfg.Port))
		})
	}
	select {
	case <-c.ended:
		t.Error("the removed server has ended")
	default:
	}
	if err := write(b, "from-b"); err != nil {
		t.Errorf("the others take none: %v", err)
	}
	within(t, 20*time.Second, "the warning of two servers, and no other", func() bool { // another while the machine is busy
		w := a.Status(ctx).Warnings
		return len(w) == 1 && w[0] == "losing either server stops writes: add a third or a --witness"
	})

	// b is removed by a: the leader, or not.
	bID := b.ID()
	code, r = a.remove(t, "b", false)
	if code != http.StatusOK || r.Name != "b" {
		t.Errorf("remove: %d, %+v", code, r)
	}
	within(t, 20*time.Second, "one voter", func() bool { return len(a.node.Members()) == 1 })
	if err := write(a, "from-a"); err != nil {
		t.Error(err)
	}
	b.stop()
	c.stop()
	// It has forgotten: as if it had been down then, it knows only what others say.
	again, err := New(cb)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- again.Run(ctx) }()
	select {
	case <-again.members.Membership().Done():
	case <-time.After(30 * time.Second):
		t.Error("started again, it does not notice that it was removed")
	}
	if n := len(a.node.Members()); n != 1 || !a.members.Removed(bID) {
		t.Errorf("it has come back: %d members", n)
	}
	cancel()
	if again.gossip.Load() != nil {
		t.Error("it has shown itself to the others as if it were a member")
	}
	if err := <-over; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, m := range a.Status(context.Background()).Members {
		if m.Name != "test" {
			t.Errorf("still shown: %+v", m)
		}
	}
}

// The leader leaves by its own API, then the other of two; the last may not.
func TestServersLeave(t *testing.T) {
	t.Parallel()
	a := newServer(t)
	b := startServer(t, joined(t, a, "b", membership.RoleServer))
	within(t, 60*time.Second, "both vote", func() bool {
		st := b.Status(context.Background())
		return st.Partial == "" && len(st.Members) == 2 && st.Members[0].Voter && st.Members[1].Voter && st.Leader == "test"
	})
	var r membership.Removed
	if code := skiffAPI(t, a.config, "POST", membership.LeavePath+"?id="+a.ID(), "", &r); code != http.StatusOK || r.Name != "test" || r.ID != a.ID() {
		t.Fatalf("leave: %d, %+v", code, r)
	}
	within(t, 20*time.Second, "it knows that it has left", func() bool { return a.members.Membership().Err() != nil })
	within(t, 20*time.Second, "the other goes on alone", func() bool {
		st := b.Status(context.Background())
		return len(b.node.Members()) == 1 && st.Leader == "b" && len(st.Members) == 1
	})
	if _, err := b.client.CoreV1().ConfigMaps("default").Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if code := skiffAPI(t, a.config, "POST", membership.LeavePath+"?id="+a.ID(), "", &r); code != http.StatusServiceUnavailable {
		t.Errorf("leaving twice: %d", code)
	}
	if code := skiffAPI(t, b.config, "POST", membership.LeavePath+"?id="+b.ID(), "", &r); code != http.StatusConflict {
		t.Errorf("the last one leaves: %d", code)
	}
}
