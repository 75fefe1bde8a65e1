//go:build integration

package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestClusterRemoved: an agent and the leader leave. Both say so once, the server
// serves nothing any more, the others forget both, and what runs on the two hosts
// is not touched.
func TestClusterRemoved(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1, PlainDisks: true})
	leader, others := c.followers(t)
	leave := func(node string, args ...string) error {
		_, err := c.Output(t.Context(), node, "skiff", append([]string{"leave", "--data-dir", c.data(node)}, args...)...)
		return err
	}
	before := map[string]string{"agent-1": c.programs(t, "agent-1"), leader: c.programs(t, leader)}
	must(t, leave("agent-1"))
	if err := leave(leader); err == nil || !strings.Contains(err.Error(), "the loss of one more server stops all writes") {
		t.Errorf("the leader leaves without a word of the risk: %v", err)
	}
	must(t, leave(leader, "--force"))
	left := time.Now()
	tries := 0
	eventually(t, 20*time.Second, func() error { // it looks some times a second whether it is one
		tries++
		err := c.write(t.Context(), leader, fmt.Sprintf("lost-%d", tries), 10*time.Second)
		if err == nil || !strings.Contains(err.Error(), "this server was removed from the cluster by skiff leave on "+leader) || !strings.Contains(err.Error(), "skiff reset --delete-data") {
			return fmt.Errorf("a write through the removed server: %v", err)
		}
		return nil
	})
	t.Logf("a write through the removed server fails after %v", time.Since(left).Round(time.Millisecond))
	for _, s := range others {
		c.firstWrite(t, s, "kept-"+s)
	}
	for path, want := range map[string]bool{"/livez": true, "/readyz": false} {
		if _, err := c.clients[leader].Discovery().RESTClient().Get().AbsPath(path).DoRaw(t.Context()); (err == nil) != want {
			t.Errorf("%s of the removed server: %v", path, err)
		}
	}
	for _, s := range others {
		eventually(t, 30*time.Second, func() error {
			out, err := c.Output(t.Context(), s, "cat", filepath.Join(c.data(s), "admin.kubeconfig"))
			if err == nil && strings.Contains(out, c.address(t, leader)+":") {
				err = fmt.Errorf("the kubeconfig of %s names the removed server", s)
			}
			return err
		})
	}
	// Longer than the cluster keeps the pods of nodes that do not exist.
	time.Sleep(time.Until(left.Add(70 * time.Second)))
	eventually(t, 30*time.Second, func() error {
		out := c.kubectl(t, "get", "pods", "-l", "app=spread", "-o", "jsonpath={.items[*].spec.nodeName}")
		if strings.Contains(out, "agent-1") || strings.Contains(out, leader) {
			return fmt.Errorf("the cluster still counts on pods on %s", out)
		}
		return nil
	})
	for _, node := range slices.Sorted(maps.Keys(before)) {
		if now := c.programs(t, node); now == "" || now != before[node] {
			t.Errorf("on %s there ran %s, now %s", node, before[node], now)
		}
		b, err := os.ReadFile(filepath.Join(c.Dir(), "nodes", node, "log"))
		must(t, err)
		if n := strings.Count(string(b), "its pods go on until skiff reset"); n != 1 || strings.Contains(string(b), "panic:") {
			t.Errorf("%s says %d times that it was removed:\n%s", node, n, b)
		}
		for _, n := range c.status(t).Nodes {
			if n.Name == node && n.State != "running" {
				t.Errorf("%s is %s", node, n.State)
			}
		}
	}
	must(t, leave(others[0]))
	if err := leave(others[1], "--force"); err == nil || !strings.Contains(err.Error(), "is the only server") {
		t.Errorf("the last server leaves: %v", err)
	}
	c.firstWrite(t, others[1], "alone")
}

// programs tells the pods' processes on a node.
func (c *devCluster) programs(t *testing.T, node string) string {
	t.Helper()
	pids, err := c.Processes(node)
	must(t, err)
	var found []string
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if args := strings.Split(string(b), "\x00"); err == nil && args[0] == "/hello" {
			found = append(found, fmt.Sprint(pid))
		}
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}
