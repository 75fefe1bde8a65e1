//go:build integration

package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestClusterFullDisk: a server whose disk is full does not keep the others
// from writing; with all disks full writes are refused and say why, reads and
// pods go on. All of it ends by itself when there is room. The servers run no
// pods: a node that is short of disk evicts them, as it should.
func TestClusterFullDisk(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1, DiskSize: 512 << 20, ServerArgs: []string{"--disable-agent"}})
	l := startWrites(t, c, 2)
	leader, followers := c.followers(t)
	for _, victim := range []string{followers[0], leader} {
		c.fill(t, victim)
		began := time.Now()
		time.Sleep(atLength(5*time.Second, time.Minute))
		if gap := l.next(t, began, 60*time.Second); gap > atLength(10*time.Second, 70*time.Second) {
			t.Logf("writes took %v to work again", gap.Round(time.Millisecond))
		}
		t.Logf("disk of %s full, writes go on; leader is %s", victim, c.leader(t))
		c.free(t, victim)
		c.healthy(t)
	}
	for server := range c.clients {
		c.fill(t, server)
	}
	c.refused(t)
	for server, s := range c.clients {
		if _, err := s.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{ResourceVersion: "0"}); err != nil {
			t.Errorf("read at %s with all disks full: %v", server, err)
		}
	}
	eventually(t, 10*time.Second, func() error {
		if _, err := visit(c.url("agent-1")); err != nil {
			return fmt.Errorf("service with all disks full: %w", err)
		}
		return nil
	})
	began := time.Now()
	for server := range c.clients {
		c.free(t, server)
	}
	t.Logf("writes again %v after there was room", l.next(t, began, time.Minute).Round(time.Millisecond))
	c.healthy(t)
	l.end(t)
	c.undisturbed(t)
}

// refused waits until no server takes a write any more, and checks what it
// says.
func (c *devCluster) refused(t *testing.T) {
	t.Helper()
	n := 0
	eventually(t, time.Minute, func() error {
		for server, s := range c.clients {
			n++
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			_, err := s.CoreV1().ConfigMaps("default").Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("refused-%d", n)},
				Data: map[string]string{"a": strings.Repeat("x", 200_000)}}, metav1.CreateOptions{})
			cancel()
			if err == nil {
				return fmt.Errorf("%s took a write with all disks full", server)
			}
			if !strings.Contains(err.Error(), "space") && !apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err) && !apierrors.IsServiceUnavailable(err) {
				return fmt.Errorf("%s does not say why, and not that it may be tried again: %w", server, err)
			}
		}
		return nil
	})
}

// fill leaves no room on a node's disk.
func (c *devCluster) fill(t *testing.T, node string) {
	t.Helper()
	// dd ends with an error when the disk is full; small blocks fill the rest.
	_, err := c.Output(t.Context(), node, "sh", "-c", fmt.Sprintf("dd if=/dev/zero of=%[1]s bs=1M conv=notrunc oflag=append; dd if=/dev/zero of=%[1]s bs=512 conv=notrunc oflag=append; sync %[1]s; true", c.ballast(t, node)))
	must(t, err)
}

func (c *devCluster) free(t *testing.T, node string) {
	t.Helper()
	_, err := c.Output(t.Context(), node, "rm", "-f", c.ballast(t, node))
	must(t, err)
}

func (c *devCluster) ballast(t *testing.T, node string) string {
	t.Helper()
	for _, n := range c.status(t).Nodes {
		if n.Name == node {
			return filepath.Join(n.DataDir, "ballast")
		}
	}
	t.Fatalf("there is no node %s", node)
	return ""
}

// TestClusterStalledDisk: a leader whose disk hangs makes place for another
// one, and comes back when its disk does.
func TestClusterStalledDisk(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	l := startWrites(t, c, 2)
	for range atLength(1, 5) {
		leader, followers := c.followers(t)
		for _, victim := range []string{followers[0], leader} {
			began := time.Now()
			must(t, c.Stall(t.Context(), victim))
			t.Logf("disk of %s stalled: writes after %v", victim, l.next(t, began, time.Minute).Round(time.Millisecond))
			time.Sleep(atLength(10*time.Second, time.Minute))
			l.next(t, time.Now(), 30*time.Second)
			must(t, c.Thaw(t.Context(), victim))
			c.healthy(t)
		}
	}
	l.end(t)
	c.undisturbed(t)
}
