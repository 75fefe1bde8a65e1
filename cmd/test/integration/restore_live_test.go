//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/live"
	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

// goneApp is deleted after the snapshot, and must come back.
const goneApp = `apiVersion: apps/v1
kind: Deployment
metadata: {name: gone}
spec:
  replicas: 3
  selector: {matchLabels: {app: gone}}
  template:
    metadata: {labels: {app: gone}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: "skiff.local/hello:v1"}
---
apiVersion: v1
kind: Service
metadata: {name: gone}
spec:
  type: NodePort
  selector: {app: gone}
  ports: [{port: 80, targetPort: 8080, nodePort: 30091}]
`

// newerApp joins the pods that the load goes to, after the snapshot.
const newerApp = `apiVersion: apps/v1
kind: Deployment
metadata: {name: newer}
spec:
  replicas: 3
  selector: {matchLabels: {app: steady, newer: "yes"}}
  template:
    metadata: {labels: {app: steady, newer: "yes"}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: "skiff.local/hello:v1", readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}}
`

// skiff runs the program against one server of the cluster.
func (c *devCluster) skiff(ctx context.Context, server string, args ...string) (string, error) {
	path, err := c.Kubeconfig(ctx)
	if err != nil {
		return "", err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "skiff-keys-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	flags := []string{}
	for flag, content := range map[string][]byte{"cacert": config.CAData, "cert": config.CertData, "key": config.KeyData} {
		file := filepath.Join(dir, flag)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", err
		}
		flags = append(flags, "--"+flag, file)
	}
	st, err := c.Status()
	if err != nil {
		return "", err
	}
	for _, n := range st.Nodes {
		if n.Name == server {
			flags = append(flags, "--endpoints", "https://"+n.Address+":6443")
		}
	}
	cmd := exec.CommandContext(ctx, shared.binary, append(args, flags...)...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("skiff %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

func podNames(pods []live.Pod, prefix string) (n int) {
	for _, p := range pods {
		if strings.HasPrefix(p.Name, prefix) {
			n++
		}
	}
	return n
}

// TestRestoreLive: a cluster under load goes back to a snapshot, through a server
// that does not lead. What is in both does not notice.
func TestRestoreLive(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 3, Agents: 1})
	file := filepath.Join(t.TempDir(), "before.snap")
	c.apply(t, goneApp)
	c.kubectl(t, "rollout", "status", "deployment/gone", "--timeout=240s")
	c.kubectl(t, "create", "secret", "generic", "s", "--from-literal=word=before")
	c.kubectl(t, "create", "configmap", "c", "--from-literal=word=before")
	address := c.kubectl(t, "get", "service", "gone", "-o", "jsonpath={.spec.clusterIP}")
	leader, followers := c.followers(t)
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), slower*time.Minute)
		defer cancel()
		out, err := c.skiff(ctx, followers[0], args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("snapshot", "save", "--write-out", "simple", file)

	loads := map[string]*traffic.Load{}
	for _, n := range c.status(t).Nodes {
		loads[n.Name] = traffic.Start(traffic.Config{URL: c.url(n.Name), Every: 20 * time.Millisecond})
		defer loads[n.Name].Stop()
	}
	c.kubectl(t, "delete", "deployment,service", "gone")
	c.kubectl(t, "delete", "secret", "s")
	c.kubectl(t, "patch", "configmap", "c", "-p", `{"data":{"word":"after"}}`)
	c.apply(t, newerApp)
	c.kubectl(t, "rollout", "status", "deployment/newer", "--timeout=240s")
	c.kubectl(t, "create", "deployment", "extra", "--image=skiff.local/hello:v1", "--replicas=4")
	c.kubectl(t, "create", "service", "clusterip", "extra", "--clusterip="+address, "--tcp=80") // an address that is taken again
	c.kubectl(t, "rollout", "status", "deployment/extra", "--timeout=240s")
	eventually(t, 30*time.Second, func() error {
		return none(c.kubectl(t, "get", "pods", "-l", "app=gone", "-o", "name"))
	})

	var plan, done cluster.RestoreReport
	must(t, json.Unmarshal([]byte(run("restore", "--live", file, "--dry-run", "-o", "json")), &plan))
	if !plan.DryRun || podNames(plan.Pods.Stop, "extra-") != 4 || podNames(plan.Pods.Start, "gone-") != 3 || len(plan.Pods.Stay) != len(c.steady) || len(plan.Pods.Stop) != 4+3 {
		t.Errorf("dry run: %+v", plan.Pods)
	}
	if got := c.kubectl(t, "get", "configmap", "c", "-o", "jsonpath={.data.word}"); got != "after" {
		t.Fatalf("the dry run changed something: %s", got)
	}
	began := time.Now()
	must(t, json.Unmarshal([]byte(run("restore", "--live", file, "--yes", "-o", "json")), &done))
	t.Logf("restored after %v", time.Since(began).Round(time.Millisecond))
	if done.Revision <= plan.Revision || len(done.Objects.Removed) < 8 {
		t.Errorf("restored: revision %d after %d, %d objects lost", done.Revision, plan.Revision, len(done.Objects.Removed))
	}
	for server, client := range c.clients { // all of them say the same
		s, err := client.CoreV1().Secrets("default").Get(t.Context(), "s", metav1.GetOptions{})
		if err != nil || string(s.Data["word"]) != "before" {
			t.Errorf("secret by %s: %v, %v", server, s, err)
		}
		m, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "c", metav1.GetOptions{})
		if err != nil || m.Data["word"] != "before" {
			t.Errorf("configmap by %s: %v, %v", server, m, err)
		}
	}
	if got := c.kubectl(t, "get", "service", "gone", "-o", "jsonpath={.spec.clusterIP}"); got != address {
		t.Errorf("the service has the address %s, had %s", got, address)
	}
	c.kubectl(t, "rollout", "status", "deployment/gone", "--timeout=240s")
	t.Logf("what was deleted runs after %v", time.Since(began).Round(time.Millisecond))
	for _, n := range c.status(t).Nodes {
		eventually(t, 20*time.Second, func() error {
			_, err := visit("http://" + n.Address + ":30091/")
			return err
		})
	}
	eventually(t, 30*time.Second, func() error {
		return none(c.kubectl(t, "get", "pods,deployments,services", "-l", "app=extra", "-o", "name"))
	})
	// Addresses and ports that are in use again are not given out.
	if out, err := c.try("", "create", "service", "clusterip", "thief", "--clusterip="+address, "--tcp=80"); err == nil {
		t.Errorf("the address of a restored service was given away: %s", out)
	}
	c.kubectl(t, "scale", "deployment", "gone", "--replicas=4")
	c.kubectl(t, "rollout", "status", "deployment/gone", "--timeout=240s")
	time.Sleep(settle)
	c.undisturbed(t)
	for node, l := range loads {
		r := l.Stop()
		for _, f := range r.Failures[:min(5, len(r.Failures))] {
			t.Errorf("a request to %s: %s", node, f)
		}
		if r.Failed > 0 || r.Total() == 0 {
			t.Errorf("%s: %d requests failed of %d", node, r.Failed, r.Total())
		}
	}

	c.restoreWhileLeaderDies(t, file, leader)
}

