package runtime

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Details are the counters of a cgroup that only monitoring asks for. What the
// kernel does not count is zero, or nil.
type Details struct {
	Stats
	Cgroup string // path below the hierarchies' roots

	CPUUserNanos, CPUSystemNanos    uint64
	CPUPeriods, CPUThrottledPeriods uint64
	CPUShares, CPUQuotaMicros       uint64 // quota: 0 when unlimited
	CPUPeriodMicros                 uint64
	MemoryCache, MemoryMapped       uint64
	MemoryPeak, MemoryFailures      uint64 // failures: times the limit was met
	Swap                            uint64
	IO                              []IOCounters // by device
	CPUStall, MemoryStall, IOStall  *Stall       // version 2 only
}

// IOCounters are what was read from and written to a block device.
type IOCounters struct {
	Device                               string // major:minor
	Reads, Writes, ReadBytes, WriteBytes uint64
}

// Stall is the kernel's pressure information: the time in which some or all
// processes waited, in microseconds, and the shares of it in percent.
type Stall struct{ Some, Full StallTime }

// StallTime is one line of a pressure file.
type StallTime struct {
	TotalMicros          uint64
	Avg10, Avg60, Avg300 float64
}

// Details reads everything that is known of the pod's cgroup, and of those of
// its running containers by ID.
func (s *Sandbox) Details(ctx context.Context) (pod Details, containers map[string]Details, err error) {
	if err := ctx.Err(); err != nil {
		return pod, nil, err
	}
	if pod, err = s.r.cgroups.details(s.cgroup); err != nil {
		return pod, nil, err
	}
	containers = map[string]Details{}
	for _, c := range s.Containers() {
		if c.State != Running {
			continue
		}
		d, err := s.r.cgroups.details(c.CgroupPath)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ends
		}
		if err != nil {
			return pod, nil, err
		}
		d.ID = c.ID
		containers[c.ID] = d
	}
	return pod, containers, nil
}

// details is stats and what else there is. Only the counters of stats have to be
// there.
func (t *cgroupTree) details(path string) (Details, error) {
	st, err := t.stats(path)
	d := Details{Stats: st, Cgroup: path}
	if err != nil {
		return d, err
	}
	if t.v2 {
		d.readV2(t.dir("", path))
	} else {
		d.readV1(t, path)
	}
	return d, nil
}

// clockTick is the unit of cpuacct.stat: a hundredth of a second on every Linux.
const clockTick = 10_000_000

func (d *Details) readV1(t *cgroupTree, path string) {
	number := func(controller, file string) uint64 {
		n, _ := readNumber(filepath.Join(t.dir(controller, path), file))
		return n
	}
	fields := func(controller, file string) map[string]uint64 {
		m, _ := readFields(filepath.Join(t.dir(controller, path), file))
		return m
	}
	acct := fields("cpuacct", "cpuacct.stat")
	d.CPUUserNanos, d.CPUSystemNanos = acct["user"]*clockTick, acct["system"]*clockTick
	cpu := fields("cpu", "cpu.stat")
	d.CPUPeriods, d.CPUThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	d.CPUShares, d.CPUPeriodMicros = number("cpu", "cpu.shares"), number("cpu", "cpu.cfs_period_us")
	d.CPUQuotaMicros = number("cpu", "cpu.cfs_quota_us") // -1 is no number, and reads as 0
	mem := fields("memory", "memory.stat")
	d.MemoryCache, d.MemoryMapped, d.Swap = mem["total_cache"], mem["total_mapped_file"], mem["total_swap"]
	d.MemoryPeak, d.MemoryFailures = number("memory", "memory.max_usage_in_bytes"), number("memory", "memory.failcnt")
	if dir := t.dir("blkio", path); dir != "" {
		d.IO = ioV1(dir)
	}
}

// ioV1 reads lines such as "8:0 Read 4096".
func ioV1(dir string) []IOCounters {
	by := map[string]*IOCounters{}
	read := func(file string, set func(c *IOCounters, op string, n uint64)) {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue // the total
			}
			n, err := strconv.ParseUint(f[2], 10, 64)
			if err != nil {
				continue
			}
			if by[f[0]] == nil {
				by[f[0]] = &IOCounters{Device: f[0]}
			}
			set(by[f[0]], f[1], n)
		}
	}
	read("blkio.throttle.io_service_bytes_recursive", func(c *IOCounters, op string, n uint64) {
		switch op {
		case "Read":
			c.ReadBytes = n
		case "Write":
			c.WriteBytes = n
		}
	})
	read("blkio.throttle.io_serviced_recursive", func(c *IOCounters, op string, n uint64) {
		switch op {
		case "Read":
			c.Reads = n
		case "Write":
			c.Writes = n
		}
	})
	return sortIO(by)
}

func sortIO(by map[string]*IOCounters) []IOCounters {
	out := make([]IOCounters, 0, len(by))
	for _, c := range by {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b IOCounters) int { return strings.Compare(a.Device, b.Device) })
	return out
}

func (d *Details) readV2(dir string) {
	fields := func(file string) map[string]uint64 {
		m, _ := readFields(filepath.Join(dir, file))
		return m
	}
	cpu := fields("cpu.stat")
	d.CPUUserNanos, d.CPUSystemNanos = cpu["user_usec"]*1000, cpu["system_usec"]*1000
	d.CPUPeriods, d.CPUThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	if weight, err := readNumber(filepath.Join(dir, "cpu.weight")); err == nil && weight > 0 {
		d.CPUShares = 2 + (weight-1)*262142/9999 // the inverse of how weights are made of shares
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cpu.max")); err == nil {
		quota, period, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		d.CPUQuotaMicros, _ = strconv.ParseUint(quota, 10, 64) // "max" reads as 0
		d.CPUPeriodMicros, _ = strconv.ParseUint(period, 10, 64)
	}
	mem := fields("memory.stat")
	d.MemoryCache, d.MemoryMapped = mem["file"], mem["file_mapped"]
	d.MemoryPeak, _ = readNumber(filepath.Join(dir, "memory.peak"))
	d.MemoryFailures = fields("memory.events")["max"]
	d.Swap, _ = readNumber(filepath.Join(dir, "memory.swap.current"))
	d.IO = ioV2(dir)
	d.CPUStall, d.MemoryStall, d.IOStall = ReadStall(filepath.Join(dir, "cpu.pressure")),
		ReadStall(filepath.Join(dir, "memory.pressure")), ReadStall(filepath.Join(dir, "io.pressure"))
}

// ioV2 reads lines such as "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func ioV2(dir string) []IOCounters {
	b, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil {
		return nil
	}
	by := map[string]*IOCounters{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		c := &IOCounters{Device: f[0]}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				c.ReadBytes = n
			case "wbytes":
				c.WriteBytes = n
			case "rios":
				c.Reads = n
			case "wios":
				c.Writes = n
			}
		}
		by[f[0]] = c
	}
	return sortIO(by)
}

// ReadStall reads a pressure file, with lines such as "some avg10=0.00 avg60=0.00 avg300=0.00
// total=0"; nil where there is none.
func ReadStall(path string) *Stall {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var s Stall
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var t StallTime
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			x, _ := strconv.ParseFloat(v, 64)
			switch k {
			case "avg10":
				t.Avg10 = x
			case "avg60":
				t.Avg60 = x
			case "avg300":
				t.Avg300 = x
			case "total":
				t.TotalMicros, _ = strconv.ParseUint(v, 10, 64)
			}
		}
		switch f[0] {
		case "some":
			s.Some = t
		case "full":
			s.Full = t
		}
	}
	return &s
}
