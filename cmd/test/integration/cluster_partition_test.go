//go:build integration

package integration

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// TestClusterPartition: cut off are a follower, then the leader, then the
// leader in one direction only. The majority goes on, the cut-off side takes no
// write and gives no stale linearizable read, and no pod is touched.
func TestClusterPartition(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	l := startWrites(t, c, 3)
	for round := range atLength(1, 5) {
		for _, part := range []string{"follower", "leader", "leader, one way"} {
			leader, followers := c.followers(t)
			victim := leader
			if part == "follower" {
				victim = followers[0]
			}
			var others []string
			for _, n := range c.status(t).Nodes {
				if n.Name != victim {
					others = append(others, n.Name)
				}
			}
			cut := time.Now()
			must(t, c.Partition(t.Context(), []string{victim}, others, part == "leader, one way"))
			t.Logf("round %d, %s: writes after %v", round, part, l.next(t, cut, 30*time.Second).Round(time.Millisecond))
			time.Sleep(atLength(8*time.Second, 30*time.Second))
			if part != "leader, one way" { // there the follower may still forward
				c.cutOff(t, victim, fmt.Sprintf("cut-%d-%s", round, part))
			}
			must(t, c.Heal(t.Context()))
			c.healthy(t)
		}
	}
	l.end(t)
	c.undisturbed(t)
}

// cutOff checks what a server without a quorum does: local reads work, others
// and writes get an error, and it is one that clients try again.
func (c *devCluster) cutOff(t *testing.T, server, name string) {
	t.Helper()
	s := c.clients[server].CoreV1().ConfigMaps("default")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if _, err := s.List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err != nil {
		t.Errorf("local read at %s, which is cut off: %v", server, err)
	}
	short, cancelShort := context.WithTimeout(ctx, 4*time.Second)
	defer cancelShort()
	if m, err := s.Get(short, sharedCounter, metav1.GetOptions{}); err == nil {
		t.Errorf("linearizable read at %s, which is cut off, gave revision %s", server, m.ResourceVersion)
	}
	if err := c.write(ctx, server, name, 4*time.Second); err == nil {
		t.Errorf("%s, which is cut off, acknowledged a write", server)
	}
}

// TestClusterStatefulSetOnce: while its node is cut off, a pod of a StatefulSet
// is replaced only when it has ended there.
func TestClusterStatefulSetOnce(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 2})
	c.apply(t, onlyOnce)
	c.kubectl(t, "rollout", "status", "statefulset/only", "--timeout=240s")
	watch := watchProcesses(c, onlyOnceMark)
	defer watch.end()
	for round := range atLength(1, 4) {
		home := c.kubectl(t, "get", "pod", "only-0", "-o", "jsonpath={.spec.nodeName}")
		uid := c.kubectl(t, "get", "pod", "only-0", "-o", "jsonpath={.metadata.uid}")
		var others []string
		for _, n := range c.status(t).Nodes {
			if n.Name != home {
				others = append(others, n.Name)
			}
		}
		cut := time.Now()
		must(t, c.Partition(t.Context(), []string{home}, others, false))
		eventually(t, 3*time.Minute, func() error {
			out, err := c.try("", "get", "pod", "only-0", "-o", "jsonpath={.metadata.uid} {.spec.nodeName} {.status.phase}")
			if err == nil && (len(out) == 0 || out[:min(len(uid), len(out))] == uid) {
				err = fmt.Errorf("it is still the old one: %q", out)
			}
			if err != nil {
				return err
			}
			return wants(out, "Running")
		})
		t.Logf("round %d: replaced %v after the cut", round, time.Since(cut).Round(100*time.Millisecond))
		must(t, c.Heal(t.Context()))
		c.healthy(t)
		eventually(t, time.Minute, func() error {
			if on := watch.now(); len(on) != 1 || slices.Contains(on, home) {
				return fmt.Errorf("the pod runs on %v, it was on %s", on, home)
			}
			return nil
		})
	}
	watch.end()
	if len(watch.twice) > 0 {
		t.Errorf("the pod ran on two nodes at once: %v", watch.twice)
	}
	t.Logf("looked %d times", watch.looks)
}

const onlyOnceMark = "86423"

const onlyOnce = `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: only}
spec:
  serviceName: only
  replicas: 1
  selector: {matchLabels: {app: only}}
  template:
    metadata: {labels: {app: only}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [agent-1, agent-2]}]
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      containers:
      - name: box
        image: skiff.test/busybox:1.36
        command: ["sleep", "` + onlyOnceMark + `"]
`
