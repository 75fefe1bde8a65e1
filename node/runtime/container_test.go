package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	for _, c := range []struct {
		script string
		signal syscall.Signal
		code   int
		by     int
	}{
		{"exit 0", 0, 0, 0},
		{"exit 7", 0, 7, 0},
		{"exec sleep 100", syscall.SIGKILL, 137, 9},
		{"trap 'exit 17' TERM; echo set; while :; do sleep 0.01; done", syscall.SIGTERM, 17, 0},
	} {
		ctr := e.start(s, e.sh(c.script))
		if c.signal == syscall.SIGTERM {
			e.until("the trap is set", func() bool { return e.log(ctr) != "" })
		}
		if c.signal != 0 {
			if err := s.Signal(context.Background(), ctr.ID, c.signal); err != nil {
				t.Fatal(err)
			}
		}
		st := e.wait(s, ctr.ID)
		if st.ExitCode != c.code || st.Signal != c.by || st.OOMKilled || st.PID != 0 {
			t.Errorf("%s: %+v, log:\n%s", c.script, st, e.log(ctr))
		}
		if st.StartedAt.Before(st.CreatedAt) || st.FinishedAt.Before(st.StartedAt) {
			t.Errorf("times: %+v", st)
		}
		if err := s.Signal(context.Background(), ctr.ID, syscall.SIGTERM); !errors.Is(err, ErrNotRunning) {
			t.Error("signal after the end:", err)
		}
	}
	if err := s.Signal(context.Background(), "nobody", syscall.SIGTERM); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// A container that ends just when it is killed, or removed, has ended.
func TestKilledWhileItEnds(t *testing.T) {
	e := newEnv(t)
	for _, s := range []*Sandbox{e.sandbox(), e.sharedPID()} {
		for range 5 {
			c := e.start(s, e.sh("exit 3"))
			for st, _ := s.Container(c.ID); st.State != Exited; st, _ = s.Container(c.ID) {
				if err := s.Signal(context.Background(), c.ID, syscall.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Fatal("kill:", err)
				}
			}
			c = e.start(s, e.sh("exit 3"))
			if err := s.RemoveContainer(context.Background(), c.ID); err != nil {
				t.Fatal("remove:", err)
			}
		}
	}
}

