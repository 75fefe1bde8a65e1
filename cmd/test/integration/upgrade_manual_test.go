//go:build integration

package integration

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestUpgradeByHand: forward, back and forward again by stopping skiff, replacing
// its program and starting it, in the documented order. No request fails, and no
// container restarts.
func TestUpgradeByHand(t *testing.T) {
	versions := []string{"0.1.5", "0.2.0"}
	for _, v := range versions {
		build(t, v, "")
	}
	c := newBusyCluster(t, build(t, versions[0], ""))
	for i, way := range []string{"forward", "back", "forward again"} {
		version := versions[(i+1)%2]
		leader, servers := c.followers(t)
		servers = append(servers, leader)
		var agents []string
		for _, n := range c.status(t).Nodes {
			if n.Role == dev.Agent {
				agents = append(agents, n.Name)
			}
		}
		groups := [][]string{servers, agents}
		if way == "back" { // agents may be behind servers, never ahead
			slices.Reverse(groups)
		}
		for _, group := range groups {
			began := time.Now()
			for _, name := range group {
				c.byHand(t, name, version)
			}
			t.Logf("%s to %s: %v in %v", way, version, group, time.Since(began).Round(100*time.Millisecond))
		}
		c.unharmed(t, way)
	}
	c.writes.end(t)
}

// byHand stops skiff on a node, replaces its program, starts it, and waits
// until it is as before.
func (c *busyCluster) byHand(t *testing.T, name, version string) {
	t.Helper()
	began := time.Now()
	must(t, c.Kill(t.Context(), name, dev.KillOptions{Signal: unix.SIGTERM}))
	stopped := time.Since(began)
	must(t, c.Install(t.Context(), name, build(t, version, "")))
	c.start(t, name)
	c.member(t, name, version)
	t.Logf("%s: stopped after %v, runs %s after %v", name, stopped.Round(time.Millisecond), version, time.Since(began).Round(time.Millisecond))
}