func none(found string) error {
	if found != "" {
		return fmt.Errorf("still there: %s", strings.Fields(found))
	}
	return nil
}

// restoreWhileLeaderDies restores while the leader's process is killed, sooner or
// later: all or nothing has come back, on all servers.
func (c *devCluster) restoreWhileLeaderDies(t *testing.T, file, leader string) {
	whole := 0
	for i, after := range []time.Duration{20, 60, 90, 120, 160, 250} {
		marks := []string{fmt.Sprintf("mark-%d-a", i), fmt.Sprintf("mark-%d-b", i)}
		for _, m := range marks {
			c.kubectl(t, "create", "configmap", m)
		}
		leader, followers := c.followers(t)
		ctx, cancel := context.WithTimeout(t.Context(), 2*slower*time.Minute)
		said := make(chan error, 1)
		go func() {
			_, err := c.skiff(ctx, followers[i%len(followers)], "restore", "--live", file, "--yes")
			said <- err
		}()
		time.Sleep(after * time.Millisecond)
		c.kill(t, leader)
		err := <-said
		cancel()
		c.start(t, leader)
		c.healthy(t)
		left := map[string]int{}
		for server, client := range c.clients {
			for _, m := range marks {
				eventually(t, 30*time.Second, func() error {
					_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), m, metav1.GetOptions{})
					if apierrors.IsNotFound(err) {
						return nil
					}
					if err == nil {
						left[server]++
					}
					return err
				})
			}
		}
		restored := left[leader] == 0
		for server := range c.clients {
			if n := left[server]; n != left[leader] || n == 1 {
				t.Errorf("killed after %v: of %d objects there are %v", after*time.Millisecond, len(marks), left)
			}
		}
		if (err == nil) != restored && (err == nil || !strings.Contains(err.Error(), "not known")) {
			t.Errorf("killed after %v: restored: %v, and it was said: %v", after*time.Millisecond, restored, err)
		}
		if restored {
			whole++
		}
		t.Logf("leader killed after %v: restored: %v, %v", after*time.Millisecond, restored, err)
	}
	t.Logf("%d of the restores came about", whole)
	c.undisturbed(t)
}
