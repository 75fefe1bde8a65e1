//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/cmd/dev"
)

// serversGoal is how long three servers may take. The test allows more: its
// machine does other things.
const serversGoal = time.Minute

// TestUpgrade: a cluster under load goes forward, back, forward and is
// finalized by skiff upgrade; programs that do not work are put back. No request
// fails, and no container restarts.
func TestUpgrade(t *testing.T) {
	const before, after = "0.1.5", "0.2.0"
	old, next := build(t, before, ""), build(t, after, "nextlevel")
	c := newBusyCluster(t, old)

	for _, step := range []struct{ way, version string }{{"forward", after}, {"back", before}} {
		began := time.Now()
		if step.way == "forward" {
			c.upgrade(t, "apply", "--binary", next, "--yes")
		} else {
			c.upgrade(t, "rollback", "--yes")
		}
		t.Logf("%s: all members in %v, servers in %v", step.way, time.Since(began).Round(100*time.Millisecond), c.serversTook(t).Round(100*time.Millisecond))
		c.run(t, step.version)
		c.unharmed(t, step.way)
	}

	for _, how := range []string{"exit", "hang"} {
		began := time.Now()
		if out, err := c.tryUpgrade("apply", "--binary", brokenProgram(t, how), "--trial", "8s", "--yes"); err == nil {
			t.Errorf("a program that will %s was rolled out:\n%s", how, out)
		} else {
			t.Logf("a program that will %s stopped the roll-out after %v: %v", how, time.Since(began).Round(100*time.Millisecond), err)
		}
		r := c.rollout(t)
		if r.Stopped == "" {
			t.Fatalf("the roll-out of a program that will %s was not stopped: %+v", how, r)
		}
		c.run(t, before)
		c.upgrade(t, "rollback", "--yes")
		// Nobody answers for names on a host whose new program hangs.
		c.unharmed(t, "a program that will "+how, strings.Fields(r.Stopped)[0])
	}

	c.testInterruptedUpgrade(t, next)
	c.run(t, after)
	c.unharmed(t, "forward again")
	c.upgrade(t, "finalize", "--yes")
	c.testTooOld(t, old, next)
	c.unharmed(t, "finalize")
	c.writes.end(t)
}

// testInterruptedUpgrade pauses a roll-out, goes on, and kills the leader.
func (c *busyCluster) testInterruptedUpgrade(t *testing.T, next string) {
	began := time.Now()
	c.upgrade(t, "apply", "--binary", next, "--yes", "--no-wait")
	done := func() (n int) {
		for _, m := range c.rollout(t).Members {
			if m.State == upgrade.StateDone {
				n++
			}
		}
		return n
	}
	changes := func() (n int) { // members that were touched
		for _, m := range c.rollout(t).Members {
			if m.Changed {
				n++
			}
		}
		return n
	}
	eventually(t, 2*time.Minute, func() error {
		if done() == 0 {
			return fmt.Errorf("no member is done: %+v", c.rollout(t))
		}
		return nil
	})
	c.upgrade(t, "pause")
	if r := c.rollout(t); !r.Paused {
		t.Errorf("it is not paused: %+v", r)
	}
	eventually(t, 2*time.Minute, func() error { // what had begun is finished
		if done() != changes() {
			return fmt.Errorf("%d members are done of %d that began", done(), changes())
		}
		return nil
	})
	was := changes()
	time.Sleep(settle)
	if now := changes(); now != was || now == len(c.rollout(t).Members) {
		t.Errorf("%d members had changed at the pause, %d some seconds later", was, now)
	}
	c.upgrade(t, "resume", "--no-wait")
	leader := c.leader(t)
	c.kill(t, leader)
	c.start(t, leader)
	eventually(t, 3*time.Minute, func() error {
		r := c.rollout(t)
		if r.Stage != upgrade.StageDone {
			return fmt.Errorf("the roll-out is at %s: %s", r.Stage, r.Stopped)
		}
		return nil
	})
	t.Logf("paused, resumed, leader %s killed: done after %v", leader, time.Since(began).Round(100*time.Millisecond))
}

