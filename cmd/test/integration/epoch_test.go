//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cmd/dev"
)

// All servers are lost, then most of them: pods that were running go on through
// both, on the hosts of servers and of agents.
func TestEpochs(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	t.Run("restore", c.testTotalLoss)
	if t.Failed() {
		return
	}
	t.Run("recover", c.testLostQuorum)
}

// skiffOn runs a command of skiff on a node, on its data directory.
func (c *devCluster) skiffOn(t *testing.T, node string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*slower*time.Minute)
	defer cancel()
	n := len(args)
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			n = i
			break
		}
	}
	all := append(append([]string{}, args[:n]...), "--data-dir", c.data(node))
	return c.Output(ctx, node, "skiff", append(all, args[n:]...)...)
}

// epochOf is the number of the epoch in which a server says that it has a leader,
// 0 if it does not.
func (c *devCluster) epochOf(t *testing.T, node string) uint64 {
	out, _ := c.skiffOn(t, node, "recover", "--dry-run", "-o", "json") // there is nothing to recover then
	var p epoch.Plan
	if json.Unmarshal([]byte(out), &p) != nil || p.Server != node || !strings.Contains(p.Refused, "has a leader") {
		return 0
	}
	return p.Epoch.Number
}

func (c *devCluster) inEpoch(t *testing.T, number uint64, servers ...string) {
	t.Helper()
	for _, s := range servers {
		eventually(t, time.Minute, func() error {
			if got := c.epochOf(t, s); got != number {
				return fmt.Errorf("%s says epoch %d, want %d", s, got, number)
			}
			return nil
		})
	}
}

