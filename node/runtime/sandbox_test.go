package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

func link(t *testing.T, path string) string {
	t.Helper()
	l, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const showNamespaces = "for n in net uts ipc pid; do readlink /proc/self/ns/$n; done; hostname; sysctl -n net.ipv4.ip_unprivileged_port_start kernel.shm_rmid_forced"

func TestNamespaces(t *testing.T) {
	e := newEnv(t)
	ns := func(kind string) string { return link(t, "/proc/self/ns/"+kind) }
	s := e.sandbox(func(c *SandboxConfig) {
		c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
	})
	a, b := strings.Fields(e.output(s, e.sh(showNamespaces))), strings.Fields(e.output(s, e.sh(showNamespaces)))
	for i := range 3 {
		if a[i] != b[i] || a[i] == ns([]string{"net", "uts", "ipc"}[i]) {
			t.Errorf("the pod's namespace %s %s", a[i], b[i])
		}
	}
	if a[3] == ns("pid") || a[4] != s.Config().Hostname || a[5] != "0" || a[6] != "1" {
		t.Errorf("%v %v", a, b)
	}
	if got := link(t, s.NetNSPath()); got != a[0] {
		t.Error("NetNSPath:", got, a[0])
	}
	h := e.sandbox(func(c *SandboxConfig) { c.HostNetwork, c.HostPID, c.HostIPC = true, true, true })
	f := strings.Fields(e.output(h, e.sh(showNamespaces)))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if f[0] != ns("net") || f[1] != ns("uts") || f[2] != ns("ipc") || f[3] != ns("pid") || f[4] != host || h.NetNSPath() != "" {
		t.Errorf("host namespaces: %v", f)
	}
	_, err = e.r.CreateSandbox(context.Background(), SandboxConfig{PodUID: "bad-sysctl", Sysctls: map[string]string{"kernel.nosuch": "1"}})
	if err == nil || !strings.Contains(err.Error(), "kernel.nosuch") {
		t.Error("a sysctl that does not exist:", err)
	}
}

// Some settings are refused as long as others have not been made.
func TestSysctlsThatDependOnEachOther(t *testing.T) {
	e := newEnv(t)
	for _, want := range [][2]string{{"100 60000", "50"}, {"50000 60000", "40000"}} {
		for range 4 { // in any order
			s := e.sandbox(func(c *SandboxConfig) {
				c.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": want[0], "net.ipv4.ip_unprivileged_port_start": want[1]}
			})
			got := strings.Fields(e.output(s, e.sh("sysctl -n net.ipv4.ip_local_port_range net.ipv4.ip_unprivileged_port_start")))
			if strings.Join(got, " ") != want[0]+" "+want[1] {
				t.Errorf("%v, want %v", got, want)
			}
		}
	}
}

// With a shared PID namespace or the host's, no process outlives its container.
func TestSharedPIDNamespace(t *testing.T) {
	e := newEnv(t)
	for name, mod := range map[string]func(*SandboxConfig){
		"shared": func(c *SandboxConfig) { c.ShareProcessNamespace = true },
		"host":   func(c *SandboxConfig) { c.HostPID = true },
	} {
		t.Run(name, func(t *testing.T) {
			s := e.sandbox(mod)
			a := e.start(s, e.sh("(setsid sleep 777 &); exec sleep 888"))
			b := e.start(s, e.sh("exec sleep 999"))
			var out strings.Builder
			if _, err := s.Exec(context.Background(), b.ID, ExecConfig{Args: []string{"ps"}}, nil, &out, nil, nil); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), "sleep 888") {
				t.Error("the other container's process is not seen:", out.String())
			}
			st, _ := s.Container(a.ID)
			cgroup := st.CgroupPath
			e.until("both processes run", func() bool { return len(e.r.cgroups.pids(cgroup)) == 2 })
			if err := s.Signal(context.Background(), a.ID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			e.wait(s, a.ID)
			if p := e.r.cgroups.pids(cgroup); len(p) != 0 {
				t.Error("processes are left:", p)
			}
			if st, _ := s.Container(b.ID); st.State != Running {
				t.Error("the other container ended too")
			}
		})
	}
}

