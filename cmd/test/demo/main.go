// Command demo shows skiff at work: a server on a throw-away host, an
// application with three replicas behind a Service, a pod that is killed and
// comes back, a snapshot. It cleans up after itself; with -keep it leaves all
// of it running.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skiff-sh/skiff/cmd/test/host"
)

const manifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 3
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
      - name: hello
        image: skiff.local/hello:v1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func main() {
	binary := flag.String("skiff", "bin/skiff", "the binary to show")
	keep := flag.Bool("keep", false, "leave everything running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := demo(ctx, *binary, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

func demo(ctx context.Context, binary string, keep bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and network namespaces need root: try sudo make demo")
	}
	dir, err := os.MkdirTemp("", "skiff-demo-")
	if err != nil {
		return err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	h, err := host.New("skiff-demo", 250)
	if err != nil {
		return fmt.Errorf("%w (is another demo running? remove it with: ip netns delete skiff-demo)", err)
	}
	log := &bytes.Buffer{}
	s := &host.Server{Host: h, Binary: binary, DataDir: filepath.Join(dir, "data"), Log: log}
	if keep {
		// The server outlives us, so its log cannot be a pipe to us.
		f, err := os.Create(filepath.Join(dir, "skiff.log"))
		if err != nil {
			return err
		}
		defer f.Close()
		s.Log = f
	}
	defer func() {
		if keep && err == nil {
			return
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "--- the server's last words\n%s\n", tail(log.String(), 30))
		}
		say("cleaning up")
		clean, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, s.Reset(clean), h.Close(), os.RemoveAll(dir))
	}()
	if err := show(ctx, s, filepath.Join(dir, "demo.snapshot")); err != nil {
		return err
	}
	if keep {
		fmt.Printf("\nLeft running. Talk to it with:\n  export KUBECONFIG=%s\n  %s kubectl get pods\nRemove it with:\n  kill %d; ip netns exec %s %s reset --yes --delete-data --data-dir %s; ip netns delete %s\n",
			s.Kubeconfig(), binary, s.PID(), h.Name, binary, s.DataDir, h.Name)
	}
	return nil
}

func show(ctx context.Context, s *host.Server, snapshot string) error {
	say("skiff server (on a host of its own: %s)", s.Host.Addr)
	begin := time.Now()
	if err := s.Start(); err != nil {
		return err
	}
	if _, err := s.WaitAPI(ctx); err != nil {
		return err
	}
	api := time.Since(begin)
	if err := s.WaitNode(ctx); err != nil {
		return err
	}
	fmt.Printf("API ready after %.2f s, node Ready after %.2f s\n", api.Seconds(), time.Since(begin).Seconds())
	begin = time.Now()
	say("kubectl apply -f hello.yaml")
	if err := s.Apply(ctx, manifest); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "rollout", "status", "deployment/hello", "--timeout=60s"); err != nil {
		return err
	}
	fmt.Printf("three replicas ready after %.2f s\n", time.Since(begin).Seconds())
	if err := get(ctx, s); err != nil {
		return err
	}
	url := "http://" + s.Host.Addr + ":30080/"
	say("curl %s", url)
	if err := answers(ctx, url); err != nil {
		return err
	}
	name, err := s.Kubectl(ctx, "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	say("kubectl delete pod %s --now", name)
	if _, err := s.Kubectl(ctx, "delete", "pod", name, "--now"); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "rollout", "status", "deployment/hello", "--timeout=60s"); err != nil {
		return err
	}
	if err := get(ctx, s); err != nil {
		return err
	}
	say("skiff snapshot save; skiff snapshot verify")
	for _, args := range [][]string{
		{"snapshot", "save", "--data-dir", s.DataDir, snapshot},
		{"snapshot", "verify", snapshot},
	} {
		out, err := s.Skiff(ctx, args...)
		if err != nil {
			return err
		}
		fmt.Print(out)
	}
	return nil
}

func get(ctx context.Context, s *host.Server) error {
	say("kubectl get nodes,deployments,pods,services -o wide")
	out, err := s.Kubectl(ctx, "get", "nodes,deployments,pods,services", "-o", "wide")
	fmt.Print(out)
	return err
}

// answers asks until three replicas have answered.
func answers(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	pods := map[string]bool{}
	for range 200 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answered %s: %v", url, resp.Status, err)
		}
		text := strings.TrimSpace(string(b))
		who := text
		if i := strings.Index(text, "hello-"); i >= 0 {
			who = strings.FieldsFunc(text[i:], func(r rune) bool { return r == ' ' || r == ',' || r == '"' || r == '\n' })[0]
		}
		if !pods[who] {
			pods[who] = true
			fmt.Println(text)
		}
		if len(pods) == 3 {
			return nil
		}
	}
	return fmt.Errorf("only %d of 3 replicas answered", len(pods))
}

func say(format string, args ...any) { fmt.Printf("\n\x1b[1m$ "+format+"\x1b[0m\n", args...) }

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