// The shim survives the signals that end skiff; containers get them as usual.
func TestSignalDispositions(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE} {
		if err := syscall.Kill(s.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	show := []string{"grep", "-E", "SigBlk|SigIgn", "/proc/self/status"} // no shell: it ignores some itself
	if got := e.output(s, e.container(show...)); !usualSignals(got) {
		t.Errorf("container: %q", got)
	}
	c := e.start(s, e.container("sleep", "100"))
	var out buffer
	if _, err := s.Exec(context.Background(), c.ID, ExecConfig{Args: show}, nil, &out, nil, nil); err != nil || !usualSignals(out.String()) {
		t.Errorf("exec: %q %v", out.String(), err)
	}
}

// usualSignals tells whether no signal is blocked or ignored, but for 32 to 34:
// they belong to the C library, and some parents of a test run leave them so.
func usualSignals(status string) bool {
	var blocked, ignored uint64
	if _, err := fmt.Sscanf(status, "SigBlk:\t%x\nSigIgn:\t%x\n", &blocked, &ignored); err != nil {
		return false
	}
	const libc = 7 << 31
	return blocked&^libc == 0 && ignored&^libc == 0
}

func TestStartErrors(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	mod := func(f func(*ContainerConfig)) ContainerConfig {
		c := e.container("true")
		f(&c)
		return c
	}
	for _, c := range []struct {
		want string
		cfg  ContainerConfig
	}{
		{`exec: "nosuch": executable file not found in $PATH`, e.container("nosuch")},
		{`exec: "/no/such": stat /no/such: no such file or directory`, e.container("/no/such")},
		{`permission denied`, e.container("/etc/passwd")},
		{"no command specified", e.container()},
		{"unable to find user ghost", mod(func(c *ContainerConfig) { c.User.Name = "ghost" })},
		{`unknown capability "FLY"`, mod(func(c *ContainerConfig) { c.Capabilities.Add = []string{"FLY"} })},
		{"no such file or directory", mod(func(c *ContainerConfig) { c.Mounts = []Mount{{Destination: "/x", HostPath: "/does/not/exist"}} })},
		{"must be an absolute path", mod(func(c *ContainerConfig) { c.Mounts = []Mount{{Destination: "x", HostPath: "/tmp"}} })},
		{"two mounts at /x", mod(func(c *ContainerConfig) {
			c.Mounts = []Mount{{Destination: "/x", HostPath: "/tmp"}, {Destination: "/x/", HostPath: "/etc"}}
		})},
		{"seccomp profile: no valid JSON", mod(func(c *ContainerConfig) { c.Seccomp = Seccomp{SeccompLocalhost, []byte("{")} })},
		{"not a device node", mod(func(c *ContainerConfig) { c.Devices = []Device{{HostPath: "/etc/passwd"}} })},
		{"unified resources need cgroup version 2", mod(func(c *ContainerConfig) { c.Resources.Unified = map[string]string{"memory.high": "1"} })},
		{"its ID", mod(func(c *ContainerConfig) { c.ID = "../x" })},
	} {
		if strings.HasPrefix(c.want, "unified") && e.r.cgroups.v2 {
			continue
		}
		err := s.StartContainer(context.Background(), c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if l := s.Containers(); len(l) != 0 {
		t.Error("containers that did not start exist:", l)
	}
	// None of them left a cgroup.
	for _, d := range e.r.cgroups.dirs(s.cgroup) {
		if ents, err := os.ReadDir(d); err == nil {
			for _, ent := range ents {
				if ent.IsDir() {
					t.Errorf("%s/%s is left", d, ent.Name())
				}
			}
		}
	}
	c := e.start(s, e.container("sleep", "100"))
	if err := s.StartContainer(context.Background(), c); !errors.Is(err, ErrExists) {
		t.Error("the same ID twice:", err)
	}
	if _, err := e.r.CreateSandbox(context.Background(), s.Config()); !errors.Is(err, ErrExists) {
		t.Error("the same pod twice:", err)
	}
}

func TestOOMKilled(t *testing.T) {
	e := newEnv(t)
	if !e.r.cgroups.has("memory") {
		t.Skip("no memory controller here")
	}
	s := e.sandbox()
	c := e.sh("tail /dev/zero")
	c.Resources.MemoryLimit = 16 << 20
	e.start(s, c)
	if st := e.wait(s, c.ID); !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	// A child is killed, the container itself ends with an error of its own.
	c = e.sh("tail /dev/zero; exit 9")
	c.Resources.MemoryLimit = 16 << 20
	e.start(s, c)
	if st := e.wait(s, c.ID); !st.OOMKilled {
		t.Errorf("%+v", st)
	}
}

// cgroupFile is where a limit shows: a controller and a file for each version.
type cgroupFile struct{ controller, v1, v2 string }

var (
	cpuShares   = cgroupFile{"cpu", "cpu.shares", "cpu.weight"}
	cpuQuota    = cgroupFile{"cpu", "cpu.cfs_quota_us", "cpu.max"}
	memoryLimit = cgroupFile{"memory", "memory.limit_in_bytes", "memory.max"}
	pidsLimit   = cgroupFile{"pids", "pids.max", "pids.max"}
)

func TestResources(t *testing.T) {
	e := newEnv(t)
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !e.r.cgroups.has(c) {
			t.Skipf("no %s controller here", c)
		}
	}
	s := e.sandbox(func(c *SandboxConfig) {
		c.Resources = Resources{CPUShares: 512, MemoryLimit: 256 << 20, PidsLimit: 100}
	})
	c := e.container("sleep", "100")
	c.Resources = Resources{CPUShares: 204, CPUQuota: 20_000, MemoryLimit: 64 << 20, PidsLimit: 20, OOMScoreAdj: 500}
	e.start(s, c)
	st, _ := s.Container(c.ID)
	check := func(cgroup string, f cgroupFile, want1, want2 string) {
		t.Helper()
		name, want := f.v1, want1
		if e.r.cgroups.v2 {
			name, want = f.v2, want2
		}
		b, err := os.ReadFile(filepath.Join(e.r.cgroups.dir(f.controller, cgroup), name))
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s of %s: %q %v, want %s", name, cgroup, b, err, want)
		}
	}
	same := func(cgroup string, f cgroupFile, want int64) {
		t.Helper()
		check(cgroup, f, fmt.Sprint(want), fmt.Sprint(want))
	}
	check(st.CgroupPath, cpuShares, "204", cpuWeight(204))
	check(st.CgroupPath, cpuQuota, "20000", "20000 100000")
	same(st.CgroupPath, memoryLimit, 64<<20)
	same(st.CgroupPath, pidsLimit, 20)
	check(s.cgroup, cpuShares, "512", cpuWeight(512))
	same(s.cgroup, memoryLimit, 256<<20)
	same(s.cgroup, pidsLimit, 100)
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", st.PID)); err != nil || strings.TrimSpace(string(b)) != "500" {
		t.Errorf("oom_score_adj %q %v", b, err)
	}
	if filepath.Dir(st.CgroupPath) != s.cgroup || s.cgroup != "/"+e.cfg.CgroupRoot+"/pod"+s.PodUID() {
		t.Error("cgroup paths:", st.CgroupPath, s.cgroup)
	}
	ctx := context.Background()
	for _, mem := range []int64{128 << 20, 32 << 20} {
		if err := s.UpdateResources(ctx, c.ID, Resources{CPUShares: 409, CPUQuota: 40_000, MemoryLimit: mem, PidsLimit: 30}); err != nil {
			t.Fatal(err)
		}
		check(st.CgroupPath, cpuShares, "409", cpuWeight(409))
		check(st.CgroupPath, cpuQuota, "40000", "40000 100000")
		same(st.CgroupPath, memoryLimit, mem)
		same(st.CgroupPath, pidsLimit, 30)
	}
	if err := s.UpdatePodResources(ctx, Resources{MemoryLimit: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	same(s.cgroup, memoryLimit, 512<<20)
	// An update must not keep exec from working.
	if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"true"}}, nil, nil, nil, nil); code != 0 || err != nil {
		t.Error(code, err)
	}
	stats, err := s.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if m := stats[c.ID]; m.Pids != 1 || m.PidsLimit != 30 || m.MemoryLimit != 32<<20 || m.MemoryUsage == 0 || m.CPUUsageNanos == 0 {
		t.Errorf("%+v", m)
	}
	if p, err := s.PodStats(ctx); err != nil || p.Pids != 1 || p.PidsLimit != 100 {
		t.Errorf("%+v %v", p, err)
	}
}

