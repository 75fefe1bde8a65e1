package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

// benchOperations measures what takes long when it is done by hand: the upgrade
// of three servers while a service is asked, and the way from the loss of all of
// them to the first write on a bare host.
func benchOperations(ctx context.Context, binary string) (rows []row, err error) {
	parent, err := os.MkdirTemp("", "skiff-bench-operations-")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(parent, "cluster")
	defer func() {
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, downErr := dev.Down(clean, dir)
		err = errors.Join(err, downErr, os.RemoveAll(parent))
	}()
	next, err := laterProgram(ctx, binary, parent)
	if err != nil {
		return nil, err
	}
	c, err := dev.Up(ctx, dev.Config{Dir: dir, Binary: binary, Servers: 3})
	if err != nil {
		return nil, fmt.Errorf("cluster of three servers: %w", err)
	}
	upgraded, err := upgradeServers(ctx, c, next)
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	lost, err := loseAll(ctx, c, parent)
	if err != nil {
		return upgraded, fmt.Errorf("loss of all servers: %w", err)
	}
	return append(upgraded, lost...), nil
}

// laterProgram builds the present tree as the version after that of binary.
func laterProgram(ctx context.Context, binary, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "version", "-o", "json").Output()
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", binary, err)
	}
	var now struct{ Skiff string }
	if err := json.Unmarshal(out, &now); err != nil {
		return "", err
	}
	parts := strings.SplitN(strings.SplitN(now.Skiff, "-", 2)[0], ".", 3)
	if len(parts) != 3 {
		return "", fmt.Errorf("%s is version %q: want MAJOR.MINOR.PATCH", binary, now.Skiff)
	}
	minor, err := strconv.Atoi(parts[1])
	if err != nil {
		return "", fmt.Errorf("version %q: %w", now.Skiff, err)
	}
	path := filepath.Join(dir, "skiff-next")
	cmd := exec.CommandContext(ctx, "make", "build", fmt.Sprintf("VERSION=%s.%d.0", parts[0], minor+1), "BIN="+path)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", path, err, b)
	}
	return path, nil
}

const everyRequest = 5 * time.Millisecond

// upgradeServers rolls a program out while each node's port of a service is
// asked.
func upgradeServers(ctx context.Context, c *dev.Cluster, program string) ([]row, error) {
	b := &clusterBench{Cluster: c}
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	for _, n := range st.Nodes {
		b.nodes = append(b.nodes, n.Name)
	}
	client, err := c.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := b.spreadOut(ctx, client); err != nil {
		return nil, err
	}
	service, err := client.CoreV1().Services(namespace).Get(ctx, spread, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	service.Spec.Type = corev1.ServiceTypeNodePort
	if service, err = client.CoreV1().Services(namespace).Update(ctx, service, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	err = until(ctx, func() (bool, error) { n, _, err := b.running(ctx, client, ""); return n == 2*len(b.nodes), err })
	if err != nil {
		return nil, err
	}
	if err := b.healthy(ctx); err != nil {
		return nil, err
	}
	var loads []*traffic.Load
	for _, n := range st.Nodes {
		loads = append(loads, traffic.Start(traffic.Config{URL: fmt.Sprintf("http://%s:%d/", n.Address, service.Spec.Ports[0].NodePort), Every: everyRequest}))
	}
	began := time.Now()
	err = skiffOn(ctx, c, "upgrade", "apply", "--binary", program, "--yes")
	took := time.Since(began)
	asked, failed := 0, 0
	for _, l := range loads {
		r := l.Stop()
		asked += r.Total() + r.Failed
		failed += r.Failed
		for _, f := range r.Failures {
			fmt.Fprintln(os.Stderr, "a request failed:", f)
		}
	}
	if err != nil {
		return nil, err
	}
	return []row{
		{What: "three servers upgraded, from apply to the end", Value: took.Seconds(), Unit: "s", Budget: 60},
		{What: fmt.Sprintf("requests that failed meanwhile, of %d", asked), Value: float64(failed), Unit: "requests"},
	}, nil
}

// skiffOn runs skiff on this machine as the administrator of the cluster.
func skiffOn(ctx context.Context, c *dev.Cluster, args ...string) error {
	kubeconfig, err := c.Kubeconfig(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, c.Program("server-1"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("skiff %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return nil
}

// loseAll takes a snapshot, and the power and disks of all servers, and measures
// how long a bare host needs from the snapshot to a write.
func loseAll(ctx context.Context, c *dev.Cluster, dir string) ([]row, error) {
	const host = "server-1"
	file, key := filepath.Join(dir, "all.snap"), filepath.Join(dir, "cluster.key")
	if err := skiffOn(ctx, c, "snapshot", "save", file); err != nil {
		return nil, err
	}
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	data := ""
	for _, n := range st.Nodes {
		if n.Name == host {
			data = n.DataDir
		}
	}
	if _, err := c.Output(ctx, host, "cp", filepath.Join(data, "pki", "cluster.key"), key); err != nil {
		return nil, err
	}
	for _, n := range st.Nodes {
		if err := errors.Join(c.Kill(ctx, n.Name, dev.KillOptions{Host: true}), c.Wipe(ctx, n.Name)); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if _, err := c.Output(ctx, host, "skiff", "snapshot", "restore", file, "--data-dir", data, "--key-file", key); err != nil {
		return nil, err
	}
	restored := time.Since(began)
	if err := c.Start(ctx, host); err != nil {
		return nil, err
	}
	err = until(ctx, func() (bool, error) {
		cfg, err := c.RESTConfig(ctx, host)
		if err != nil {
			return false, err
		}
		cfg.Timeout = time.Second
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return false, err
		}
		_, err = client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after-the-loss"}}, metav1.CreateOptions{})
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	return []row{
		{What: "all servers lost: snapshot -> data directory on a bare host", Value: restored.Seconds(), Unit: "s"},
		{What: "all servers lost: snapshot -> first write on a bare host", Value: time.Since(began).Seconds(), Unit: "s", Budget: 10},
	}, nil
}
