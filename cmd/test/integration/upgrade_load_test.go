//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

// builds are programs of the present tree by version and tags, made once.
var builds = map[string]string{}

// build makes a program as a release is made.
func build(t *testing.T, version, tags string) string {
	t.Helper()
	if path := builds[version+tags]; path != "" {
		return path
	}
	path := filepath.Join(filepath.Dir(shared.images), "skiff-"+version+tags)
	cmd := exec.Command("make", "-C", "../../..", "build", "VERSION="+version, "TAGS="+tags, "BIN="+path)
	// Flags of a make that runs the tests are not for this one.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS") })
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, out)
	}
	builds[version+tags] = path
	return path
}

// busyApp has a prober on every node, which asks web from inside of a pod and
// looks names up.
const busyApp = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, restarts: never}}
    spec:
      containers:
      - name: hello
        image: skiff.local/hello:v1
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: kept}
spec:
  replicas: 3
  serviceName: kept
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: kept}}
  template:
    metadata: {labels: {app: kept, restarts: never}}
    spec:
      containers:
      - name: hello
        image: skiff.local/hello:v1
        livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: kept}
spec:
  clusterIP: None
  selector: {app: kept}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: prober}
spec:
  selector: {matchLabels: {app: prober}}
  template:
    metadata: {labels: {app: prober, restarts: never}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: prober
        image: skiff.test/prober:1
        env:
        - {name: URL, value: "http://web/"}
        - {name: NAMES, value: "web web.default.svc.cluster.local. kept-0.kept kept-2.kept kubernetes.default.svc"}
        - {name: EVERY, value: 50ms}
      - name: box
        image: skiff.test/busybox:1.36
        command: ["sh", "-c", "echo up; exec sleep 100000"]
`

// busyCluster is three servers and two agents with pods that must not notice
// what is done to skiff, and requests that must all be answered.
type busyCluster struct {
	*devCluster
	outside map[string]*traffic.Load // by the node whose port is asked
	told    map[string]int           // failures that unharmed has seen, by where they were and the node
	writes  *writeLoad
}

// newBusyCluster starts it, with the load.
func newBusyCluster(t *testing.T, binary string) *busyCluster {
	t.Helper()
	c := &busyCluster{devCluster: newCluster(t, dev.Config{Servers: 3, Agents: 2, Binary: binary}), outside: map[string]*traffic.Load{}, told: map[string]int{}}
	c.apply(t, busyApp)
	for _, what := range []string{"deployment/web", "statefulset/kept", "daemonset/prober"} {
		c.kubectl(t, "rollout", "status", what, "--timeout=240s")
	}
	// A prober may have begun before there was anything to ask on its node.
	var last map[string]traffic.Report
	eventuallyAt(t, 30*time.Second, time.Second, func() error {
		now, err := c.inside(t.Context())
		if err != nil {
			return err
		}
		was := last
		if last = now; was == nil {
			return errors.New("it is looked at once more")
		}
		for _, n := range c.status(t).Nodes {
			for _, kind := range []string{traffic.NewConnection, traffic.KeptConnection, traffic.Lookup} {
				if now[n.Name].Answered[kind] <= was[n.Name].Answered[kind] || now[n.Name].Failed > was[n.Name].Failed {
					return fmt.Errorf("the prober on %s reports %+v after %+v", n.Name, now[n.Name], was[n.Name])
				}
			}
		}
		return nil
	})
	c.kubectl(t, "delete", "pods", "-l", "app=prober", "--wait=true")
	c.kubectl(t, "rollout", "status", "daemonset/prober", "--timeout=240s")
	var err error
	if c.steady, err = c.snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.status(t).Nodes {
		c.outside[n.Name] = traffic.Start(traffic.Config{URL: c.url(n.Name), Every: 50 * time.Millisecond})
	}
	c.writes = startWrites(t, c.devCluster, 2)
	t.Cleanup(func() {
		for _, l := range c.outside {
			l.Stop()
		}
	})
	return c
}

// inside gives the probers' reports by node.
func (c *busyCluster) inside(ctx context.Context) (map[string]traffic.Report, error) {
	client, err := c.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=prober"})
	if err != nil {
		return nil, err
	}
	out := map[string]traffic.Report{}
	for _, p := range pods.Items {
		b, err := client.CoreV1().Pods("default").ProxyGet("http", p.Name, "8080", "/report", nil).DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("report of %s: %w", p.Name, err)
		}
		var r traffic.Report
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, err
		}
		out[p.Spec.NodeName] = r
	}
	if len(out) == 0 {
		return nil, errors.New("no prober runs")
	}
	return out, nil
}

// settle is how long the load goes on after a change: probes and the loss of a
// node need seconds to have an effect.
const settle = 5 * time.Second

// unharmed fails the test if a request has failed since the last call, a pod is
// not the one that it was, or its containers do not obey. On the nodes that were
// without skiff for long, names may not have been found, nor those of their pods
// elsewhere.
func (c *busyCluster) unharmed(t *testing.T, after string, nameless ...string) {
	t.Helper()
	time.Sleep(settle)
	c.undisturbed(t)
	for _, pod := range strings.Fields(c.kubectl(t, "get", "pods", "-l", "app=prober", "-o", "name")) {
		eventually(t, 10*time.Second, func() error {
			if out, err := c.try("", "exec", pod, "-c", "box", "--", "echo", "here"); err != nil || out != "here\n" {
				return fmt.Errorf("%s: exec in %s: %q, %v", after, pod, out, err)
			}
			if out, err := c.try("", "logs", pod, "-c", "box"); err != nil || out != "up\n" {
				return fmt.Errorf("%s: log of %s: %q, %v", after, pod, out, err)
			}
			return nil
		})
	}
	var inside map[string]traffic.Report
	eventually(t, 20*time.Second, func() (err error) {
		inside, err = c.inside(t.Context())
		return err
	})
	outside := map[string]traffic.Report{}
	for node, l := range c.outside {
		outside[node] = l.Report()
	}
	for where, reports := range map[string]map[string]traffic.Report{"pods": inside, "outside": outside} {
		answered, failed := map[string]int{}, 0
		slowest := map[string]time.Duration{}
		for node, r := range reports {
			failed += r.Failed
			for kind, n := range r.Answered {
				answered[kind] += n
				slowest[kind] = max(slowest[kind], r.Slowest[kind].Round(time.Millisecond))
			}
			fresh := r.Failures[min(c.told[where+node], len(r.Failures)):]
			c.told[where+node] = len(r.Failures)
			for _, f := range fresh {
				text := fmt.Sprintf("%s: a request from %s, node %s: %s", after, where, node, f)
				here := slices.Contains(nameless, node) && f.Kind != traffic.KeptConnection
				theirs := len(nameless) > 0 && f.Kind == traffic.Lookup && strings.Contains(f.Error, "kept-")
				if where == "pods" && (here || theirs) {
					t.Log(text)
				} else {
					t.Error(text)
				}
			}
			if r.Total() == 0 {
				t.Errorf("%s: nothing was answered to %s, node %s", after, where, node)
			}
		}
		t.Logf("%s: requests from %s: answered %v, failed %d, slowest %v", after, where, answered, failed, slowest)
	}
}

// member waits until a member runs a version, is alive, and votes or is Ready,
// as before.
func (c *busyCluster) member(t *testing.T, name, version string) {
	t.Helper()
	eventuallyAt(t, time.Minute, 50*time.Millisecond, func() error {
		st, err := c.Members(t.Context())
		if err != nil {
			return err
		}
		for _, m := range st.Members {
			switch {
			case m.Name != name:
			case m.Version != version:
				return fmt.Errorf("%s runs %s, not %s", name, m.Version, version)
			case m.State != membership.Alive:
				return fmt.Errorf("%s is %s", name, m.State)
			case m.Role != membership.RoleAgent && (!m.Voter || m.Healthy == nil || !*m.Healthy):
				return fmt.Errorf("%s: voter %v, healthy %v", name, m.Voter, m.Healthy)
			default:
				return nil
			}
		}
		return fmt.Errorf("%s is no member", name)
	})
	must(t, c.AwaitReady(t.Context(), slower*time.Minute, name))
}