func TestEvents(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	evs := s.Events(ctx)
	next := func(want EventType, id string) Event {
		t.Helper()
		select {
		case ev, ok := <-evs:
			if !ok || ev.Type != want || ev.Container.ID != id {
				t.Fatalf("%+v %v, want %s of %q", ev, ok, want, id)
			}
			return ev
		case <-ctx.Done():
			t.Fatalf("no event, want %s of %q", want, id)
		}
		return Event{}
	}
	c := e.sh("exit 3")
	c.Annotations = map[string]string{"k": "v"}
	c.Attempt = 5
	e.start(s, c)
	next(ContainerStarted, c.ID)
	if ev := next(ContainerExited, c.ID); ev.Container.ExitCode != 3 || ev.Container.Annotations["k"] != "v" || ev.Container.Attempt != 5 {
		t.Errorf("%+v", ev)
	}
	if err := s.RemoveContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	next(ContainerRemoved, c.ID)
	if err := s.RemoveContainer(ctx, c.ID); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	run := e.start(s, e.container("sleep", "100"))
	next(ContainerStarted, run.ID)
	if err := s.RemoveContainer(ctx, run.ID); err != nil {
		t.Fatal("removing a running container:", err)
	}
	if err := s.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for ev := range evs {
		if ev.Type == SandboxGone {
			cancel()
		}
	}
	if err := s.StartContainer(context.Background(), e.container("true")); !errors.Is(err, ErrSandboxGone) {
		t.Error(err)
	}
	if err := s.Remove(context.Background()); err != nil {
		t.Error("removing again:", err)
	}
}

