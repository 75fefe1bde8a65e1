package stats

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// tick is the unit in which /proc counts time: a hundredth of a second on every
// Linux.
const tick = 10_000_000 // ns

// procStat returns the fields of one line of /proc/stat.
func procStat(key string) []string {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) > 1 && f[0] == key {
			return f[1:]
		}
	}
	return nil
}

func bootTime() time.Time {
	if f := procStat("btime"); f != nil {
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}

// machineCPU counts the nanoseconds that all CPUs worked: everything but idle
// and waiting. ok is false where the kernel does not tell.
func machineCPU() (nanos uint64, ok bool) {
	f := procStat("cpu")
	if len(f) < 8 {
		return 0, false
	}
	for i, s := range f[:8] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, false
		}
		nanos += n * tick
	}
	return nanos, true
}

// memory is /proc/meminfo in bytes.
type memory map[string]uint64

func readMemory() memory {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	m := memory{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				m[strings.TrimSuffix(f[0], ":")] = n << 10
			}
		}
	}
	return m
}

func (m memory) used() uint64    { return m["MemTotal"] - m["MemFree"] }
func (m memory) working() uint64 { u := m.used(); return u - min(u, m["Inactive(file)"]) }
func (m memory) swapUsed() uint64 {
	return m["SwapTotal"] - min(m["SwapTotal"], m["SwapFree"])
}

func (m memory) stats(at metav1.Time) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	used, working, free := m.used(), m.working(), m["MemTotal"]-min(m["MemTotal"], m.working())
	rss := m["AnonPages"]
	return &stats.MemoryStats{Time: at, AvailableBytes: &free, UsageBytes: &used, WorkingSetBytes: &working, RSSBytes: &rss}
}

func (m memory) swap(at metav1.Time) *stats.SwapStats {
	if m == nil {
		return nil
	}
	used, free := m.swapUsed(), m["SwapFree"]
	return &stats.SwapStats{Time: at, SwapUsageBytes: &used, SwapAvailableBytes: &free}
}

// process is what one process uses.
type process struct {
	cpuNanos, rssBytes uint64
	start              time.Time
}

func readProcess(pid string) (p process, ok bool) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return p, false
	}
	// The name, in brackets, may have spaces and brackets in it.
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 22 {
		return p, false
	}
	field := func(n int) uint64 { // numbered as in proc(5)
		v, _ := strconv.ParseUint(f[n-3], 10, 64)
		return v
	}
	p.cpuNanos = (field(14) + field(15)) * tick
	p.start = bootTime().Add(time.Duration(field(22)) * tick)
	p.rssBytes = field(24) * uint64(os.Getpagesize())
	return p, true
}

// limits tells how many processes there are and may be.
func limits(at metav1.Time) *stats.RlimitStats {
	b, err := os.ReadFile("/proc/loadavg") // "0.1 0.2 0.3 1/234 5678": 234 exist
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b))
	if len(f) < 4 {
		return nil
	}
	_, count, _ := strings.Cut(f[3], "/")
	now, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return nil
	}
	most := int64(-1)
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && (most < 0 || n < most) {
			most = n
		}
	}
	if most < 0 {
		return nil
	}
	return &stats.RlimitStats{Time: at, MaxPID: &most, NumOfRunningProcesses: &now}
}

func filesystem(path string, at metav1.Time) *stats.FsStats {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil
	}
	size := uint64(fs.Bsize)
	free, all, used := fs.Bavail*size, fs.Blocks*size, (fs.Blocks-fs.Bfree)*size
	inodes, left, taken := fs.Files, fs.Ffree, fs.Files-fs.Ffree
	return &stats.FsStats{Time: at, AvailableBytes: &free, CapacityBytes: &all, UsedBytes: &used, Inodes: &inodes, InodesFree: &left, InodesUsed: &taken}
}
