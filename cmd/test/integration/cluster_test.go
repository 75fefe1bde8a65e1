//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cmd/dev"
)

// soakEnv asks for the long forms of the cluster tests.
const soakEnv = "SKIFF_SOAK"

// atLength gives the short or the long form of a figure.
func atLength[T any](short, long T) T {
	if os.Getenv(soakEnv) != "" {
		return long
	}
	return short
}

// devCluster is a cluster for one test.
type devCluster struct {
	*dev.Cluster
	clients map[string]*kubernetes.Clientset // of the servers
	steady  map[string]string                // what must not change: see snapshot
}

// newCluster makes one with a pod on every node that must never restart. Its
// logs are shown if the test fails.
func newCluster(t *testing.T, cfg dev.Config) *devCluster {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cluster")
	began := time.Now()
	cfg.Dir, cfg.ImageDir = dir, shared.images
	if cfg.Binary == "" {
		cfg.Binary = shared.binary
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "nodes", "*", "log"))
			for _, l := range logs {
				b, _ := os.ReadFile(l)
				lines := strings.Split(strings.TrimSpace(string(b)), "\n")
				t.Logf("last words of %s:\n%s", filepath.Base(filepath.Dir(l)), strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
			if keep := os.Getenv("SKIFF_KEEP_LOGS"); keep != "" {
				for _, l := range logs {
					b, _ := os.ReadFile(l)
					_ = os.WriteFile(filepath.Join(keep, t.Name()+"."+filepath.Base(filepath.Dir(l))+".log"), b, 0o600)
				}
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*slower*time.Minute)
		defer cancel()
		if _, err := dev.Down(ctx, dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	d, err := dev.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &devCluster{Cluster: d, clients: map[string]*kubernetes.Clientset{}}
	st := c.status(t)
	for _, n := range st.Nodes {
		if n.Role == dev.Agent {
			continue
		}
		if c.clients[n.Name], err = d.Client(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
	}
	c.apply(t, steadyPods)
	c.kubectl(t, "rollout", "status", "daemonset/steady", "--timeout=240s")
	c.kubectl(t, "rollout", "status", "deployment/spread", "--timeout=240s")
	eventually(t, 30*time.Second, func() (err error) {
		c.steady, err = c.snapshot(t.Context())
		return err
	})
	c.answering(t)
	t.Logf("%d nodes, up with %d pods after %v", len(st.Nodes), len(c.steady), time.Since(began).Round(100*time.Millisecond))
	return c
}

// answering waits until the steady pods of all nodes answer on each: that they are
// ready is known before every node sends requests to them.
func (c *devCluster) answering(t *testing.T) {
	t.Helper()
	with := c.withPods(t)
	for _, n := range with {
		seen := map[string]bool{}
		eventuallyAt(t, 30*time.Second, 5*time.Millisecond, func() error {
			text, err := visit(c.url(n))
			if err != nil {
				return err
			}
			if seen[helloPod(text)] = true; len(seen) < len(with) {
				return fmt.Errorf("of %d pods only %v have answered on %s", len(with), slices.Sorted(maps.Keys(seen)), n)
			}
			return nil
		})
	}
}

// withPods are the names of the nodes that run pods.
func (c *devCluster) withPods(t *testing.T) (names []string) {
	t.Helper()
	for _, n := range c.status(t).Nodes {
		if n.Pods {
			names = append(names, n.Name)
		}
	}
	return names
}

// helloPod is the pod that an answer of hello comes from.
func helloPod(text string) string {
	_, pod, _ := strings.Cut(text, "pod ")
	pod, _, _ = strings.Cut(pod, ",")
	return pod
}

// steadyPods answer on port 30090 of every node.
var steadyPods = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: steady}
spec:
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady, restarts: never}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hello
        image: skiff.local/hello:v1
---
apiVersion: v1
kind: Service
metadata: {name: steady}
spec:
  type: NodePort
  selector: {app: steady}
  ports: [{port: 80, targetPort: 8080, nodePort: 30090}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 4
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread, restarts: never}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hello
        image: skiff.local/hello:v1
`

// snapshot tells the pods that must not restart apart: name, UID, node, and
// the containers with their start times.
func (c *devCluster) snapshot(ctx context.Context) (map[string]string, error) {
	client, err := c.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "restarts=never"})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range pods.Items {
		text := fmt.Sprintf("%s on %s, deleted: %v", p.UID, p.Spec.NodeName, p.DeletionTimestamp)
		for _, s := range p.Status.ContainerStatuses {
			text += fmt.Sprintf(", %s restarts %d", s.ContainerID, s.RestartCount)
			if s.State.Running != nil {
				text += ", started " + s.State.Running.StartedAt.Format(time.RFC3339)
			}
		}
		out[p.Name] = text
	}
	return out, nil
}

// undisturbed fails the test if any pod on the given nodes, or on all, is not
// the one that it was, or its containers are not.
func (c *devCluster) undisturbed(t *testing.T, except ...string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		now, err := c.snapshot(t.Context())
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(c.steady)) {
			was := c.steady[name]
			if now[name] != was && !slices.ContainsFunc(except, func(n string) bool { return strings.Contains(was, " on "+n+",") }) {
				return fmt.Errorf("pod %s was disturbed, before:\n%s\nafter:\n%s", name, was, now[name])
			}
		}
		return nil
	})
	for _, n := range c.status(t).Nodes {
		if !n.Pods || n.State != "running" {
			continue
		}
		eventually(t, 30*time.Second, func() error {
			_, err := visit(c.url(n.Name))
			return err
		})
	}
}

func (c *devCluster) status(t *testing.T) dev.Status {
	t.Helper()
	st, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (c *devCluster) url(node string) string {
	st, err := c.Status()
	if err != nil {
		return ""
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return "http://" + n.Address + ":30090/"
		}
	}
	return ""
}

// leader waits until there is one, and names it.
func (c *devCluster) leader(t *testing.T) string {
	t.Helper()
	var st *membership.Status
	eventually(t, 30*time.Second, func() (err error) {
		st, err = c.Members(t.Context())
		return err
	})
	return st.Leader
}

// followers are the servers without the leader.
func (c *devCluster) followers(t *testing.T) (leader string, followers []string) {
	leader = c.leader(t)
	for _, name := range slices.Sorted(maps.Keys(c.clients)) {
		if name != leader {
			followers = append(followers, name)
		}
	}
	return leader, followers
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *devCluster) kill(t *testing.T, node string) {
	t.Helper()
	must(t, c.Kill(t.Context(), node, dev.KillOptions{}))
}

func (c *devCluster) start(t *testing.T, node string) {
	t.Helper()
	must(t, c.Start(t.Context(), node))
}

// healthy waits until every server votes and every node is Ready.
func (c *devCluster) healthy(t *testing.T) {
	t.Helper()
	must(t, c.AwaitVoters(t.Context(), slower*time.Minute))
	must(t, c.AwaitReady(t.Context(), slower*time.Minute, c.withPods(t)...))
}

func (c *devCluster) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	path, err := c.Kubeconfig(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, shared.binary, append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+path)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

func (c *devCluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try("", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (c *devCluster) apply(t *testing.T, manifest string) {
	t.Helper()
	if out, err := c.try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// write creates a ConfigMap at one server and gives up after limit.
func (c *devCluster) write(ctx context.Context, server, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := c.clients[server].CoreV1().ConfigMaps("default").Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// lost names the nodes that the API, at the first server that answers, holds
// for unreachable or not ready.
func (c *devCluster) lost(ctx context.Context) ([]string, error) {
	nodes, err := c.nodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range nodes {
		ready := false
		for _, cond := range n.Status.Conditions {
			ready = ready || cond.Type == v1.NodeReady && cond.Status == v1.ConditionTrue
		}
		if !ready {
			out = append(out, n.Name)
		}
	}
	return out, nil
}

func (c *devCluster) nodes(ctx context.Context) ([]v1.Node, error) {
	err := errors.New("no servers")
	for _, s := range c.clients {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		var list *v1.NodeList
		list, err = s.CoreV1().Nodes().List(try, metav1.ListOptions{})
		cancel()
		if err == nil && len(list.Items) > 0 {
			return list.Items, nil
		}
	}
	return nil, fmt.Errorf("list nodes: %w", err)
}
