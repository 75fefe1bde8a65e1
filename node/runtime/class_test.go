package runtime

import (
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
