package runtime

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What the kernel writes, of both versions, gives the same figures.
func TestDetails(t *testing.T) {
	v2, v1 := t.TempDir(), t.TempDir()
	writeTree(t, v2, map[string]string{
		"p/cpu.stat": "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 40\nnr_throttled 7\nthrottled_usec 900\n",
		"p/cpu.max":  "50000 100000\n", "p/cpu.weight": "39\n",
		"p/memory.current": "8192\n", "p/memory.max": "max\n", "p/memory.peak": "12288\n", "p/memory.swap.current": "4096\n",
		"p/memory.stat":   "anon 4096\nfile 2048\nfile_mapped 1024\ninactive_file 1000\npgfault 9\npgmajfault 1\n",
		"p/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
		"p/pids.current":  "2\n", "p/pids.max": "10\n",
		"p/io.stat":         "254:16 rbytes=0 wbytes=512 rios=0 wios=1 dbytes=0 dios=0\n254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n",
		"p/cpu.pressure":    "some avg10=1.50 avg60=0.25 avg300=0.10 total=777\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
		"p/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	})
	writeTree(t, v1, map[string]string{
		"cpuacct/p/cpuacct.usage": "5000000000\n", "cpuacct/p/cpuacct.stat": "user 300\nsystem 200\n",
		"cpu/p/cpu.stat": "nr_periods 40\nnr_throttled 7\nthrottled_time 900000\n", "cpu/p/cpu.shares": "998\n", "cpu/p/cpu.cfs_period_us": "100000\n", "cpu/p/cpu.cfs_quota_us": "50000\n",
		"memory/p/memory.usage_in_bytes": "8192\n", "memory/p/memory.limit_in_bytes": "9223372036854771712\n", "memory/p/memory.max_usage_in_bytes": "12288\n", "memory/p/memory.failcnt": "3\n",
		"memory/p/memory.stat":        "cache 1\ntotal_cache 2048\ntotal_rss 4096\ntotal_mapped_file 1024\ntotal_swap 4096\ntotal_inactive_file 1000\ntotal_pgfault 9\ntotal_pgmajfault 1\n",
		"memory/p/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"pids/p/pids.current":         "2\n", "pids/p/pids.max": "10\n",
		"blkio/p/blkio.throttle.io_service_bytes_recursive": "254:0 Read 4096\n254:0 Write 8192\n254:0 Total 12288\n254:16 Read 0\n254:16 Write 512\nTotal 12800\n",
		"blkio/p/blkio.throttle.io_serviced_recursive":      "254:0 Read 1\n254:0 Write 2\n254:16 Read 0\n254:16 Write 1\nTotal 4\n",
	})
	one := map[string]string{}
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		one[c] = filepath.Join(v1, c)
	}
	want := Details{
		Stats: Stats{CPUUsageNanos: 5e9, CPUThrottledNanos: 900_000, MemoryUsage: 8192, MemoryWorkingSet: 7192, MemoryRSS: 4096,
			PageFaults: 9, MajorPageFaults: 1, OOMKills: 1, Pids: 2, PidsLimit: 10},
		Cgroup: "/p", CPUUserNanos: 3e9, CPUSystemNanos: 2e9, CPUPeriods: 40, CPUThrottledPeriods: 7, CPUShares: 998, CPUQuotaMicros: 50000, CPUPeriodMicros: 100000,
		MemoryCache: 2048, MemoryMapped: 1024, MemoryPeak: 12288, MemoryFailures: 3, Swap: 4096,
		IO: []IOCounters{{"254:0", 1, 2, 4096, 8192}, {"254:16", 0, 1, 0, 512}},
	}
	got, err := (&cgroupTree{mounts: one}).details("/p")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("version 1: %v\n%s", err, diff)
	}
	want.CPUStall = &Stall{Some: StallTime{777, 1.5, 0.25, 0.1}, Full: StallTime{TotalMicros: 5}}
	want.MemoryStall = &Stall{}
	got, err = (&cgroupTree{v2: true, mounts: map[string]string{"": v2}}).details("/p")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("version 2: %v\n%s", err, diff)
	}
	if _, err := (&cgroupTree{v2: true, mounts: map[string]string{"": v2}}).details("/gone"); err == nil {
		t.Error("a cgroup that is not there has counters")
	}
}
