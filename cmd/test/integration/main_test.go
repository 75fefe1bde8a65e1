//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cmd/test/host"
)

// shared is what all tests use: the binary, the images and one server with the
// images loaded. Tests that kill or restore servers make their own.
var shared struct {
	binary, images string
	server         *server
}

func TestMain(m *testing.M) {
	code, err := mainErr(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func mainErr(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("containers and network namespaces need root")
	}
	if shared.binary, err = filepath.Abs("../../../bin/skiff"); err != nil {
		return 1, err
	}
	if _, err := os.Stat(shared.binary); err != nil {
		return 1, fmt.Errorf("%w: run make build first", err)
	}
	// Nodes that lie in folders share this machine's disk, and how full that is says
	// nothing about skiff: they keep their pods.
	if err := os.Setenv("SKIFF_EVICTION_HARD", "memory.available<100Mi"); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "skiff-integration-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	shared.images = filepath.Join(dir, "images")
	if out, err := exec.Command("go", "run", "github.com/skiff-sh/skiff/cmd/test/images", "-out", shared.images).CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build images: %w\n%s", err, out)
	}
	s, err := newServer("skiff-it", 1, filepath.Join(dir, "data"))
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	if err := s.start(); err != nil {
		return 1, fmt.Errorf("%w\n%s", err, s.log.tail(60))
	}
	shared.server = s
	code = m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "--- the shared server's last words\n%s\n", s.log.tail(80))
	}
	return code, nil
}

// server is a host.Server with its host and log.
type server struct {
	*host.Server
	log *logBuffer
}

// logBuffer keeps a server's output; safe for concurrent use.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(l.b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func newServer(name string, n uint8, dataDir string, args ...string) (*server, error) {
	h, err := host.New(name, n)
	if err != nil {
		return nil, err
	}
	log := &logBuffer{}
	// The machine's disk may be as full as it likes.
	return &server{&host.Server{Host: h, Binary: shared.binary, DataDir: dataDir, Log: log,
		Args: append([]string{"--image-dir", shared.images, "--eviction-hard", "memory.available<100Mi"}, args...)}, log}, nil
}

// slower says how many times as long as the tests' authors thought things may
// take on a machine that is slower, or does something else meanwhile.
const slower = 4

// start starts the server and waits for its node.
func (s *server) start() error {
	if err := s.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
	defer cancel()
	if _, err := s.WaitAPI(ctx); err != nil {
		return err
	}
	return s.WaitNode(ctx)
}

// remove removes the server and its host.
func (s *server) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*slower*time.Minute)
	defer cancel()
	return errors.Join(s.Reset(ctx), s.Host.Close())
}

// ownServer is a server for one test.
func ownServer(t *testing.T, name string, n uint8, args ...string) *server {
	t.Helper()
	s, err := newServer(name, n, filepath.Join(t.TempDir(), "data"), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's last words:\n%s", s.log.tail(60))
		}
		if err := s.remove(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// stock is the machine's own kubectl, or ours where there is none.
func stock(s *server) []string {
	if path, err := exec.LookPath("kubectl"); err == nil {
		return []string{path, "--kubeconfig", s.Kubeconfig()}
	}
	return []string{shared.binary, "kubectl", "--kubeconfig", s.Kubeconfig()}
}

// try runs kubectl and gives its standard output and, on failure, an error
// with its standard error.
func (s *server) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	k := stock(s)
	cmd := exec.CommandContext(ctx, k[0], append(k[1:], args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// kubectl is try that must succeed.
func (s *server) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try("", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// apply is kubectl apply of a manifest that must succeed.
func (s *server) apply(t *testing.T, manifest string) {
	t.Helper()
	if out, err := s.try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// namespace makes one for the test and deletes it in the end.
func (s *server) namespace(t *testing.T, name string) {
	t.Helper()
	s.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.try("", "-n", name, "get", "all,events", "-o", "wide")
			t.Logf("namespace %s:\n%s", name, out)
		}
		if out, err := s.try("", "delete", "namespace", name, "--timeout=240s"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// eventually repeats check until it gives nil; the last error, after slower times
// the limit, fails the test.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	eventuallyAt(t, limit, 100*time.Millisecond, check)
}

// eventuallyAt is eventually with its own rhythm.
func eventuallyAt(t *testing.T, limit, rhythm time.Duration, check func() error) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(rhythm) {
		err := check()
		if err == nil {
			return
		}
		if took := time.Since(began); took > slower*limit {
			t.Fatalf("after %v: %v", took.Round(time.Second), err)
		}
	}
}

// wants gives an error unless text contains part.
func wants(text, part string) error {
	if strings.Contains(text, part) {
		return nil
	}
	return fmt.Errorf("want %q in:\n%s", part, text)
}
