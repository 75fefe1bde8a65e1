// Command demo shows skiff at work: three servers and an agent on this machine
// (see package dev), an application behind a Service, the leader killed while it
// is asked without a pause, a node without power whose pods are replaced, a
// snapshot. It cleans up after itself; with -keep it leaves all of it running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skiff-sh/skiff/cmd/dev"
)

const manifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 4
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: hello}}}
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
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := demo(ctx, *binary, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

// show is a demo under way.
type show struct {
	*dev.Cluster
	binary, kubeconfig string
}

func demo(ctx context.Context, binary string, keep bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and network namespaces need root: try sudo make demo")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "skiff-demo-")
	if err != nil {
		return err
	}
	dir := filepath.Join(tmp, "cluster")
	defer func() {
		if keep && err == nil {
			fmt.Printf("\nLeft running. Talk to it with:\n  export KUBECONFIG=%s/kubeconfig\n  %s kubectl get pods\nRemove it with:\n  %s dev down --data-dir %s\n", dir, binary, binary, dir)
			return
		}
		say("skiff dev down")
		clean, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, downErr := dev.Down(clean, dir)
		err = errors.Join(err, downErr, os.RemoveAll(tmp))
	}()
	say("skiff dev up --servers 3 --agents 1 --server-arg=--pod-eviction-timeout=5s")
	c, err := dev.Up(ctx, dev.Config{Dir: dir, Binary: binary, Servers: 3, Agents: 1, ServerArgs: []string{"--pod-eviction-timeout=5s"},
		Progress: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
	if err != nil {
		return err
	}
	s := &show{Cluster: c, binary: binary}
	if s.kubeconfig, err = c.Kubeconfig(ctx); err != nil {
		return err
	}
	began := time.Now()
	for _, scene := range []func(context.Context) error{s.application, s.leader, s.node, s.snapshot} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("\nAll of that took %.0f s.\n", time.Since(began).Seconds())
	return nil
}

// application starts the application and lets it answer.
func (s *show) application(ctx context.Context) error {
	say("skiff kubectl apply -f hello.yaml")
	began := time.Now()
	cmd := s.kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if err := run(cmd); err != nil {
		return err
	}
	if err := s.rolledOut(ctx); err != nil {
		return err
	}
	fmt.Printf("all replicas ready after %.1f s\n", time.Since(began).Seconds())
	if err := s.print(ctx, "get", "nodes,pods,services", "-o", "wide"); err != nil {
		return err
	}
	url, err := s.url("agent-1")
	if err != nil {
		return err
	}
	say("curl %s", url)
	return answers(ctx, url, 4)
}

// leader kills it while writes and requests go on.
func (s *show) leader(ctx context.Context) error {
	st, err := s.Members(ctx)
	if err != nil {
		return err
	}
	if err := s.members(ctx, st.Leader); err != nil {
		return err
	}
	url, err := s.url("agent-1")
	if err != nil {
		return err
	}
	t := startTraffic(url)
	time.Sleep(500 * time.Millisecond)
	say("skiff dev kill %s        # the leader, kill -9", st.Leader)
	killed := time.Now()
	if err := s.Kill(ctx, st.Leader, dev.KillOptions{}); err != nil {
		return err
	}
	gap, err := s.firstWrite(ctx, killed)
	if err != nil {
		return err
	}
	fmt.Printf("writes work again after %.2f s\n", gap.Seconds())
	time.Sleep(time.Second)
	ok, failed := t.end()
	fmt.Printf("meanwhile the Service answered %d requests, %d failed\n", ok, len(failed))
	if len(failed) > 0 {
		return fmt.Errorf("a request failed: %s", failed[0])
	}
	now, err := s.Members(ctx)
	if err != nil {
		return err
	}
	if err := s.members(ctx, now.Leader); err != nil {
		return err
	}
	say("skiff dev start %s", st.Leader)
	if err := s.Start(ctx, st.Leader); err != nil {
		return err
	}
	return s.AwaitVoters(ctx, time.Minute)
}

// node cuts the power of one; its pods are replaced.
func (s *show) node(ctx context.Context) error {
	say("skiff dev kill agent-1 --host        # a power cut: its pods are gone")
	cut := time.Now()
	if err := s.Kill(ctx, "agent-1", dev.KillOptions{Host: true}); err != nil {
		return err
	}
	gone, replaced, err := s.awaitReplaced(ctx, "agent-1", cut)
	if err != nil {
		return err
	}
	fmt.Printf("endpoints on it gone after %.1f s, its pods replaced and ready after %.1f s\n", gone.Seconds(), replaced.Seconds())
	if err := s.print(ctx, "get", "nodes,pods", "-o", "wide"); err != nil {
		return err
	}
	say("skiff dev start agent-1")
	if err := s.Start(ctx, "agent-1"); err != nil {
		return err
	}
	if err := s.AwaitReady(ctx, time.Minute, "agent-1"); err != nil {
		return err
	}
	fmt.Println("agent-1 is ready again")
	return nil
}

// snapshot saves everything and checks it.
func (s *show) snapshot(ctx context.Context) error {
	say("skiff snapshot save demo.snapshot; skiff snapshot verify demo.snapshot")
	file := filepath.Join(filepath.Dir(s.Dir()), "demo.snapshot")
	for _, args := range [][]string{{"snapshot", "save", file}, {"snapshot", "verify", file}} {
		out, err := s.Output(ctx, "server-1", "skiff", args...)
		if err != nil {
			return err
		}
		fmt.Print(out)
	}
	return nil
}

// members prints them as a server that runs sees them.
func (s *show) members(ctx context.Context, on string) error {
	say("skiff member list")
	out, err := s.Output(ctx, on, "skiff", "member", "list")
	fmt.Print(out)
	return err
}

func (s *show) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.binary, append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
	return cmd
}

func (s *show) print(ctx context.Context, args ...string) error {
	say("skiff kubectl %s", strings.Join(args, " "))
	cmd := s.kubectl(ctx, args...)
	cmd.Stdout = os.Stdout
	return run(cmd)
}

func (s *show) rolledOut(ctx context.Context) error {
	return run(s.kubectl(ctx, "rollout", "status", "deployment/hello", "--timeout=60s"))
}

// url is that of the Service on a node.
func (s *show) url(node string) (string, error) {
	st, err := s.Status()
	if err != nil {
		return "", err
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return "http://" + n.Address + ":30080/", nil
		}
	}
	return "", fmt.Errorf("there is no node %s", node)
}

func run(cmd *exec.Cmd) error {
	var problem strings.Builder
	cmd.Stderr = &problem
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(problem.String()))
	}
	return nil
}

func say(format string, args ...any) { fmt.Printf("\n\x1b[1m$ "+format+"\x1b[0m\n", args...) }