// cpuWeight is what libcontainer makes of shares.
func cpuWeight(shares uint64) string {
	return fmt.Sprint(cgroups.ConvertCPUSharesToCgroupV2Value(shares))
}

// The kernel refuses to lower oom_score_adj where CAP_SYS_RESOURCE is missing;
// the container runs all the same.
func TestOOMScoreBelowOwn(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.sh("cat /proc/self/oom_score_adj")
	c.Resources.OOMScoreAdj = -997
	got := strings.TrimSpace(e.output(s, c))
	n, _ := capabilityNumber("CAP_SYS_RESOURCE")
	want := "-997"
	if !e.r.caps.has(n) {
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		want = strings.TrimSpace(string(own))
	}
	if got != want {
		t.Errorf("oom_score_adj %s, want %s", got, want)
	}
}

func TestUsers(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	id := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		user User
		want string
	}{
		{User{}, "uid=0(root) gid=0(root) groups=0(root)"},
		{User{Name: "app"}, "uid=1000(app) gid=1001(apps) groups=1001(apps),2000(extra)"},
		{User{Name: "1000"}, "uid=1000(app) gid=1001(apps) groups=1001(apps),2000(extra)"},
		{User{Name: "app:extra"}, "uid=1000(app) gid=2000(extra) groups=2000(extra)"},
		{User{Name: "app", UID: id(4242)}, "uid=4242 gid=0(root) groups=0(root)"},
		{User{UID: id(1000), GID: id(3000), SupplementalGroups: []int64{77}}, "uid=1000(app) gid=3000 groups=77,2000(extra),3000"},
		{User{UID: id(1000), SupplementalGroups: []int64{77}, OnlySupplementalGroups: true}, "uid=1000(app) gid=1001(apps) groups=77,1001(apps)"},
	} {
		ctr := e.container("id")
		ctr.User = c.user
		if got := strings.TrimSpace(e.output(s, ctr)); got != c.want {
			t.Errorf("%+v: %s, want %s", c.user, got, c.want)
		}
	}
	ctr := e.sh("pwd; echo $HOME $HOSTNAME $PATH")
	ctr.User.Name, ctr.WorkingDir = "app", "/made/when/missing"
	if got := e.output(s, ctr); got != "/made/when/missing\n/home/app "+s.Config().Hostname+" "+strings.TrimPrefix(defaultPath, "PATH=")+"\n" {
		t.Errorf("%q", got)
	}
}

