package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/damage"
)

// host is a server of this process, without pods, at ports of its own.
type host struct {
	args []string
	dir  string
}

func newHost(t *testing.T) host {
	t.Helper()
	h := host{dir: filepath.Join(t.TempDir(), "data")}
	h.args = []string{"--name", "one", "--disable-agent", "--advertise-address", "127.0.0.1", "--bind-address", "127.0.0.1"}
	ports := unusedPorts(t, 3)
	for i, f := range []string{"--api-port", "--raft-port", "--gossip-port"} {
		h.args = append(h.args, f, fmt.Sprint(ports[i]))
	}
	return h
}

// said hears of log messages.
type said struct {
	slog.Handler
	hear func(string)
}

func (s said) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (s said) Handle(_ context.Context, r slog.Record) error {
	s.hear(r.Message)
	return nil
}
func (s said) WithAttrs([]slog.Attr) slog.Handler { return s }
func (s said) WithGroup(string) slog.Handler      { return s }

// run runs a server on dir until while returns, which is called when its API is
// ready, and gives what the server ended with.
func (h host) run(t *testing.T, dir string, while func()) error {
	t.Helper()
	cmd := serverCommand()
	var o serverOptions
	cmd.Action = func(c *cli.Context) (err error) {
		o, err = parseServer(c)
		return err
	}
	app := &cli.App{Commands: []*cli.Command{cmd}}
	if err := app.Run(append([]string{"skiff", "server", "--data-dir", dir}, h.args...)); err != nil {
		return err
	}
	ready := make(chan struct{}, 1)
	o.logger = slog.New(said{slog.DiscardHandler, func(m string) {
		if m == "the API is ready" {
			ready <- struct{}{}
		}
	}})
	o.cluster.Logger = o.logger
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- runServer(ctx, o) }()
	select {
	case <-ready:
		while()
		cancel()
		return <-ended
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		cancel()
		return errors.Join(errNotReady, <-ended)
	}
}

var errNotReady = errors.New("it does not become ready, and says nothing")

