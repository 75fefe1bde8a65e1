package runtime

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const defaultCPUPeriod = 100_000

func (r Resources) isZero() bool { return reflect.ValueOf(r).IsZero() }

// linuxResources translates limits. On cgroup v2 libcontainer converts CPU
// shares to a weight.
func (r *Runtime) linuxResources(res Resources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if res.CPUShares > 0 || res.CPUQuota > 0 || res.CPUSet != "" || res.MemorySet != "" {
		cpu := &specs.LinuxCPU{Cpus: res.CPUSet, Mems: res.MemorySet}
		if res.CPUShares > 0 {
			v := uint64(res.CPUShares)
			cpu.Shares = &v
		}
		if res.CPUQuota > 0 {
			period := uint64(defaultCPUPeriod)
			if res.CPUPeriod > 0 {
				period = uint64(res.CPUPeriod)
			}
			cpu.Quota, cpu.Period = &res.CPUQuota, &period
		}
		out.CPU = cpu
	}
	if res.MemoryLimit > 0 {
		out.Memory = &specs.LinuxMemory{Limit: &res.MemoryLimit}
		if r.cgroups.limitsSwap() {
			out.Memory.Swap = &res.MemoryLimit // as much in all as memory alone: no swap
		}
	}
	if res.PidsLimit > 0 {
		out.Pids = &specs.LinuxPids{Limit: &res.PidsLimit}
	}
	if r.LimitsHugePages() {
		out.HugepageLimits = hugePageLimits(pageSizes(), res.HugePages)
	}
	if len(res.Unified) > 0 {
		if !r.cgroups.v2 {
			return nil, errors.New("unified resources need cgroup version 2, this machine has version 1")
		}
		out.Unified = map[string]string{}
		for k, v := range res.Unified {
			out.Unified[k] = v
		}
	}
	return out, nil
}

// unify adds what every container has on cgroup v2, as kubelet's containers have
// it, unless something else is asked for: one process over the limit of memory
// ends the container, and nothing of it is swapped, with a limit or without.
func (t *cgroupTree) unify(res *specs.LinuxResources) {
	if !t.v2 || !t.has("memory") {
		return
	}
	add := map[string]string{"memory.oom.group": "1"}
	if t.countsSwap() {
		add["memory.swap.max"] = "0"
	}
	maps.Copy(add, res.Unified)
	res.Unified = add
}

// countsSwap says whether cgroups have limits of swap: kernels can be built, and
// started, without. The root has none in any case.
func (t *cgroupTree) countsSwap() bool {
	found, err := filepath.Glob(filepath.Join(t.mounts[""], "*", "memory.swap.max"))
	return err == nil && len(found) > 0
}

// limitsSwap says whether there is swap that a limit can keep containers from.
func (t *cgroupTree) limitsSwap() bool {
	if !t.v2 {
		d := t.dir("memory", "/")
		if d == "" {
			return false
		}
		_, err := os.Stat(filepath.Join(d, "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	b, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(string(b), "\n") > 1
}
