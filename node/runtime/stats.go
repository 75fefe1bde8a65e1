package runtime

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stats reads the counters of the running containers, by container ID.
// Containers that end meanwhile are left out.
func (s *Sandbox) Stats(ctx context.Context) (map[string]Stats, error) {
	out := map[string]Stats{}
	for _, c := range s.Containers() {
		if c.State != Running {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		st, err := s.r.cgroups.stats(c.CgroupPath)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st.ID = c.ID
		out[c.ID] = st
	}
	return out, nil
}

// PodStats reads the counters of the whole pod's cgroup.
func (s *Sandbox) PodStats(ctx context.Context) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	st, err := s.r.cgroups.stats(s.cgroup)
	st.ID = s.cfg.PodUID
	return st, err
}

// noLimit is where cgroup v1 means "unlimited": the largest page-aligned value.
const noLimit = math.MaxInt64 - 1<<20

func (t *cgroupTree) stats(path string) (Stats, error) {
	if t.v2 {
		return statsV2(t.dir("", path))
	}
	var st Stats
	var errs []error
	number := func(controller, file string, dst *uint64) {
		if d := t.dir(controller, path); d != "" {
			v, err := readNumber(filepath.Join(d, file))
			*dst = v
			errs = append(errs, err)
		}
	}
	fields := func(controller, file string) map[string]uint64 {
		d := t.dir(controller, path)
		if d == "" {
			return nil
		}
		m, err := readFields(filepath.Join(d, file))
		errs = append(errs, err)
		return m
	}
	number("cpuacct", "cpuacct.usage", &st.CPUUsageNanos)
	st.CPUThrottledNanos = fields("cpu", "cpu.stat")["throttled_time"]
	number("memory", "memory.usage_in_bytes", &st.MemoryUsage)
	number("memory", "memory.limit_in_bytes", &st.MemoryLimit)
	mem := fields("memory", "memory.stat")
	st.MemoryRSS = mem["total_rss"]
	st.MemoryWorkingSet = sub(st.MemoryUsage, mem["total_inactive_file"])
	st.PageFaults, st.MajorPageFaults = mem["total_pgfault"], mem["total_pgmajfault"]
	st.OOMKills = fields("memory", "memory.oom_control")["oom_kill"]
	number("pids", "pids.current", &st.Pids)
	number("pids", "pids.max", &st.PidsLimit)
	if st.MemoryLimit >= noLimit {
		st.MemoryLimit = 0
	}
	return st, errors.Join(errs...)
}

// statsV2 leaves out what belongs to controllers that are not enabled.
func statsV2(dir string) (Stats, error) {
	var st Stats
	var errs []error
	if _, err := os.Stat(dir); err != nil {
		return st, err
	}
	add := func(err error) {
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	cpu, err := readFields(filepath.Join(dir, "cpu.stat"))
	add(err)
	st.CPUUsageNanos, st.CPUThrottledNanos = cpu["usage_usec"]*1000, cpu["throttled_usec"]*1000
	st.MemoryUsage, err = readNumber(filepath.Join(dir, "memory.current"))
	add(err)
	st.MemoryLimit, err = readNumber(filepath.Join(dir, "memory.max"))
	add(err)
	mem, err := readFields(filepath.Join(dir, "memory.stat"))
	add(err)
	st.MemoryRSS = mem["anon"]
	st.MemoryWorkingSet = sub(st.MemoryUsage, mem["inactive_file"])
	st.PageFaults, st.MajorPageFaults = mem["pgfault"], mem["pgmajfault"]
	ev, err := readFields(filepath.Join(dir, "memory.events"))
	add(err)
	st.OOMKills = ev["oom_kill"]
	st.Pids, err = readNumber(filepath.Join(dir, "pids.current"))
	add(err)
	st.PidsLimit, err = readNumber(filepath.Join(dir, "pids.max"))
	add(err)
	return st, errors.Join(errs...)
}

func sub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// readNumber reads a file with one number; "max" reads as 0.
func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	v := strings.TrimSpace(string(b))
	if v == "max" {
		return 0, nil
	}
	return strconv.ParseUint(v, 10, 64)
}

// readFields reads a file of "name number" lines.
func readFields(path string) (map[string]uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m, nil
}