func (h host) client(t *testing.T) *rest.Config {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(h.dir, "admin.kubeconfig")) // that of a copy may be damaged
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// saved is a snapshot of the running server.
func (h host) saved(t *testing.T) []byte {
	t.Helper()
	c := h.client(t)
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(c.Host + cluster.SnapshotPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// objects are the users' part of the state, as a snapshot of the running server
// has it.
func (h host) objects(t *testing.T) string {
	t.Helper()
	b := h.saved(t)
	r, err := fsm.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%v: %.200s", err, b)
	}
	var out strings.Builder
	fmt.Fprintln(&out, r.Header().ClusterID)
	for {
		kv, err := r.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(kv.Key, "/default/mine-") {
			fmt.Fprintf(&out, "%s %x %d\n", kv.Key, sha256.Sum256(kv.Value), kv.ModRevision)
		}
	}
}

func (h host) write(t *testing.T, from, to int) {
	t.Helper()
	client, err := kubernetes.NewForConfig(h.client(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i++ {
		meta := metav1.ObjectMeta{Name: fmt.Sprintf("mine-%d", i)}
		if _, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// copyDir copies a data directory, that only its owner can read.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	err := os.CopyFS(to, os.DirFS(from))
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.Chmod(path, 0o600)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fileSums are the hashes of all files below dir, but those that hold nothing.
func fileSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "lock" || d.Name() == "reserve" {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var commandInText = regexp.MustCompile("skiff((?: [a-z]+)+)")

// namesCommand says whether a text tells to run a command that exists.
func namesCommand(text string) error {
	app := newApp()
	found := false
	for _, m := range commandInText.FindAllStringSubmatch(text, -1) {
		list, words := app.Commands, strings.Fields(m[1])
		if i := slices.IndexFunc(list, func(c *cli.Command) bool { return c.Name == words[0] }); i >= 0 {
			found = true
			if list = list[i].Subcommands; len(list) > 0 && !slices.ContainsFunc(list, func(c *cli.Command) bool { return len(words) > 1 && c.Name == words[1] }) {
				return fmt.Errorf("there is no command %q", m[0])
			}
		} else {
			return fmt.Errorf("there is no command %q", m[0])
		}
	}
	if !found {
		return errors.New("no command is named")
	}
	return nil
}

// directories are damages to whole directories.
var directories = []damage.Case{
	{File: "raft", What: "deleted with all in it", Do: os.RemoveAll},
	{File: "raft/snapshots", What: "deleted with all in it", Do: os.RemoveAll},
	{File: "pki", What: "deleted with all in it", Do: os.RemoveAll},
}

// damageServer starts a server on copies of a data directory with each of the
// damages that pick wants: it refuses, with the name of the file and a command that
// exists, and leaves everything as it is; or it has everything.
//
// restored: the data directory was made from a snapshot, so it is in a later epoch.
func damageServer(t *testing.T, restored bool, pick func(i int, c damage.Case) bool) {
	h := newHost(t)
	if err := h.run(t, h.dir, func() { h.write(t, 0, 3) }); err != nil {
		t.Fatal(err)
	}
	older := filepath.Join(t.TempDir(), "older")
	copyDir(t, h.dir, older)
	var want string
	if err := h.run(t, h.dir, func() { h.write(t, 3, 6); want = h.objects(t) }); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(want, "\n"); n != 13 {
		t.Fatalf("the state has %d lines:\n%s", n, want)
	}
	if restored {
		want = h.restore(t)
	}
	if err := os.Remove(filepath.Join(h.dir, "raft", "reserve")); err != nil {
		t.Fatal(err)
	}
	cases, err := damage.Cases(h.dir, older, func(file string) bool { return filepath.Base(file) == "lock" })
	if err != nil {
		t.Fatal(err)
	}
	type outcome struct{ refused, whole int }
	table := map[string]*outcome{}
	var files []string
	for i, d := range append(cases, directories...) {
		if !pick(i, d) {
			continue
		}
		dir := filepath.Join(t.TempDir(), "data")
		copyDir(t, h.dir, dir)
		if err := d.Apply(dir); err != nil {
			t.Fatal(err)
		}
		before := fileSums(t, dir)
		var got string
		err := h.run(t, dir, func() { got = h.objects(t) })
		if table[d.File] == nil {
			table[d.File] = &outcome{}
			files = append(files, d.File)
		}
		if err == nil {
			table[d.File].whole++
			if got != want {
				t.Errorf("%s: it starts with another state:\n%s", d, got)
			}
		} else {
			table[d.File].refused++
			if !strings.Contains(err.Error(), filepath.Base(d.File)) {
				t.Errorf("%s: the error does not name the file: %v", d, err)
			} else if cerr := namesCommand(err.Error()); cerr != nil && !strings.Contains(err.Error(), "put that ID back into") {
				t.Errorf("%s: %v: %v", d, cerr, err)
			}
			after := fileSums(t, dir)
			for path, sum := range before {
				if after[path] != sum {
					t.Errorf("%s: the refused start has changed %s (%v)", d, path, err)
				}
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		t.Logf("%-40s %3d refused, %3d with everything", f, table[f].refused, table[f].whole)
	}
}

// restore goes on with a data directory that was made from a snapshot.
func (h *host) restore(t *testing.T) (want string) {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "file.snap"), filepath.Join(t.TempDir(), "restored")
	keys, err := restoreKeys(filepath.Join(h.dir, "pki", "cluster.key"), "")
	if err == nil {
		err = h.run(t, h.dir, func() {
			if err := os.WriteFile(file, h.saved(t), 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err == nil {
		_, err = backup.Restore(t.Context(), file, dir, backup.RestoreOptions{Keys: keys})
	}
	if err != nil {
		t.Fatal(err)
	}
	h.dir = dir
	if err := h.run(t, dir, func() { want = h.objects(t) }); err != nil {
		t.Fatal(err)
	}
	return want
}

// TestDamagedDataDir loses each of the files; the integration tests do more.
func TestDamagedDataDir(t *testing.T) {
	damageServer(t, false, func(_ int, c damage.Case) bool { return strings.HasPrefix(c.What, "deleted") })
}
