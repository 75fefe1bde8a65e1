//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestJoin is the life of a cluster that hosts have joined: what works across
// nodes, which joins are refused, and that servers, all of them, and addresses
// may go away.
func TestJoin(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1, PlainDisks: true})
	t.Run("nodes reach each other", func(t *testing.T) { c.testAcrossNodes(t) })
	t.Run("refusals", func(t *testing.T) { c.testRefusals(t) })
	t.Run("death of the leader", func(t *testing.T) { c.testLeaderKilled(t) })
	t.Run("no server at all", func(t *testing.T) { c.testNoServers(t) })
	t.Run("new address", func(t *testing.T) { c.testNewAddress(t) })
	t.Run("years without power", func(t *testing.T) { c.testYearsOff(t) })
}

func (c *devCluster) testAcrossNodes(t *testing.T) {
	ip := c.kubectl(t, "get", "service", "steady", "-o", "jsonpath={.spec.clusterIP}")
	for _, node := range []string{"agent-1", "server-2"} {
		seen := map[string]bool{}
		eventually(t, 30*time.Second, func() error {
			out, err := c.Output(t.Context(), node, "curl", "-sS", "-m", "5", "http://"+ip+"/")
			if err != nil {
				return err
			}
			if seen[helloPod(out)] = true; len(seen) < 4 {
				return fmt.Errorf("%s has reached only the pods %v", node, seen)
			}
			return nil
		})
	}
	pod := strings.TrimSpace(c.kubectl(t, "get", "pods", "-l", "app=steady", "--field-selector", "spec.nodeName=agent-1", "-o", "jsonpath={.items[0].metadata.name}"))
	for server := range c.clients {
		eventually(t, 20*time.Second, func() error {
			out, err := c.try("", "--context", server, "logs", pod)
			if err == nil {
				err = wants(out, "listens on")
			}
			return err
		})
		// The program exists once more in the container, and finds its port taken.
		if _, err := c.try("", "--context", server, "exec", pod, "--", "/hello"); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("exec in a pod on the agent by way of %s: %v", server, err)
		}
	}
	eventually(t, 20*time.Second, func() error {
		out, err := c.Output(t.Context(), "agent-1", "curl", "-sSk", "-m", "5", "https://10.43.0.1/livez")
		if err == nil && out != "ok" {
			err = fmt.Errorf("the service of the API from the agent: %q", out)
		}
		return err
	})
	c.undisturbed(t)
}

// testRefusals tries to join from the agent's host with a data directory of its
// own.
func (c *devCluster) testRefusals(t *testing.T) {
	token := func(args ...string) string {
		out, err := c.Output(t.Context(), "server-1", "skiff", append([]string{"token", "create", "--data-dir", c.data("server-1")}, args...)...)
		must(t, err)
		return strings.TrimSpace(out)
	}
	server, agent := token("--role", "server"), token("--role", "agent")
	used := token("--role", "server")
	_, secret, _ := strings.Cut(used, ".")
	addr := c.address(t, "server-1")
	dir := filepath.Join(t.TempDir(), "data")
	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"no token", "--join needs --token", []string{"--join", addr}},
		{"no server", "--token goes with --join", []string{"--token", server}},
		{"damaged", "this is no token", []string{"--join", addr, "--token", secret}},
		{"wrong secret", "token", []string{"--join", addr, "--token", server[:len(server)-4] + "aaaa"}},
		{"other role", "the token is for the role agent", []string{"--join", addr, "--token", agent}},
		{"other cluster", "the token is of another cluster", []string{"--join", addr, "--token", "skiff1." + strings.Repeat("a", 52) + server[strings.Index(server[7:], ".")+7:]}},
		{"name taken", "the name server-2 is taken by a live member", []string{"--join", addr, "--token", server, "--name", "server-2"}},
		{"other settings", "--cluster-cidr 10.99.0.0/16: the cluster has 10.42.0.0/16", []string{"--join", addr, "--token", server, "--cluster-cidr", "10.99.0.0/16"}},
	} {
		out, err := c.Output(t.Context(), "agent-1", "skiff", append([]string{"server", "--data-dir", dir, "--config", os.DevNull, "--disable-agent",
			"--name", "stranger", "--gossip-port", "6545"}, tc.args...)...)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: want %q, got %v\n%s", tc.name, tc.want, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pki")); err == nil {
		t.Error("a refused host has the cluster's keys")
	}
	for _, tc := range []struct{ node, command, want string }{
		{"agent-1", "server", "in use"},
		{"server-2", "agent", "in use"},
	} {
		if _, err := c.Output(t.Context(), tc.node, "skiff", tc.command, "--data-dir", c.data(tc.node), "--config", os.DevNull); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("skiff %s beside a running one on %s: %v", tc.command, tc.node, err)
		}
	}
}

