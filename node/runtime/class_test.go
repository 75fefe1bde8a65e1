package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestCPUWeight(t *testing.T) {
	for _, shares := range []int64{1, 2, 3, 10, 102, 512, 1024, 2048, 100_000, 262_144, 300_000} {
		if got, want := weightOf(shares), int64(cgroups.ConvertCPUSharesToCgroupV2Value(uint64(shares))); got != want {
			t.Errorf("%d shares: %d, libcontainer has %d", shares, got, want)
		}
	}
}

// On plain folders: which files are written where.
func TestSetClass(t *testing.T) {
	read := func(path ...string) string {
		b, err := os.ReadFile(filepath.Join(path...))
		if err != nil {
			return "missing"
		}
		return string(b)
	}
	v1 := t.TempDir()
	one := &cgroupTree{mounts: map[string]string{"cpu": filepath.Join(v1, "cpu"), "memory": filepath.Join(v1, "memory")}}
	if err := one.set("/skiff/burstable", Resources{CPUShares: 512, MemoryLimit: 1 << 20, PidsLimit: 5}); err != nil {
		t.Fatal(err)
	}
	if err := one.set("/skiff/burstable", Resources{MemoryLimit: -1}); err != nil {
		t.Fatal(err)
	}
	if got := read(v1, "cpu/skiff/burstable/cpu.shares") + " " + read(v1, "memory/skiff/burstable/memory.limit_in_bytes"); got != "512 -1" {
		t.Error(got)
	}
	v2 := t.TempDir()
	if err := os.WriteFile(filepath.Join(v2, "cgroup.controllers"), []byte("cpu memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	two := &cgroupTree{v2: true, mounts: map[string]string{"": v2}}
	if err := two.set("/skiff/burstable", Resources{CPUShares: 1024, MemoryLimit: 1 << 20, PidsLimit: -1}); err != nil {
		t.Fatal(err)
	}
	got := []string{read(v2, "cgroup.subtree_control"), read(v2, "skiff/cgroup.subtree_control")}
	for _, f := range []string{"cpu.weight", "memory.max", "pids.max"} {
		got = append(got, read(v2, "skiff/burstable", f))
	}
	if s := strings.Join(got, " "); s != "+pids +pids 100 1048576 max" {
		t.Error(s)
	}
}

func TestClasses(t *testing.T) {
	e := newEnv(t)
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !e.r.cgroups.has(c) {
			t.Skipf("no %s controller here", c)
		}
	}
	ctx := context.Background()
	root := "/" + e.cfg.CgroupRoot
	same := func(cgroup string, f cgroupFile, want1, want2 string) {
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
	for class, r := range map[string]Resources{"": {CPUShares: 2048, MemoryLimit: 1 << 30, PidsLimit: 5000}, Burstable: {CPUShares: 512}, BestEffort: {CPUShares: 2}} {
		if err := e.r.SetClass(class, r); err != nil {
			t.Fatal(err)
		}
	}
	same(root, cpuShares, "2048", cpuWeight(2048))
	same(root, memoryLimit, "1073741824", "1073741824")
	same(root, pidsLimit, "5000", "5000")
	same(root+"/burstable", cpuShares, "512", cpuWeight(512))
	same(root+"/besteffort", cpuShares, "2", "1")

	old := e.sandbox() // as every pod's was once
	s := e.sandbox(func(c *SandboxConfig) { c.Class, c.Resources = Burstable, Resources{CPUShares: 100} })
	c := e.start(s, e.container("sleep", "100"))
	if want := root + "/burstable/pod" + s.PodUID(); s.CgroupPath() != want {
		t.Errorf("cgroup %s, want %s", s.CgroupPath(), want)
	}
	same(s.CgroupPath(), cpuShares, "100", cpuWeight(100))
	if st, _ := s.Container(c.ID); filepath.Dir(st.CgroupPath) != s.CgroupPath() {
		t.Errorf("container's cgroup %s", st.CgroupPath)
	}
	if err := e.r.Close(); err != nil {
		t.Fatal(err)
	}
	e.open()
	all, err := e.r.Sandboxes(ctx)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for _, a := range all {
		if a.PodUID() == s.PodUID() && a.CgroupPath() != s.CgroupPath() || a.PodUID() == old.PodUID() && a.CgroupPath() != root+"/pod"+old.PodUID() {
			t.Errorf("adopted at %s", a.CgroupPath())
		}
		if err := a.Remove(ctx); err != nil {
			t.Error(err)
		}
		for _, d := range e.r.cgroups.dirs(a.CgroupPath()) {
			if _, err := os.Stat(d); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", d, err)
			}
		}
	}
	if _, err := e.r.CreateSandbox(ctx, SandboxConfig{PodUID: "x", Class: "../x"}); err == nil || !strings.Contains(err.Error(), `no class of pods "../x"`) {
		t.Error(err)
	}
}
