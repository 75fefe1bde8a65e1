package runtime

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildShim builds cmd/skiff-shim once for all tests of the package.
var buildShim = sync.OnceValues(func() (string, error) {
	if p := os.Getenv("SKIFF_TEST_SHIM"); p != "" {
		return p, nil
	}
	dir, err := os.MkdirTemp("", "skiff-shim-test-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "skiff-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "seccomp netgo osusergo runc_nocriu",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", out, "github.com/skiff-sh/skiff/cmd/skiff-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the shim: %w\n%s", err, b)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedClientEnv); dir != "" {
		killedClient(dir)
	}
	code := m.Run()
	if p, err := buildShim(); err == nil && os.Getenv("SKIFF_TEST_SHIM") == "" {
		os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it runs real containers")
	}
}

var testSeq atomic.Int64

// env is a runtime of its own with a cgroup root of its own.
type env struct {
	t      testing.TB
	r      *Runtime
	cfg    Config
	rootfs string
	logs   string
	state  string
}

func newEnv(t testing.TB) *env {
	t.Helper()
	needRoot(t)
	shim, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("skifftest-%d-%d", os.Getpid(), testSeq.Add(1))
	state := filepath.Join("/run", id)
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	e := &env{t: t, rootfs: makeRootfs(t, filepath.Join(data, "rootfs")), logs: filepath.Join(data, "logs"), state: state, cfg: Config{
		StateDir: state, DataDir: data, CgroupRoot: id, ShimPath: shim,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
	t.Cleanup(func() { e.end() })
	e.open()
	return e
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func (e *env) open() {
	e.t.Helper()
	r, err := New(e.cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	e.r = r
}

// end removes everything, and fails the test when something stays behind.
func (e *env) end() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sbs, err := e.r.Sandboxes(ctx)
	if err != nil {
		e.t.Error(err)
	}
	for _, s := range sbs {
		if err := s.Remove(ctx); err != nil {
			e.t.Error(err)
		}
	}
	e.r.Close()
	root := "/" + e.cfg.CgroupRoot
	for _, d := range e.r.cgroups.dirs(root) {
		if ents, err := os.ReadDir(d); err == nil {
			for _, ent := range ents {
				if strings.HasPrefix(ent.Name(), "pod") {
					e.t.Errorf("cgroup %s/%s was left behind", d, ent.Name())
				}
			}
		}
	}
	if err := e.r.cgroups.kill(root, 5*time.Second); err != nil {
		e.t.Error(err)
	}
	if err := e.r.cgroups.remove(root); err != nil {
		e.t.Error(err)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(b), e.cfg.StateDir) {
		e.t.Errorf("mounts were left behind below %s", e.cfg.StateDir)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); strings.HasPrefix(f[4], e.cfg.StateDir) {
				unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
	}
	os.RemoveAll(e.state)
}

// makeRootfs makes a root file system of busybox.
func makeRootfs(t testing.TB, dir string) string {
	t.Helper()
	const busybox = "/usr/bin/busybox"
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("the tests need the package busybox-static: %v", err)
	}
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", string(b), 0o755)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\napps:x:1001:\nextra:x:2000:app\n", 0o644)
	return dir
}

var podSeq atomic.Int64

func (e *env) sandbox(mod ...func(*SandboxConfig)) *Sandbox {
	e.t.Helper()
	n := podSeq.Add(1)
	c := SandboxConfig{PodUID: fmt.Sprintf("%08d-0000-4000-8000-%012d", n, os.Getpid()), Name: fmt.Sprintf("pod%d", n), Namespace: "test", Hostname: fmt.Sprintf("pod%d", n), LogDir: e.logs}
	for _, m := range mod {
		m(&c)
	}
	s, err := e.r.CreateSandbox(context.Background(), c)
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

var ctrSeq atomic.Int64

func (e *env) container(args ...string) ContainerConfig {
	id := fmt.Sprintf("c%d", ctrSeq.Add(1))
	return ContainerConfig{ID: id, Name: id, Rootfs: e.rootfs, Args: args, LogPath: id + ".log"}
}

// sh is a container that runs a shell script.
func (e *env) sh(script string) ContainerConfig { return e.container("sh", "-c", script) }

func (e *env) start(s *Sandbox, c ContainerConfig) ContainerConfig {
	e.t.Helper()
	if err := s.StartContainer(context.Background(), c); err != nil {
		e.t.Fatal(err)
	}
	return c
}

// wait waits for a container's end.
func (e *env) wait(s *Sandbox, id string) ContainerStatus {
	e.t.Helper()
	var st ContainerStatus
	e.until("container "+id+" exits", func() bool {
		st, _ = s.Container(id)
		return st.State == Exited
	})
	return st
}

// until waits for a condition.
func (e *env) until(what string, cond func() bool) {
	e.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			e.t.Fatalf("waited too long until %s", what)
		}
	}
}

// logged waits until a container has written a line to its standard output.
func (e *env) logged(c ContainerConfig, line string) {
	e.t.Helper()
	e.until(fmt.Sprintf("container %s writes %q", c.ID, line), func() bool {
		return strings.Contains("\n"+e.log(c), "\nstdout F "+line+"\n")
	})
}

// executed waits until a container's command runs: its start has returned just
// before that.
func (e *env) executed(s *Sandbox, c ContainerConfig) ContainerConfig {
	e.t.Helper()
	st, _ := s.Container(c.ID)
	e.until(fmt.Sprintf("%q runs", c.Args), func() bool { return runs(st.PID, c.Args...) })
	return c
}

// runs says whether a process executes a command.
func runs(pid int, args ...string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && string(b) == strings.Join(args, "\x00")+"\x00"
}

// log returns a container's log as "stream tag text" lines, without one that is
// being written.
func (e *env) log(c ContainerConfig) string {
	e.t.Helper()
	p := c.LogPath
	if !filepath.IsAbs(p) {
		p = filepath.Join(e.logs, p)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		e.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		ts, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, ts); err != nil {
			e.t.Fatalf("log line %q: %v", line, err)
		}
		out.WriteString(rest)
	}
	return out.String()
}

// output runs a script in a container and returns what it wrote to stdout.
func (e *env) output(s *Sandbox, c ContainerConfig) string {
	e.t.Helper()
	e.start(s, c)
	st := e.wait(s, c.ID)
	var out strings.Builder
	for line := range strings.Lines(e.log(c)) {
		if text, ok := strings.CutPrefix(line, "stdout F "); ok {
			out.WriteString(text)
		}
	}
	if st.ExitCode != 0 {
		e.t.Errorf("exit code %d, log:\n%s", st.ExitCode, e.log(c))
	}
	return out.String()
}