// An image cannot have the host's files read by making its user databases
// symbolic links.
func TestUserFilesStayInside(t *testing.T) {
	needRoot(t)
	root, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "passwd"), []byte("evil:x:0:0::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{filepath.Join(out, "passwd"), "../../../../../../.." + filepath.Join(out, "passwd")} {
		if err := os.Symlink(link, filepath.Join(root, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, err := resolveUser(root, User{Name: "evil"}); err == nil {
			t.Errorf("%s: %+v", link, u)
		}
		if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
	}
	// A link within the image, absolute as the image sees it, is followed.
	if err := os.WriteFile(filepath.Join(root, "users"), []byte("good:x:5:6::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/users", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := resolveUser(root, User{Name: "good"}); err != nil || u.UID != 5 || u.GID != 6 {
		t.Errorf("%+v %v", u, err)
	}
}

func TestConfinement(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	const probe = `grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr '\n\t' '  '; touch /x && echo " rootfs-rw" || echo " rootfs-ro"; ` +
		`true >> /proc/sys/kernel/domainname && echo sys-rw; cat /proc/kcore 2>/dev/null | head -c1 | wc -c; mount -t tmpfs t /tmp && echo mounted; mkdir /tmp/d && echo mkdir-ok; ls /dev | wc -l`
	run := func(mod func(*ContainerConfig)) string {
		c := e.sh("(" + probe + ") 2>/dev/null; true")
		mod(&c)
		return e.output(s, c)
	}
	must := func(name, out string, want, unwanted []string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is missing in\n%s", name, w, out)
			}
		}
		for _, w := range unwanted {
			if strings.Contains(out, w) {
				t.Errorf("%s: %q must not be in\n%s", name, w, out)
			}
		}
	}
	must("default", run(func(c *ContainerConfig) {}),
		[]string{"CapEff: 00000000a80425fb", "CapBnd: 00000000a80425fb", "NoNewPrivs: 0", "Seccomp: 0", "rootfs-rw", "mkdir-ok"}, []string{"sys-rw", "mounted"})
	must("restricted", run(func(c *ContainerConfig) {
		c.Capabilities.Drop, c.Capabilities.Add = []string{"ALL"}, []string{"NET_BIND_SERVICE"}
		c.NoNewPrivileges, c.ReadonlyRootfs, c.Seccomp.Type = true, true, SeccompRuntimeDefault
	}), []string{"CapEff: 0000000000000400", "NoNewPrivs: 1", "Seccomp: 2", "rootfs-ro"}, []string{"sys-rw", "mounted"})
	must("localhost seccomp", run(func(c *ContainerConfig) {
		c.Seccomp = Seccomp{SeccompLocalhost, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`)}
	}), []string{"Seccomp: 2"}, []string{"mkdir-ok"})
	out := run(func(c *ContainerConfig) { c.Privileged = true; c.Seccomp.Type = SeccompRuntimeDefault })
	must("privileged", out, []string{fmt.Sprintf("CapEff: %016x", uint64(e.r.caps)), "Seccomp: 0", "sys-rw", "mounted"}, nil)
	must("unmasked", run(func(c *ContainerConfig) { c.MaskedPaths, c.ReadonlyPaths = []string{}, []string{} }), []string{"sys-rw"}, nil)
	dev := e.sh("ls -l /dev/mine; dd if=/dev/mine of=/dev/null bs=1 count=1 && echo read-ok")
	dev.Devices = []Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "r"}}
	must("device", e.output(s, dev), []string{"1,   5", "read-ok"}, nil)
}

func TestMounts(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "f"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 me\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sub, err := os.Open(vol)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	c := e.sh(`cat /data/f; echo; cat /etc/hosts; touch /ro/x 2>/dev/null || echo ro; touch /data/new && echo rw; touch /data/deep/y 2>/dev/null && echo deep; grep -c size=1024k /proc/mounts; cat /viafd/f`)
	c.Mounts = []Mount{
		{Destination: "/data/deep", Type: "tmpfs", Options: []string{"size=1m"}}, // sorted after its parent
		{Destination: "/data", HostPath: vol},
		{Destination: "/ro", HostPath: vol, Readonly: true},
		{Destination: "/etc/hosts", HostPath: hosts, Readonly: true},
		{Destination: "/viafd", HostPath: fmt.Sprintf("/proc/self/fd/%d", sub.Fd())},
	}
	if got := e.output(s, c); got != "from the host\n127.0.0.1 me\nro\nrw\ndeep\n1\n" {
		// cat of the last file has no newline: it is tagged P
		t.Errorf("%q", got)
	}
	if !strings.Contains(e.log(c), "stdout P from the host\n") {
		t.Error("a mount by file descriptor does not show its files:", e.log(c))
	}
	if _, err := os.Stat(filepath.Join(vol, "new")); err != nil {
		t.Error(err)
	}
	// /dev/shm belongs to the pod.
	e.output(s, e.sh("echo shared > /dev/shm/x"))
	if got := e.output(s, e.sh("cat /dev/shm/x; ls /dev/mqueue")); got != "shared\n" {
		t.Errorf("%q", got)
	}
	var pts unix.Stat_t
	if err := unix.Stat("/dev/pts", &pts); err != nil {
		t.Fatal(err)
	}
	dev := e.sh("cat /dev/shm/x; stat -c %d /dev/pts")
	dev.Privileged, dev.Mounts = true, []Mount{{Destination: "/dev", HostPath: "/dev"}}
	if got, want := e.output(s, dev), fmt.Sprintf("shared\n%d\n", pts.Dev); got != want {
		t.Errorf("an own mount at /dev: %q, want %q", got, want)
	}
	own := e.sh("ls /dev/shm")
	own.Mounts = []Mount{{Destination: "/dev/shm", Type: "tmpfs"}}
	if got := e.output(s, own); got != "" {
		t.Errorf("an own mount at /dev/shm: %q", got)
	}
}
