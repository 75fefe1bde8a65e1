package membership

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
)

// node is an agent's side on its own clock.
type node struct {
	*Identity
	c      IdentityConfig
	offset atomic.Int64
	addr   atomic.Pointer[string]
	asked  chan *NodeConfig
}

func newNode(t testing.TB, b *bench, name, id string) *node {
	t.Helper()
	n := &node{asked: make(chan *NodeConfig, 10)}
	address := "10.0.0.9"
	n.addr.Store(&address)
	n.c = IdentityConfig{Dir: filepath.Join(t.TempDir(), "agent"), Name: name, NodeID: id, Address: func() string { return *n.addr.Load() },
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, b.addr())
		},
		OnConfig: func(c *NodeConfig) { n.asked <- c },
		Now:      func() time.Time { return time.Now().Add(time.Duration(n.offset.Load())) }, Logger: slog.New(slog.DiscardHandler)}
	n.open(t)
	return n
}

func (n *node) open(t testing.TB) {
	t.Helper()
	var err error
	if n.Identity, err = OpenIdentity(n.c); err != nil {
		t.Fatal(err)
	}
}

// joined is a node that has joined b.
func joined(t testing.TB, b *bench, name, id string) *node {
	t.Helper()
	n := newNode(t, b, name, id)
	r := JoinRequest{Role: RoleAgent, Name: name, NodeID: id, Version: "1.4.0", Address: "10.0.0.9", GossipPort: 6445}
	var err error
	if r.CSR, err = n.CSR(); err != nil {
		t.Fatal(err)
	}
	a := b.mustJoin(t, r)
	if err := n.Install(a.Cert, a.CA); err != nil {
		t.Fatal(err)
	}
	return n
}

// run runs the identity and gives how it ended.
func (n *node) run(t testing.TB) (ended chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(cancel)
	return ended, cancel
}

func (n *node) wasAsked(t testing.TB) *NodeConfig {
	t.Helper()
	select {
	case c := <-n.asked:
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("no node configuration after 20s")
		return nil
	}
}

func TestIdentityIsKept(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := newNode(t, b, "w", "id-w")
	if n.Joined() || n.Leaf() != nil {
		t.Error("a new identity has joined")
	}
	if err := n.Run(context.Background()); err == nil {
		t.Error("a node that has not joined runs")
	}
	n = joined(t, b, "w", "id-w")
	for _, f := range []string{KeyFile, CertFile, CAFile} {
		if fi, err := os.Stat(n.path(f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}
	before := n.Leaf()
	n.open(t)
	if !n.Joined() || !n.Leaf().Equal(before) || !bytes.Equal(n.CA(), b.pki.Bundle()) {
		t.Error("it is another after a restart")
	}
	n.c.Name = ""
	n.open(t) // as skiff leave does
	n.c.Name = "v"
	if _, err := OpenIdentity(n.c); err == nil || !strings.Contains(err.Error(), "this host joined as w, and is started as v") {
		t.Errorf("another name: %v", err)
	}
}

func TestDamagedIdentitiesAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, tc := range map[string]struct {
		want   string
		damage func(n *node) error
	}{
		"no key":         {"node.key is missing", func(n *node) error { return os.Remove(n.path(KeyFile)) }},
		"no PEM":         {"holds no PEM key", func(n *node) error { return os.WriteFile(n.path(KeyFile), []byte("x"), 0o600) }},
		"another key":    {"does not belong to", func(n *node) error { k, _ := newKey(); return n.writeKey(KeyFile, k) }},
		"no certificate": {"no PEM certificate", func(n *node) error { return os.WriteFile(n.path(CertFile), []byte("x"), 0o600) }},
		"no CA":          {"ca.crt", func(n *node) error { return os.Remove(n.path(CAFile)) }},
	} {
		n := joined(t, b, "w", "id-w")
		if err := tc.damage(n); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenIdentity(n.c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

func TestForeignCertificatesAreNotInstalled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := newNode(t, b, "w", "id-w")
	csr, err := n.CSR()
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.sign("v", "id-v", "10.0.0.9", csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Install(other, b.pki.Bundle()); err == nil || !strings.Contains(err.Error(), "system:node:v") {
		t.Errorf("that of another node: %v", err)
	}
	mine, _ := b.sign("w", "id-w", "10.0.0.9", agentRequest(t, "w", "id-w").CSR)
	if err := n.Install(mine, b.pki.Bundle()); !errors.Is(err, errOtherKey) {
		t.Errorf("that of another key: %v", err)
	}
	if n.Joined() {
		t.Error("it was installed")
	}
}

func TestARemovedNodeIsTold(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	ended, _ := n.run(t)
	n.wasAsked(t)
	if _, err := b.Remove(context.Background(), "w", "skiff:admin", false); err != nil {
		t.Fatal(err)
	}
	r, err := clientOf(t, n.ClientTLS()).Get("https://" + b.addr() + StatusPath)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusUnauthorized {
		t.Errorf("its certificate is still good: %s", r.Status)
	}
	n.Refresh()
	select {
	case err := <-ended:
		refusedWith(t, err, "this node was removed from the cluster by skiff:admin at")
		refusedWith(t, err, "run skiff reset --delete-data and join again")
	case <-time.After(20 * time.Second):
		t.Fatal("it was not told")
	}
	refusedWith(t, n.Renew(context.Background(), "test"), "this node was removed")
}

func TestANodeLeaves(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	if r, err := n.Leave(context.Background()); err != nil || r.Name != "w" || r.Role != RoleAgent {
		t.Fatalf("%+v, %v", r, err)
	}
	if !b.Removed("id-w") {
		t.Error("it is a member still")
	}
	if err := os.RemoveAll(n.c.Dir); err != nil {
		t.Fatal(err)
	}
	again := joined(t, b, "w", "id-after-reset")
	if _, err := again.NodeConfig(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestServingTLS(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	n2 := newNode(t, b, "v", "id-v")
	if _, err := n2.Certificate(); err == nil {
		t.Error("a certificate before the join")
	}
	var _ pki.CertSource = n.Identity
	if c := n.ServingTLS(); c.GetCertificate == nil || c.GetConfigForClient == nil {
		t.Error("it does not follow renewals")
	}
}

func TestClusterFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if c, err := LoadCluster(dir); c != nil || err != nil {
		t.Errorf("%v, %v", c, err)
	}
	in := newBench(t).cluster()
	if err := SaveCluster(dir, &in); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(filepath.Join(dir, ClusterFile)); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	out, err := LoadCluster(dir)
	if err != nil || out.ClusterID != in.ClusterID || out.Servers[0] != in.Servers[0] || out.Settings != in.Settings || string(out.GossipKeys[0]) != "gossip key" {
		t.Errorf("%+v, %v", out, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ClusterFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCluster(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("damaged: %v", err)
	}
}
