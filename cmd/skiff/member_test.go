package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// runCLI runs a command line and gives what it prints.
func runCLI(args ...string) (string, error) {
	var out bytes.Buffer
	app := newApp()
	app.Writer = &out
	err := app.RunContext(context.Background(), append([]string{"skiff"}, args...))
	return out.String(), err
}

// startTestServer runs a server in this process and gives its data directory.
func startTestServer(t *testing.T) string {
	t.Helper()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // the API library's log
	dir, loopback := t.TempDir(), netip.MustParseAddr("127.0.0.1")
	s, err := cluster.New(cluster.Config{Name: "first", DataDir: dir, Version: "1.0.0", BindAddress: loopback, AdvertiseAddress: loopback, GossipPort: unusedPorts(t, 1)[0],
		Listen: func(network, _ string) (net.Listener, error) { return net.Listen(network, "127.0.0.1:0") },
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("server ended with: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		t.Fatalf("server ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("server is not ready after 20s")
	}
	return dir
}

func TestMembershipCommands(t *testing.T) {
	dir := "--data-dir=" + startTestServer(t)
	must := func(args ...string) string {
		t.Helper()
		out, err := runCLI(args...)
		if err != nil {
			t.Fatalf("skiff %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		_, err := runCLI(args...)
		var exit cli.ExitCoder
		if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &exit) && exit.ExitCode() == exitUsage {
			t.Errorf("skiff %s: %v, want %q", strings.Join(args, " "), err, want)
		}
	}
	text := strings.TrimSpace(must("token", "create", dir, "--role", "server", "--ttl", "1h", "--description", "rack 4"))
	token, err := membership.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	list := must("token", "list", dir)
	if !strings.Contains(list, token.ID) || !strings.Contains(list, "rack 4") || strings.Contains(list, text[len(text)-20:]) {
		t.Errorf("token list:\n%s", list)
	}
	must("token", "delete", text, dir) // the whole token, and flags after it
	refused("there is no token", "token", "delete", dir, token.ID)
	var tokens []membership.TokenInfo
	if out := must("token", "list", "-o", "json", dir); json.Unmarshal([]byte(out), &tokens) != nil || len(tokens) != 0 {
		t.Errorf("token list: %s", out)
	}

	status := must("status", dir)
	for _, want := range []string{"Leader              first (term", "Failure tolerance   0 (the only server)", "NAME    ROLE     STATE   VOTES", "first   server   alive   leader"} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	var s cluster.Status
	if out := must("status", "-o", "json", dir); json.Unmarshal([]byte(out), &s) != nil || len(s.Members) != 1 || !s.Members[0].Voter || len(s.Certificates) == 0 {
		t.Errorf("status: %s", out)
	}
	var members []membership.MemberStatus
	if out := must("member", "list", "-o", "json", dir); json.Unmarshal([]byte(out), &members) != nil || len(members) != 1 || members[0].Name != "first" {
		t.Errorf("member list: %s", out)
	}
	refused("there is no member \"other\"", "member", "remove", "other", dir)
	refused("first is the only server", "member", "remove", "first", "--force", dir)
	refused("server first votes already", "member", "promote", "first", dir)
	refused("first is the only server", "leave", dir)
}

func TestPrintStatus(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	hour, ms, lag, down, up := now.Add(-3*time.Hour), time.Millisecond, uint64(7), false, true
	gone, never := 90*time.Second, time.Duration(-1)
	s := &cluster.Status{Name: "a", Version: "1.0.0", Started: hour, Leader: "b", Role: membership.RoleServer,
		Evictions: &membership.EvictionStatus{Frozen: true, Reason: "6 of 10 nodes seem dead", Since: &hour, Waiting: 6},
		Members: []membership.MemberStatus{
			{Name: "a", Role: membership.RoleServer, Address: "10.0.0.1", State: membership.Alive, Since: &hour, Version: "1.0.0", Load: 20, Voter: true, Healthy: &up, Lag: &lag, LastContact: &ms, FsyncP99: &ms},
			{Name: "b", Role: membership.RoleWitness, Address: "10.0.0.2", State: membership.Alive, Version: "1.0.0", Voter: true, Leader: true, Healthy: &up},
			{Name: "c", Role: membership.RoleServer, State: membership.Dead, Voter: true, Healthy: &down, LastContact: &gone, Problem: "no answer"},
			{Name: "d", Role: membership.RoleServer, State: membership.Alive, Healthy: &down, LastContact: &never},
			{Name: "w", Role: membership.RoleAgent, State: membership.Left, Since: &hour},
		},
		Certificates: []membership.Certificate{{Name: "API", Issued: now.Add(-72 * time.Hour), NotBefore: now.Add(-73 * time.Hour), NotAfter: now.AddDate(1, 0, 0), RenewAt: &now}},
		Warnings:     []string{"1 of 3 voting servers are down: c"}, Partial: "the leader's view is missing: x"}
	var out bytes.Buffer
	if err := printStatus(&out, s, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Leader              b (term 0)",
		"Failure tolerance   0 (of 3 voting servers: the next loss stops writes)",
		"Evictions           FROZEN: 6 of 10 nodes seem dead (pods of 6 nodes wait) since 2030-01-02T00:04:05Z",
		"NAME   ROLE      STATE   VOTES     ADDRESS    VERSION   LAG   LAST CONTACT   FSYNC P99   LOAD   SINCE",
		"a      server    alive   yes       10.0.0.1   1.0.0     7     1ms            1ms         20%    3h",
		"b      witness   alive   leader    10.0.0.2   1.0.0     -     -              -           0%     -",
		"c      server    dead!   yes       -          -         -     1m30s          -           0%     -",
		"d      server    alive   not yet   -          -         -     -              -           0%     -",
		"w      agent     left    -         -          -         -     -              -           0%     3h",
		"Incomplete      the leader's view is missing: x",
		"Certificate     API: 3d old, expires 2031-01-02, renews itself 2030-01-02",
		"WARNING         1 of 3 voting servers are down: c",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

// What agents keep is enough to leave.
func TestLeaveAsNode(t *testing.T) {
	dir := startTestServer(t)
	text, err := runCLI("token", "create", "--data-dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := membership.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "node-id"), []byte("id-worker\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	identity, err := membership.OpenIdentity(membership.IdentityConfig{Dir: filepath.Join(host, "agent"), Name: "worker", NodeID: "id-worker",
		Address: func() string { return "127.0.0.1" }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.CSR()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := membership.Join(context.Background(), kubeconfig.Host, token, membership.JoinRequest{Role: membership.RoleAgent, Name: "worker",
		NodeID: "id-worker", Version: "1.0.0", Address: "127.0.0.1", CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.Install(answer.Cert, answer.CA); err != nil {
		t.Fatal(err)
	}
	if err := membership.SaveCluster(host, &answer.Cluster); err != nil {
		t.Fatal(err)
	}
	if out, err := runCLI("leave", "--data-dir", host); err != nil || out != "agent worker removed\n" {
		t.Errorf("leave: %q, %v", out, err)
	}
	if _, err := runCLI("leave", "--data-dir", host); err == nil || !strings.Contains(err.Error(), "this node was removed from the cluster by skiff leave on worker") {
		t.Errorf("leave again: %v", err)
	}
}