// firstWrite gives up after a minute.
func (c *devCluster) firstWrite(t *testing.T, server, name string) {
	t.Helper()
	eventuallyAt(t, time.Minute, 50*time.Millisecond, func() error {
		err := c.write(t.Context(), server, name, 2*time.Second)
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// testTotalLoss loses the log and the keys of one server and kills all three. The
// snapshot is restored on one host, and nothing is done on the others.
func (c *devCluster) testTotalLoss(t *testing.T) {
	file, key := filepath.Join(c.Dir(), "total.snap"), filepath.Join(c.Dir(), "cluster.key")
	out, err := c.Output(t.Context(), "server-1", "cat", filepath.Join(c.data("server-1"), "pki", "cluster.key"))
	must(t, err)
	must(t, os.WriteFile(key, []byte(out), 0o600))
	if out, err := c.skiffOn(t, "server-2", "snapshot", "save", "--force", file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, c.write(t.Context(), "server-1", "after-the-snapshot", 10*time.Second))
	last, err := c.clients["server-1"].CoreV1().ConfigMaps("default").Get(t.Context(), "after-the-snapshot", metav1.GetOptions{})
	must(t, err)

	// Beside the living cluster a restored server does not begin.
	beside := c.data("server-3") + ".beside"
	if out, err := c.Output(t.Context(), "server-3", "skiff", "snapshot", "restore", "--data-dir", beside, "--key-file", key, file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err = c.Output(t.Context(), "server-3", "skiff", "server", "--data-dir", beside, "--config", os.DevNull, "--disable-agent", "--name", "other",
		"--api-port", "7443", "--raft-port", "7444", "--gossip-port", "7445")
	if err == nil || !strings.Contains(err.Error(), "the cluster of this snapshot is alive") || !strings.Contains(err.Error(), "skiff restore --live") {
		t.Errorf("a restored server beside the living cluster: %v", err)
	}

	for server := range c.clients {
		c.kill(t, server)
	}
	lose := "cd " + c.data("server-1") + " && rm -rf raft pki node-id cluster.json admin.kubeconfig"
	_, err = c.Output(t.Context(), "server-1", "sh", "-c", lose)
	must(t, err)
	began := time.Now()
	if out, err := c.Output(t.Context(), "server-1", "skiff", "snapshot", "restore", "--data-dir", c.data("server-1"), "--key-file", key, file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.start(t, "server-1")
	c.firstWrite(t, "server-1", "first")
	took := time.Since(began)
	t.Logf("the first write was done %v after the restore began", took.Round(time.Millisecond))
	if took > slower*10*time.Second { // the goal is 10 s
		t.Errorf("the first write took %v", took)
	}
	c.start(t, "server-2")
	c.start(t, "server-3")
	c.inEpoch(t, 2, "server-1", "server-2", "server-3")
	t.Logf("all servers are in the new epoch after %v", time.Since(began).Round(time.Millisecond))
	c.healthy(t)
	c.undisturbed(t)
	maps := c.clients["server-3"].CoreV1().ConfigMaps("default")
	if _, err := maps.Get(t.Context(), "after-the-snapshot", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was written after the snapshot: %v", err)
	}
	first, err := maps.Get(t.Context(), "first", metav1.GetOptions{})
	must(t, err)
	if len(first.ResourceVersion) <= len(last.ResourceVersion) {
		t.Errorf("resource version %s after %s", first.ResourceVersion, last.ResourceVersion)
	}
	// Who watched from before has to list anew.
	w, err := maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: last.ResourceVersion})
	if err == nil {
		e, ok := <-w.ResultChan()
		w.Stop()
		if err = errors.New("the watch ended without a word"); ok {
			err = apierrors.FromObject(e.Object)
		}
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch from before the restore: %v", err)
	}
	// The agent follows: what is new gets to it.
	c.kubectl(t, "run", "on-the-agent", "--image=skiff.local/hello:v1", "--restart=Never", "--overrides", `{"spec":{"nodeName":"agent-1"}}`)
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/on-the-agent", "--timeout=240s")
}

// testLostQuorum loses two of three servers for good; the third goes on alone, though
// it is killed meanwhile. The others come back, are refused, and join again.
func (c *devCluster) testLostQuorum(t *testing.T) {
	for _, s := range []string{"server-1", "server-2"} {
		c.kill(t, s)
	}
	eventually(t, 30*time.Second, func() error {
		out, err := c.skiffOn(t, "server-3", "recover", "--dry-run", "-o", "json")
		if err != nil {
			return err // it still believes in its leader
		}
		var p epoch.Plan
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			return err
		}
		if p.Server != "server-3" || len(p.Members) != 3 || p.Next.Number != 3 || len(p.Losses) != 1 {
			return fmt.Errorf("plan %s", out)
		}
		return nil
	})
	if got := c.epochOf(t, "server-3"); got != 0 {
		t.Errorf("a dry run began epoch %d", got)
	}
	if out, err := c.skiffOn(t, "server-3", "recover"); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("nobody was asked: %v %s", err, out)
	}
	// Killed in the middle, it has been done, or not begun.
	asked := make(chan error, 1)
	go func() { _, err := c.skiffOn(t, "server-3", "recover", "--yes"); asked <- err }()
	time.Sleep(time.Duration(time.Now().UnixNano()%300) * time.Millisecond)
	c.kill(t, "server-3")
	c.start(t, "server-3")
	t.Logf("the command that was cut off says: %v", <-asked)
	eventually(t, time.Minute, func() error {
		if c.epochOf(t, "server-3") == 3 {
			return nil
		}
		// A command that came before the server may have had the data directory.
		for _, n := range c.status(t).Nodes {
			if n.Name == "server-3" && n.State == "stopped" {
				c.start(t, "server-3")
			}
		}
		// Who has begun the epoch and has no leader yet must not begin another.
		out, err := c.skiffOn(t, "server-3", "recover", "--dry-run", "-o", "json")
		var p epoch.Plan
		if err == nil && json.Unmarshal([]byte(out), &p) == nil && p.Next.Number == 3 && p.Refused == "" {
			_, err = c.skiffOn(t, "server-3", "recover", "--yes")
		}
		return fmt.Errorf("not in the new epoch yet: %v", err)
	})
	began := time.Now()
	c.firstWrite(t, "server-3", "alone")
	t.Logf("a write %v after the recovery", time.Since(began).Round(time.Millisecond))

	c.start(t, "server-1")
	eventually(t, 30*time.Second, func() error {
		_, err := c.Output(t.Context(), "server-1", "skiff", "kubectl", "--kubeconfig", filepath.Join(c.data("server-1"), "admin.kubeconfig"), "--context", "server-1", "get", "pods")
		if err == nil {
			return errors.New("it serves what is old")
		}
		return wants(err.Error(), "run skiff recover --rejoin on this host")
	})
	if out, err := c.skiffOn(t, "server-1", "recover", "--yes"); err == nil || !strings.Contains(err.Error(), "--rejoin") {
		t.Errorf("recover where the cluster goes on elsewhere: %v %s", err, out)
	}
	if out, err := c.skiffOn(t, "server-1", "recover", "--rejoin", "--yes"); err != nil {
		t.Errorf("rejoin of a running server: %v %s", err, out)
	}
	if out, err := c.skiffOn(t, "server-2", "recover", "--rejoin", "--yes"); err != nil {
		t.Errorf("rejoin of a stopped server: %v %s", err, out)
	}
	c.start(t, "server-2")
	c.inEpoch(t, 3, "server-1", "server-2", "server-3")
	c.healthy(t)
	c.undisturbed(t)
}
