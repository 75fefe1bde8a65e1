//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const counterApp = `apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      containers:
      - name: redis
        image: skiff.test/redis:7.0
        ports: [{containerPort: 6379}]
        readinessProbe: {tcpSocket: {port: 6379}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec:
  selector: {app: redis}
  ports: [{port: 6379}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: counter}
spec:
  replicas: 2
  selector: {matchLabels: {app: counter}}
  template:
    metadata: {labels: {app: counter}}
    spec:
      containers:
      - name: counter
        image: skiff.test/counter:v1
        env: [{name: REDIS_HOST, value: redis}]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: counter}
spec:
  type: NodePort
  selector: {app: counter}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
`

// visit asks the counter once, over a connection of its own.
func visit(url string) (string, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), nil
}

// answering waits until a request is answered: pods are ready, and endpoints of
// their services, before the kernel sends them any.
func answering(t *testing.T, url string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		_, err := visit(url)
		return err
	})
}

// pause between two requests of a client: without one a fast machine fills the
// kernel's tables of connections, which remember each for minutes.
const pause = 2 * time.Millisecond

// load asks all the time until stop; it counts answers and keeps failures.
type load struct {
	ok       atomic.Int64
	mu       sync.Mutex
	failures []string
	stop     context.CancelFunc
	done     sync.WaitGroup
}

func startLoad(url string, clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel}
	for range clients {
		l.done.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(pause) {
				if _, err := visit(url); err != nil {
					l.mu.Lock()
					l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+err.Error())
					l.mu.Unlock()
				} else {
					l.ok.Add(1)
				}
			}
		})
	}
	return l
}

func (l *load) end(t *testing.T, during string) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%s: %d requests answered, %d failed", during, l.ok.Load(), len(l.failures))
	if l.ok.Load() == 0 || len(l.failures) > 0 {
		t.Errorf("%s: requests failed:\n%s", during, strings.Join(l.failures[:min(5, len(l.failures))], "\n"))
	}
}

// TestCounterApplication is the life of an application, from its first apply to
// the restore of the whole cluster from a snapshot.
func TestCounterApplication(t *testing.T) {
	s := ownServer(t, "skiff-app", 2)
	url := "http://" + s.Host.Addr + ":30081/"
	s.apply(t, counterApp)
	s.kubectl(t, "rollout", "status", "deployment/redis", "--timeout=240s")
	s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
	eventually(t, 10*time.Second, func() error {
		text, err := visit(url)
		if err != nil {
			return err
		}
		return wants(text, "release v1")
	})

	// A pod of the release before may be an endpoint until it has ended.
	answers := func(release string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			for range 20 {
				text, err := visit(url)
				if err == nil {
					err = wants(text, release)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}

	t.Run("scale", func(t *testing.T) {
		s.kubectl(t, "scale", "deployment/counter", "--replicas=4")
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
		hosts := map[string]bool{}
		eventually(t, 20*time.Second, func() error {
			text, err := visit(url)
			if err != nil {
				return err
			}
			hosts[text[strings.LastIndex(text, "host "):]] = true
			if len(hosts) < 4 {
				return fmt.Errorf("%d replicas have answered", len(hosts))
			}
			return nil
		})
	})

	t.Run("roll out and back under load", func(t *testing.T) {
		l := startLoad(url, 4)
		s.kubectl(t, "set", "image", "deployment/counter", "counter=skiff.test/counter:v2")
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
		l.end(t, "roll-out")
		answers("release v2")
		if err := wants(s.kubectl(t, "rollout", "history", "deployment/counter"), "2"); err != nil {
			t.Error(err)
		}
		l = startLoad(url, 4)
		s.kubectl(t, "rollout", "undo", "deployment/counter")
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
		l.end(t, "roll-back")
		answers("release v1")
	})

	settled := func(t *testing.T) {
		eventually(t, 30*time.Second, func() error { // terminating pods are gone
			out := s.kubectl(t, "get", "pods", "-l", "app=counter", "--no-headers")
			if strings.Count(out, "Running") != 4 || strings.Count(out, "\n") != 4 {
				return fmt.Errorf("pods:\n%s", out)
			}
			return nil
		})
	}

	t.Run("a deleted pod is replaced", func(t *testing.T) {
		settled(t)
		victim := s.kubectl(t, "get", "pods", "-l", "app=counter", "-o", "jsonpath={.items[0].metadata.name}")
		s.kubectl(t, "delete", "pod", victim)
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
		eventually(t, 30*time.Second, func() error { // the deployment may not have seen it yet
			if names := s.kubectl(t, "get", "pods", "-l", "app=counter", "-o", "name"); strings.Contains(names, victim) || strings.Count(names, "pod/") < 4 {
				return fmt.Errorf("pods after the deletion of %s:\n%s", victim, names)
			}
			return nil
		})
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
	})

	t.Run("restored from a snapshot", func(t *testing.T) {
		const what = "deployments,services,configmaps,secrets,serviceaccounts,clusterroles"
		settled(t)
		names := func() string {
			return s.kubectl(t, "get", what, "-A", "-o", `jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}/{.metadata.uid}{"\n"}{end}`)
		}
		before := names()
		file := filepath.Join(t.TempDir(), "all.snapshot")
		ctx := context.Background()
		for _, args := range [][]string{{"snapshot", "save", "--data-dir", s.DataDir, file}, {"snapshot", "verify", file}, {"snapshot", "status", file}} {
			if _, err := s.Skiff(ctx, args...); err != nil {
				t.Fatal(err)
			}
		}
		key := keepClusterKey(t, s.DataDir)
		// Everything on the host goes, the data directory first of all.
		if err := s.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Skiff(ctx, "snapshot", "restore", "--data-dir", s.DataDir, file); err == nil || !strings.Contains(err.Error(), "--key-file") {
			t.Errorf("a restore without the cluster key: %v", err)
		}
		if _, err := s.Skiff(ctx, "snapshot", "restore", "--data-dir", s.DataDir, "--key-file", key, file); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Skiff(ctx, "snapshot", "restore", "--data-dir", s.DataDir, "--key-file", key, file); err == nil {
			t.Error("a second restore overwrote the data directory")
		}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
		s.kubectl(t, "rollout", "status", "deployment/redis", "--timeout=240s")
		if after := names(); after != before {
			t.Errorf("objects before:\n%s\nand after the restore:\n%s", before, after)
		}
		eventually(t, 30*time.Second, func() error {
			text, err := visit(url)
			if err != nil {
				return err
			}
			return wants(text, "release v1")
		})
	})
}