// testTooOld: after finalize a program of the version before neither joins nor
// starts.
func (c *busyCluster) testTooOld(t *testing.T, old, next string) {
	token, err := c.Output(t.Context(), "server-1", "skiff", "token", "create", "--role", "agent")
	must(t, err)
	out, err := c.Output(t.Context(), "agent-1", old, "agent", "--data-dir", filepath.Join(t.TempDir(), "data"), "--config", os.DevNull,
		"--name", "stranger", "--gossip-port", "6545", "--node-port", "10350", "--join", c.address(t, "server-1"), "--token", strings.TrimSpace(token))
	if err == nil || !strings.Contains(err.Error(), "level") {
		t.Errorf("a program below the feature level joined: %v\n%s", err, out)
	}
	const name = "agent-2"
	must(t, c.Kill(t.Context(), name, dev.KillOptions{}))
	must(t, c.Install(t.Context(), name, old))
	if err := c.Start(t.Context(), name); err == nil { // it ends when it sees the others
		eventually(t, 20*time.Second, func() error {
			for _, n := range c.status(t).Nodes {
				if n.Name == name && n.State == "running" {
					return fmt.Errorf("%s runs a program below the feature level", name)
				}
			}
			return nil
		})
	}
	must(t, c.Install(t.Context(), name, next))
	c.start(t, name)
	c.member(t, name, "0.2.0")
}

// upgrade runs skiff upgrade on a server that runs.
func (c *busyCluster) upgrade(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.tryUpgrade(args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (c *busyCluster) tryUpgrade(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	kubeconfig, err := c.Kubeconfig(ctx)
	if err != nil {
		return "", err
	}
	// As an operator whose own program is the new one, or any other.
	cmd := exec.CommandContext(ctx, shared.binary, append([]string{"upgrade"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	var out, problem strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("skiff upgrade %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

func (c *busyCluster) rollout(t *testing.T) *upgrade.Rollout {
	t.Helper()
	var st upgrade.Status
	eventually(t, 30*time.Second, func() error {
		out, err := c.tryUpgrade("status", "-o", "json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &st)
	})
	if st.Rollout == nil {
		t.Fatal("there is no roll-out")
	}
	return st.Rollout
}

// serversTook is the time from the first change of a server, in the direction in
// which the roll-out went last, to the end of the last one's.
func (c *busyCluster) serversTook(t *testing.T) time.Duration {
	t.Helper()
	r := c.rollout(t)
	begins := "changes to"
	if r.Back() {
		begins = "goes back"
	}
	var first, last time.Time
	for _, e := range r.History {
		server := slices.ContainsFunc(r.Members, func(m upgrade.Member) bool { return m.Name == e.Member && m.Server })
		if first.IsZero() && server && strings.HasPrefix(e.Text, begins) {
			first = e.At
		}
		if server && strings.Contains(e.Text, "is well") {
			last = e.At
		}
	}
	if first.IsZero() || last.Before(first) {
		t.Errorf("no server changed: %+v", r.History)
	}
	took := last.Sub(first)
	if took > 3*serversGoal {
		t.Errorf("the servers took %v, the goal is %v", took, serversGoal)
	}
	return took
}

// run checks that all members run a version, and waits until they are well.
func (c *busyCluster) run(t *testing.T, version string) {
	t.Helper()
	for _, n := range c.status(t).Nodes {
		c.member(t, n.Name, version)
	}
}

// brokenProgram builds a program that says it is a later skiff, and does not work.
func brokenProgram(t *testing.T, how string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skiff-"+how)
	cmd := exec.Command("go", "build", "-ldflags", "-X main.version=0.2.1 -X main.how="+how, "-o", path, "github.com/skiff-sh/skiff/cmd/test/broken")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}
