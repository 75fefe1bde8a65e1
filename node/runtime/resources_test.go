package runtime

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// Containers on cgroup v2 do not swap, whether they have a limit of memory or
// not. On plain folders.
func TestContainersDoNotSwap(t *testing.T) {
	for name, tc := range map[string]struct {
		v1    bool
		files []string // of the hierarchy
		res   Resources
		want  map[string]string
	}{
		"without a limit":     {files: []string{"cgroup.controllers", "skiff/memory.swap.max"}, want: map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		"with one":            {files: []string{"cgroup.controllers", "skiff/memory.swap.max"}, res: Resources{MemoryLimit: 1 << 20}, want: map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		"something else":      {files: []string{"cgroup.controllers", "skiff/memory.swap.max"}, res: Resources{Unified: map[string]string{"memory.swap.max": "4096", "memory.low": "1"}}, want: map[string]string{"memory.oom.group": "1", "memory.swap.max": "4096", "memory.low": "1"}},
		"swap is not counted": {files: []string{"cgroup.controllers", "skiff/memory.max"}, want: map[string]string{"memory.oom.group": "1"}},
		"no memory cgroups":   {files: []string{"skiff/cpu.max"}},
		"version 1":           {v1: true, files: []string{"cgroup.controllers", "skiff/memory.swap.max"}, res: Resources{MemoryLimit: 1 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, f := range tc.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, f), []byte("cpu memory pids\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			tree := &cgroupTree{v2: !tc.v1, mounts: map[string]string{"": root}}
			res, err := (&Runtime{cgroups: tree}).linuxResources(tc.res)
			if err != nil {
				t.Fatal(err)
			}
			tree.unify(res)
			if !maps.Equal(res.Unified, tc.want) || (res.Memory != nil) != (tc.res.MemoryLimit > 0) {
				t.Errorf("%v, %v of memory; want %v", res.Unified, res.Memory, tc.want)
			}
			if tc.res.Unified != nil && len(tc.res.Unified) != 2 {
				t.Error("what was asked for has changed")
			}
		})
	}
}
