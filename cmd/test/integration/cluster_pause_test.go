//go:build integration

package integration

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestClusterPaused: skiff of an agent, then of the leader, is stopped for a
// while and goes on. It is held for lost, its pods are not evicted, and the
// former leader gives no stale answer.
func TestClusterPaused(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	l := startWrites(t, c, 2)
	pause := atLength(20*time.Second, 70*time.Second)
	for _, victim := range []string{"agent-1", c.leader(t)} {
		began := time.Now()
		must(t, c.Kill(t.Context(), victim, dev.KillOptions{Signal: unix.SIGSTOP}))
		t.Logf("%s is paused: writes after %v", victim, l.next(t, began, 30*time.Second).Round(time.Millisecond))
		eventually(t, 30*time.Second, func() error {
			lost, err := c.lost(t.Context())
			if err == nil && !slices.Equal(lost, []string{victim}) {
				err = fmt.Errorf("lost are %v, want %s alone", lost, victim)
			}
			return err
		})
		t.Logf("held for lost after %v", time.Since(began).Round(100*time.Millisecond))
		time.Sleep(time.Until(began.Add(pause)))
		must(t, c.Kill(t.Context(), victim, dev.KillOptions{Signal: unix.SIGCONT}))
		c.healthy(t)
	}
	l.end(t) // a stale read would have shown
	c.undisturbed(t)
}

// TestClusterStarved: with far more busy processes than CPUs no node is held
// for lost.
func TestClusterStarved(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for _, n := range c.status(t).Nodes {
		for range 4 {
			burn := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
			burn.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			must(t, c.Exec(n.Name, burn))
			defer burn.Wait() //nolint:errcheck // it is killed
		}
	}
	checks := 0
	before := c.transitions(t)
	for end := time.Now().Add(atLength(30*time.Second, 3*time.Minute)); time.Now().Before(end); time.Sleep(time.Second) {
		lost, err := c.lost(ctx)
		if err != nil {
			t.Logf("no answer while starved: %v", err)
			continue
		}
		checks++
		if len(lost) > 0 {
			t.Fatalf("held for lost though only starved: %v", lost)
		}
	}
	stop()
	if after := c.transitions(t); !slices.Equal(before, after) {
		t.Errorf("nodes were held for lost in between, their conditions changed: %v, now %v", before, after)
	}
	t.Logf("looked %d times", checks)
	c.undisturbed(t)
}

// transitions are the times at which nodes became what they are.
func (c *devCluster) transitions(t *testing.T) (out []string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		nodes, err := c.nodes(t.Context())
		if err != nil {
			return err
		}
		out = nil
		for _, n := range nodes {
			for _, cond := range n.Status.Conditions {
				if cond.Type == "Ready" {
					out = append(out, n.Name+" "+string(cond.Status)+" "+cond.LastTransitionTime.String())
				}
			}
		}
		return nil
	})
	return out
}