func (c *devCluster) testLeaderKilled(t *testing.T) {
	leader := c.leader(t)
	c.kill(t, leader)
	began := time.Now()
	eventually(t, 30*time.Second, func() error {
		_, err := c.try("", "create", "configmap", "after-the-leader")
		if err != nil && strings.Contains(err.Error(), "already exists") { // by a try of which it was unknown
			return nil
		}
		return err
	})
	t.Logf("kubectl writes again after %v", time.Since(began).Round(time.Millisecond))
	address := c.address(t, leader)
	eventually(t, 50*time.Second, func() error {
		out, err := c.try("", "get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
		if err == nil && strings.Contains(out, address) {
			return fmt.Errorf("the dead server is among the endpoints %s", out)
		}
		return err
	})
	t.Logf("the service of the API is without it after %v", time.Since(began).Round(time.Millisecond))
	c.start(t, leader)
	c.healthy(t)
	c.undisturbed(t)
}

// testNoServers starts an agent while no server runs, and one server without the
// others.
func (c *devCluster) testNoServers(t *testing.T) {
	for server := range c.clients {
		c.kill(t, server)
	}
	c.kill(t, "agent-1")
	c.start(t, "agent-1")
	log := filepath.Join(c.Dir(), "nodes", "agent-1", "log")
	eventually(t, time.Minute, func() error {
		b, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(b), "no server answers yet") {
			err = fmt.Errorf("the agent has not noticed")
		}
		return err
	})
	answers := func(what string) {
		eventually(t, 30*time.Second, func() error {
			if _, err := visit(c.url("agent-1")); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	answers("without servers")
	c.start(t, "server-1")
	eventually(t, time.Minute, func() error {
		out, err := c.try("", "--context", "server-1", "get", "--raw", "/readyz")
		if err == nil {
			return fmt.Errorf("one of three is ready: %s", out)
		}
		if !strings.Contains(err.Error(), "leader") {
			return err
		}
		return nil
	})
	answers("with one of three servers")
	c.start(t, "server-2")
	c.start(t, "server-3")
	c.healthy(t)
	c.undisturbed(t)
}

// testNewAddress gives the agent's host another address, and takes it back.
func (c *devCluster) testNewAddress(t *testing.T) {
	old := c.address(t, "agent-1")
	host := net.ParseIP(old).To4()
	next := net.IPv4(host[0], host[1], host[2], 77).String()
	c.kill(t, "agent-1")
	cmd := exec.Command(shared.binary, "agent", "--name", "agent-1", "--data-dir", c.data("agent-1"), "--config", os.DevNull)
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, time.Second
	must(t, c.Exec("agent-1", cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("the agent has ended by itself: %v", err)
		}
		<-ended
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", log.tail(40))
		}
		c.start(t, "agent-1")
		c.healthy(t)
	}()
	ns, err := netns.GetFromPid(cmd.Process.Pid)
	must(t, err)
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer inside.Close()
	link, err := inside.LinkByName("eth0")
	must(t, err)
	for _, change := range [][2]string{{old, next}, {next, old}} {
		from, to := change[0], change[1]
		eventually(t, time.Minute, func() error { return c.nodeAt("agent-1", from) })
		was, err := netlink.ParseAddr(from + "/24")
		must(t, err)
		is, err := netlink.ParseAddr(to + "/24")
		must(t, err)
		must(t, inside.AddrDel(link, was))
		must(t, inside.AddrAdd(link, is))
		must(t, inside.RouteReplace(&netlink.Route{Gw: net.IPv4(host[0], host[1], host[2], 1)}))
		began := time.Now()
		eventually(t, time.Minute, func() error { return c.nodeAt("agent-1", to) })
		t.Logf("the node is Ready at %s after %v", to, time.Since(began).Round(time.Millisecond))
		eventually(t, 30*time.Second, func() error {
			_, err := visit("http://" + to + ":30090/")
			return err
		})
	}
	c.undisturbed(t)
}

// nodeAt says whether a node is Ready and has that address.
func (c *devCluster) nodeAt(node, address string) error {
	out, err := c.try("", "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.addresses[?(@.type=="InternalIP")].address}`)
	if err == nil && out != "True "+address {
		err = fmt.Errorf("node %s is %q, want Ready at %s", node, out, address)
	}
	return err
}

func (c *devCluster) data(node string) string { return filepath.Join(c.Dir(), "nodes", node, "data") }

func (c *devCluster) address(t *testing.T, node string) string {
	t.Helper()
	for _, n := range c.status(t).Nodes {
		if n.Name == node {
			return n.Address
		}
	}
	t.Fatalf("no node %s", node)
	return ""
}