// A skiff that was killed finds everything again: what runs, what ended
// meanwhile, and the logs go on.
func TestAdoption(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox(func(c *SandboxConfig) { c.Annotations = map[string]string{"pod": "mine"} })
	ends := e.start(s, e.sh("read x < /gate || sleep 0.3; exit 42"))
	runs := e.start(s, e.sh("i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.05; done"))
	before, _ := s.Container(runs.ID)
	if err := e.r.Close(); err != nil { // no goodbye is said to the shim
		t.Fatal(err)
	}
	e.until("the container ends on its own", func() bool {
		recs, err := shimproto.ReadRecords(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if r.ID == ends.ID && r.State == Exited {
				return true
			}
		}
		return false
	})
	e.open()
	all, err := e.r.Sandboxes(context.Background())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	s = all[0]
	if !s.Alive() || s.Config().Annotations["pod"] != "mine" || s.PID() == 0 {
		t.Errorf("%+v", s.Config())
	}
	if st, _ := s.Container(ends.ID); st.State != Exited || st.ExitCode != 42 {
		t.Errorf("%+v", st)
	}
	after, _ := s.Container(runs.ID)
	if after.State != Running || after.PID != before.PID || !after.StartedAt.Equal(before.StartedAt) {
		t.Errorf("%+v, was %+v", after, before)
	}
	n := strings.Count(e.log(runs), "tick")
	e.until("the log goes on", func() bool { return strings.Count(e.log(runs), "tick") > n })
	if code, err := s.Exec(context.Background(), runs.ID, ExecConfig{Args: []string{"sh", "-c", "exit 5"}}, nil, nil, nil, nil); code != 5 || err != nil {
		t.Error("exec after adoption:", code, err)
	}
	again, err := e.r.Sandboxes(context.Background())
	if err != nil || len(again) != 1 || again[0] != s {
		t.Error("adopting twice makes two:", again, err)
	}
	evs := s.Events(context.Background())
	if err := s.Signal(context.Background(), runs.ID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ev := <-evs; ev.Type != ContainerExited || ev.Container.ExitCode != 137 {
		t.Errorf("%+v", ev)
	}
	if err := s.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range evs {
	}
}

// killedClientEnv makes the test binary a client that starts a container with
// the configuration in the named directory and kills itself.
const killedClientEnv = "SKIFF_TEST_KILLED_CLIENT"

type killedClientConfig struct {
	Runtime   Config
	Sandbox   SandboxConfig
	Container ContainerConfig
}

func killedClient(dir string) {
	err := func() error {
		b, err := os.ReadFile(filepath.Join(dir, "client.json"))
		if err != nil {
			return err
		}
		var c killedClientConfig
		if err := json.Unmarshal(b, &c); err != nil {
			return err
		}
		r, err := New(c.Runtime)
		if err != nil {
			return err
		}
		s, err := r.CreateSandbox(context.Background(), c.Sandbox)
		if err != nil {
			return err
		}
		if err := s.StartContainer(context.Background(), c.Container); err != nil {
			return err
		}
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// The process that started a pod is killed with SIGKILL, together with its
// process group, as a terminal or service manager might do.
func TestKilledClient(t *testing.T) {
	e := newEnv(t)
	dir := t.TempDir()
	cfg := e.cfg
	cfg.Logger = nil
	c := e.sh("trap 'echo bye; exit 17' TERM; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.02; done")
	c.LogPath = filepath.Join(e.logs, c.LogPath)
	b, err := json.Marshal(killedClientConfig{cfg, SandboxConfig{PodUID: "orphan"}, c})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "client.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killedClientEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("the client: %v\n%s", err, out)
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	n := strings.Count(e.log(c), "tick")
	e.until("the log goes on without a client", func() bool { return strings.Count(e.log(c), "tick") > n+3 })
	all, err := e.r.Sandboxes(context.Background())
	if err != nil || len(all) != 1 || !all[0].Alive() {
		t.Fatal(all, err)
	}
	if err := all[0].Signal(context.Background(), c.ID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st := e.wait(all[0], c.ID); st.ExitCode != 17 || !strings.HasSuffix(e.log(c), "stdout F bye\n") {
		t.Errorf("%+v", st)
	}
}

// A pod that is deleted while its shim is being spawned leaves no shim.
func TestCreateInterrupted(t *testing.T) {
	e := newEnv(t)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
		s, err := e.r.CreateSandbox(ctx, SandboxConfig{PodUID: fmt.Sprintf("interrupted-%d", i)})
		cancel()
		if err == nil {
			if err := s.Remove(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
	for _, d := range e.r.cgroups.dirs("/" + e.cfg.CgroupRoot + "/shims") {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if pids := strings.Fields(string(b)); len(pids) > 0 {
			t.Errorf("shims are left in %s: %v", d, pids)
		}
	}
}

// Who adopts a sandbox sees at once what the client before it, which was killed
// meanwhile, had begun to start; nothing more starts later.
func TestKilledDuringStart(t *testing.T) {
	e := newEnv(t)
	e.sandbox()
	list := func() map[string]bool {
		e.r.Close()
		e.open()
		all, err := e.r.Sandboxes(context.Background())
		if err != nil || len(all) != 1 || !all[0].Alive() {
			t.Fatal(all, err)
		}
		out := map[string]bool{}
		for _, c := range all[0].Containers() {
			out[c.ID] = true
		}
		return out
	}
	started := 0
	for i := range 12 {
		e.r.mu.Lock()
		var s *Sandbox
		for _, s = range e.r.sandboxes {
		}
		e.r.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*2*time.Millisecond)
		c := e.sh("while :; do sleep 0.1; done")
		c.ID = fmt.Sprintf("%s-%d", c.ID, i)
		_ = s.StartContainer(ctx, c)
		cancel()
		first := list()
		time.Sleep(100 * time.Millisecond) // for a late start to show itself
		second := list()
		if len(first) != len(second) {
			t.Errorf("interrupted after %d ms: adopted with %v, and later there were %v", i*2, first, second)
		}
		started = len(second)
	}
	t.Logf("%d of 12 interrupted starts had begun", started)
}

// A shim that cannot be reached for a while is reached again, and what happened
// meanwhile is known.
func TestConnectionLost(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.sh("trap 'exit 7' TERM; echo set; while :; do sleep 0.05; done"))
	e.logged(c, "set")
	st, _ := s.Container(c.ID)
	socket := filepath.Join(s.dir, shimproto.SocketName)
	if err := os.Rename(socket, socket+"-away"); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.watch.Close()
	s.mu.Unlock()
	time.Sleep(200 * time.Millisecond) // it has been tried
	if err := unix.Kill(st.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(socket+"-away", socket); err != nil {
		t.Fatal(err)
	}
	if st := e.wait(s, c.ID); st.ExitCode != 7 || !s.Alive() {
		t.Errorf("%+v", st)
	}
}

// On a machine with cgroup version 1 the tests run once more with version 2,
// in a mount namespace of their own. Its controllers are usually taken.
func TestCgroupV2(t *testing.T) {
	e := newEnv(t)
	if e.r.cgroups.v2 {
		t.Skip("this machine has version 2, so all tests are about it")
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"",
		"/proc/"+strconv.Itoa(os.Getpid())+"/exe", "-test.run",
		"^(TestExitCodes|TestStartErrors|TestResources|TestOOMKilled|TestConfinement|TestSharedPIDNamespace|TestAdoption|TestShimDies|TestExec)$", "-test.v")
	cmd.Env = append(os.Environ(), "SKIFF_TEST_SHIM="+e.cfg.ShimPath)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestExec ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// When a shim is killed, nothing that it ran goes on unsupervised, and what it
// recorded is known.
func TestShimDies(t *testing.T) {
	for _, whileAway := range []bool{false, true} {
		e := newEnv(t)
		s := e.sandbox()
		done := e.start(s, e.sh("exit 4"))
		e.wait(s, done.ID)
		runs := e.start(s, e.container("sleep", "1000"))
		st, _ := s.Container(runs.ID)
		fd, err := shimproto.OpenPidfd(st.PID)
		if err != nil {
			t.Fatal(err)
		}
		if whileAway {
			if err := e.r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Kill(s.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if whileAway {
			e.until("the shim is gone", func() bool { return s.shimGone() })
			e.open()
			all, err := e.r.Sandboxes(context.Background())
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			s = all[0]
		}
		select {
		case <-s.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the death is not noticed")
		}
		if st, _ := s.Container(done.ID); st.ExitCode != 4 || st.Message != "" {
			t.Errorf("%+v", st)
		}
		if st, _ := s.Container(runs.ID); st.State != Exited || st.ExitCode != 137 || st.Message == "" {
			t.Errorf("%+v", st)
		}
		if err := fd.Wait(); err != nil { // would hang if it went on
			t.Error(err)
		}
		fd.Close()
		if err := s.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func (s *Sandbox) shimGone() bool {
	addr, release, err := s.socketAddr()
	if err != nil {
		return true
	}
	defer release()
	c, err := net.Dial("unix", addr)
	if err != nil {
		return true
	}
	c.Close()
	return false
}

// A crash between making a sandbox's directory and starting its shim.
func TestHalfMadeSandboxes(t *testing.T) {
	e := newEnv(t)
	for name, files := range map[string]map[string]string{
		"empty":   {},
		"garbage": {shimproto.ConfigName: "{half"},
		"no-shim": {shimproto.ConfigName: `{"cgroup":"/` + e.cfg.CgroupRoot + `/podno-shim","client":{"config":{"podUID":"no-shim"}}}`},
	} {
		dir := filepath.Join(e.r.root(), name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for f, body := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	all, err := e.r.Sandboxes(context.Background())
	if err != nil || len(all) != 1 || all[0].PodUID() != "no-shim" || all[0].Alive() {
		t.Fatal(all, err)
	}
	if ents, err := os.ReadDir(e.r.root()); err != nil || len(ents) != 1 {
		t.Error("half-made sandboxes are left:", ents, err)
	}
}

// A shim of a protocol that is not understood lives on untouched.
func TestForeignProtocol(t *testing.T) {
	for _, h := range []shimproto.Hello{{Version: 99, Min: 98}, {Version: 0, Min: 0}} {
		if err := h.Check(); err == nil {
			t.Errorf("%+v is accepted", h)
		}
	}
	if err := (shimproto.Hello{Version: shimproto.Version + 3, Min: shimproto.Version}).Check(); err != nil {
		t.Error("a newer shim that still speaks ours is refused:", err)
	}
}

func TestDialPort(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.sh("while :; do echo from the pod | nc -l -p 7000; done"))
	var conn net.Conn
	e.until("the port is open", func() bool {
		var err error
		conn, err = s.DialPort(context.Background(), 7000)
		return err == nil
	})
	b, err := io.ReadAll(conn)
	if err != nil || string(b) != "from the pod\n" {
		t.Errorf("%q %v", b, err)
	}
	conn.Close()
	if _, err := s.DialPort(context.Background(), 7001); !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "localhost:7001") {
		t.Error(err)
	}
	if _, err := s.DialPort(context.Background(), 70000); err == nil {
		t.Error("port 70000")
	}
	_ = c
}

// Long state directories do not fit into a socket's address.
func TestLongStateDir(t *testing.T) {
	e := newEnv(t)
	e.cfg.StateDir = filepath.Join(e.cfg.StateDir, strings.Repeat("long", 30))
	e.open()
	s := e.sandbox()
	e.output(s, e.sh("true"))
}
