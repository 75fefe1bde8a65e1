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
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cmd/dev"
)

// remoteFlags are those of an administrator elsewhere, for servers in this order.
func (c *devCluster) remoteFlags(t *testing.T, servers ...string) []string {
	t.Helper()
	path, err := c.Kubeconfig(t.Context())
	must(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", path)
	must(t, err)
	dir := t.TempDir()
	var flags []string
	for flag, content := range map[string][]byte{"cacert": config.CAData, "cert": config.CertData, "key": config.KeyData} {
		file := filepath.Join(dir, flag)
		must(t, os.WriteFile(file, content, 0o600))
		flags = append(flags, "--"+flag, file)
	}
	var endpoints []string
	for _, s := range servers {
		for _, n := range c.status(t).Nodes {
			if n.Name == s {
				endpoints = append(endpoints, "https://"+n.Address+":6443")
			}
		}
	}
	return append(flags, "--endpoints", strings.Join(endpoints, ","))
}

// skiffHere runs the program on this host.
func skiffHere(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, shared.binary, args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("skiff %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// TestSnapshotCommands: while somebody writes, each server gives a snapshot that
// holds all that was acknowledged before, and nothing out of order; with and
// without a quorum.
func TestSnapshotCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*slower*time.Minute)
		defer cancel()
		if _, err := dev.Down(ctx, dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	d, err := dev.Up(t.Context(), dev.Config{Dir: dir, Binary: shared.binary, Servers: 3, ServerArgs: []string{"--disable-agent", "--snapshot-schedule=off"}})
	must(t, err)
	c := &devCluster{Cluster: d, clients: map[string]*kubernetes.Clientset{}}
	for _, n := range c.status(t).Nodes {
		c.clients[n.Name], err = d.Client(t.Context(), n.Name)
		must(t, err)
	}
	must(t, d.AwaitVoters(t.Context(), slower*time.Minute))
	c.kubectl(t, "create", "secret", "generic", "password", "--from-literal=word=hidden")
	leader, followers := c.followers(t)
	files := t.TempDir()
	key := filepath.Join(files, "cluster.key")
	must(t, keepKey(c, leader, key))

	acknowledged, end := c.writeOn(t, leader)
	eventually(t, 30*time.Second, func() error {
		if n := acknowledged.Load(); n < 10 {
			return fmt.Errorf("%d writes so far", n)
		}
		return nil
	})
	for _, server := range append([]string{leader}, followers...) {
		before := acknowledged.Load()
		file := filepath.Join(files, server+".snap")
		if _, err := skiffHere(t.Context(), append([]string{"snapshot", "save", file}, c.remoteFlags(t, server)...)...); err != nil {
			t.Fatal(err)
		}
		n := written(t, file)
		if n < before {
			t.Errorf("from %s: %d of %d acknowledged writes", server, n, before)
		}
		t.Logf("from %s: %d writes, %d were acknowledged before", server, n, before)
	}
	end()
	first, last := filepath.Join(files, leader+".snap"), filepath.Join(files, followers[1]+".snap")
	out, err := skiffHere(t.Context(), "snapshot", "diff", first, last, "--key-file", key, "-o", "json")
	must(t, err)
	var diff backup.Difference
	must(t, json.Unmarshal([]byte(out), &diff))
	added := 0
	for _, change := range diff.Added {
		if strings.HasPrefix(change.Name, "written-") {
			added++
		}
	}
	if want := written(t, last) - written(t, first); added != int(want) || len(diff.Removed) != 0 {
		t.Errorf("%d added and %d removed, want %d and none", added, len(diff.Removed), want)
	}

	t.Run("export", func(t *testing.T) {
		out, err := skiffHere(t.Context(), "snapshot", "export", last, "--key-file", key, "--unowned")
		must(t, err)
		if err := wants(out, "word: aGlkZGVu"); err != nil {
			t.Error("the Secret: ", err)
		}
		// The cluster takes it back as it is.
		out, err = skiffHere(t.Context(), "snapshot", "export", last, "-n", "kube-system", "--unowned")
		must(t, err)
		if out, err := c.try(out, "apply", "--dry-run=server", "-f", "-"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		out, err = skiffHere(t.Context(), "snapshot", "export", last)
		must(t, err)
		if strings.Contains(out, "kind: Secret") {
			t.Error("a Secret without the key")
		}
	})
	t.Run("a dead server", func(t *testing.T) {
		c.kill(t, leader)
		file := filepath.Join(files, "dead.snap")
		args := append([]string{"snapshot", "save", "--compress", file}, c.remoteFlags(t, leader, followers[0], followers[1])...)
		eventually(t, 30*time.Second, func() error { // the others may be electing
			_, err := skiffHere(t.Context(), args...)
			return err
		})
		if got, want := written(t, file), acknowledged.Load(); got != want {
			t.Errorf("%d writes, want %d", got, want)
		}
	})
	t.Run("no quorum", func(t *testing.T) {
		c.kill(t, followers[0])
		file := filepath.Join(files, "lonely.snap")
		args := append([]string{"snapshot", "save", file}, c.remoteFlags(t, followers[1])...)
		eventually(t, time.Minute, func() error {
			_, err := skiffHere(t.Context(), args...)
			if err == nil {
				_ = os.Remove(file)
				return fmt.Errorf("saved without a quorum")
			}
			return wants(err.Error(), "the server answered 503")
		})
		if _, err := skiffHere(t.Context(), append(args, "--without-quorum")...); err != nil {
			t.Fatal(err)
		}
		if got, want := written(t, file), acknowledged.Load(); got != want {
			t.Errorf("%d writes, want %d", got, want)
		}
	})
}

// keepKey copies the cluster key of a server.
func keepKey(c *devCluster, server, path string) error {
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "cat $SKIFF_DATA_DIR/pki/cluster.key")
	cmd.Stdout = &out
	if err := c.Exec(server, cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o600)
}

// writeOn writes one ConfigMap after the other until end is called.
func (c *devCluster) writeOn(t *testing.T, server string) (acknowledged *atomic.Int64, end func()) {
	acknowledged = new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			var err error
			for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // a leader may be elected
				err = c.write(context.WithoutCancel(ctx), server, fmt.Sprintf("written-%06d", i), time.Minute)
				if err == nil || apierrors.IsAlreadyExists(err) || time.Since(began) > slower*time.Minute {
					break
				}
			}
			if err != nil && !apierrors.IsAlreadyExists(err) { // by a try of which it was unknown
				t.Errorf("write %d: %v", i, err)
				return
			}
			acknowledged.Store(int64(i) + 1)
		}
	}()
	return acknowledged, func() {
		cancel()
		<-done
	}
}

// written counts the writes in a snapshot, which must be the first so many.
func written(t *testing.T, file string) int64 {
	t.Helper()
	out, err := skiffHere(t.Context(), "snapshot", "export", file, "--kind", "ConfigMap", "-n", metav1.NamespaceDefault, "-o", "json")
	must(t, err)
	var list struct {
		Items []metav1.PartialObjectMetadata
	}
	must(t, json.Unmarshal([]byte(out), &list))
	var n int64
	for _, i := range list.Items {
		if !strings.HasPrefix(i.Name, "written-") {
			continue
		}
		if want := fmt.Sprintf("written-%06d", n); i.Name != want {
			t.Fatalf("%s: %s after %d others: one is missing", file, i.Name, n)
		}
		n++
	}
	return n
}
