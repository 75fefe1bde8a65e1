package stats

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  999      9    0    0    0     0          0         0      999       9    0    0    0     0       0          0
  eth0: 1000     10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
skiffab12:5      1    0    0    0     0          0         0        5       1    0    0    0     0       0          0
veth0123: 5      1    0    0    0     0          0         0        5       1    0    0    0     0       0          0
`

func TestLinks(t *testing.T) {
	want := []link{{"eth0", traffic{1000, 10, 1, 2}, traffic{2000, 20, 3, 4}}}
	if diff := cmp.Diff(want, parseLinks(netDev), cmp.AllowUnexported(link{}, traffic{})); diff != "" {
		t.Error(diff)
	}
	n := network(parseLinks(netDev), "eth0", metav1.Now())
	if n.Name != "eth0" || *n.RxBytes != 1000 || *n.TxErrors != 3 || len(n.Interfaces) != 1 {
		t.Errorf("%+v", n)
	}
	if network(nil, "eth0", metav1.Now()) != nil {
		t.Error("a pod of the host's network has interfaces")
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		reads := 0
		read := func() map[string]uint64 {
			reads++
			out := map[string]uint64{"half": 7e9 + uint64(time.Since(begin))/2, "reset": 100 - uint64(reads)}
			if reads > 2 {
				out["new"] = 1
			}
			return out
		}
		r := &Rates{}
		for _, step := range []struct {
			wait, took time.Duration
			reads      int
			fresh      bool
		}{
			{0, firstWindow, 2, false},
			{0, firstWindow, 4, true}, // the kept one is too young
			{5 * time.Second, 0, 5, false},
			{20 * time.Second, 0, 6, false},
			{100 * time.Millisecond, 0, 7, false}, // the one before it serves
			{time.Hour, firstWindow, 9, true},
		} {
			time.Sleep(step.wait)
			asked := time.Now()
			got := r.Now(t.Context(), read)
			if took := time.Since(asked); took != step.took || reads != step.reads {
				t.Errorf("after %s: took %s, %d reads", step.wait, took, reads)
			}
			if got["half"] != 5e8 {
				t.Errorf("after %s: %d", step.wait, got["half"])
			}
			if _, ok := got["reset"]; ok {
				t.Error("a counter that went back has a rate")
			}
			if n, ok := got["new"]; ok != step.fresh || n != 0 {
				t.Errorf("after %s: new %v %d", step.wait, ok, n)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(time.Hour)
		if got := r.Now(ctx, read); got != nil {
			t.Errorf("without a client: %v", got)
		}
	})
}

func TestThisMachine(t *testing.T) {
	if n, ok := machineCPU(); !ok || n == 0 {
		t.Error("CPU:", n, ok)
	}
	if m := readMemory(); m["MemTotal"] == 0 || m.working() > m["MemTotal"] || m.used() < m.working() {
		t.Error("memory:", m)
	}
	if p, ok := readProcess("self"); !ok || p.rssBytes == 0 || p.start.Before(bootTime()) || time.Since(p.start) < 0 {
		t.Errorf("process: %+v", p)
	}
	if _, ok := readProcess("0"); ok {
		t.Error("there is a process 0")
	}
	if l := limits(metaNow()); l == nil || *l.MaxPID <= *l.NumOfRunningProcesses || *l.NumOfRunningProcesses < 1 {
		t.Errorf("limits: %+v", l)
	}
}

// box has a pod with one container; it fails on demand.
type box struct {
	pod.Sandbox
	fail bool
}

func (b box) Details(context.Context) (runtime.Details, map[string]runtime.Details, error) {
	if b.fail {
		return runtime.Details{}, nil, errors.New("no cgroup")
	}
	d := runtime.Details{Cgroup: "/pods/u", Stats: runtime.Stats{CPUUsageNanos: 3e9, MemoryUsage: 300, MemoryWorkingSet: 200, Pids: 4}, Swap: 7}
	c := runtime.Details{Cgroup: "/pods/u/id-1", CPUQuotaMicros: 50000, CPUPeriods: 9, CPUThrottledPeriods: 3,
		Stats: runtime.Stats{ID: "id-1", CPUUsageNanos: 2e9, MemoryWorkingSet: 150, MemoryLimit: 1000, OOMKills: 2},
		IO:    []runtime.IOCounters{{Device: "0:0", ReadBytes: 11, Writes: 5}}, CPUStall: &runtime.Stall{Some: runtime.StallTime{TotalMicros: 2_500_000, Avg10: 1.5}}}
	return d, map[string]runtime.Details{"id-1": c, "id-0": {}}, nil
}

type images struct{}

func (images) MountUsage(string) (int64, int64, error) { return 512, 1, nil }

func source(t *testing.T, fail bool) Source {
	v := &pod.View{Sandbox: box{fail: fail},
		Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"},
			Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{Name: "c", Image: "img:1"}}}},
		Containers: map[string]pod.ContainerView{"c": {ID: "id-1", Running: true, StartedAt: time.Unix(1000, 0)}, "old": {ID: "id-0"}}}
	return Source{NodeName: "n1", DataDir: t.TempDir(), Images: images{}, Pods: []*pod.View{v, {Pod: &v1.Pod{}}},
		All: func() (runtime.Stats, error) { return runtime.Stats{CPUUsageNanos: 5e9, MemoryWorkingSet: 900}, nil }}
}

func TestSummary(t *testing.T) {
	s := source(t, false)
	whole := s.Summary(t.Context(), false)
	if len(whole.Pods) != 1 || len(whole.Pods[0].Containers) != 1 {
		t.Fatalf("pods: %+v", whole.Pods)
	}
	p := whole.Pods[0]
	c := p.Containers[0]
	if p.PodRef.UID != "u" || *p.CPU.UsageCoreNanoSeconds != 3e9 || *p.ProcessStats.ProcessCount != 4 || *p.Swap.SwapUsageBytes != 7 || *p.EphemeralStorage.UsedBytes != 512 {
		t.Errorf("pod: %+v", p)
	}
	if c.Name != "c" || *c.Memory.AvailableBytes != 850 || *c.Rootfs.UsedBytes != 512 || *c.Rootfs.CapacityBytes == 0 || c.CPU.PSI.Some.Total != 2_500_000_000 || c.CPU.PSI.Some.Avg10 != 1.5 || c.IO != nil {
		t.Errorf("container: %+v", c)
	}
	var names []string
	for _, c := range whole.Node.SystemContainers {
		names = append(names, c.Name)
	}
	if strings.Join(names, " ") != "kubelet runtime pods" || whole.Node.Rlimit == nil || whole.Node.Fs == nil || whole.Node.Swap == nil || whole.Node.Runtime.ImageFs == nil {
		b, _ := json.Marshal(whole.Node)
		t.Errorf("node: %s", b)
	}
	s.ImageDir = "/dev" // a file system of its own
	other := filesystem(s.ImageDir, metaNow())
	if c := s.Summary(t.Context(), false).Pods[0].Containers[0]; *c.Rootfs.CapacityBytes != *other.CapacityBytes || *c.Rootfs.UsedBytes != 512 {
		t.Errorf("a file system for images: %+v, it has %+v", c.Rootfs, other)
	}
	brief := s.Summary(t.Context(), true)
	if b := brief.Pods[0]; b.CPU == nil || b.Memory == nil || b.EphemeralStorage != nil || b.Containers[0].Rootfs != nil || brief.Node.Fs != nil {
		t.Errorf("brief: %+v", b)
	}
	if b := source(t, true).Summary(t.Context(), false).Pods[0]; b.CPU != nil || len(b.Containers) != 0 {
		t.Errorf("without counters: %+v", b)
	}
}

func TestMetrics(t *testing.T) {
	s := source(t, false)
	has := func(c prometheus.Collector, want string, names ...string) {
		t.Helper()
		if err := testutil.CollectAndCompare(c, strings.NewReader(want), names...); err != nil {
			t.Error(err)
		}
	}
	has(s.Cadvisor(t.Context()), `
# HELP container_cpu_cfs_throttled_periods_total Periods in which the CPU quota was used up.
# TYPE container_cpu_cfs_throttled_periods_total counter
container_cpu_cfs_throttled_periods_total{container="c",id="/pods/u/id-1",image="img:1",name="id-1",namespace="ns",pod="p"} 3
# HELP container_fs_reads_bytes_total Bytes read from disks.
# TYPE container_fs_reads_bytes_total counter
container_fs_reads_bytes_total{container="c",device="0:0",id="/pods/u/id-1",image="img:1",name="id-1",namespace="ns",pod="p"} 11
# HELP container_scrape_error 1 if something could not be measured, else 0.
# TYPE container_scrape_error gauge
container_scrape_error 0
`, "container_cpu_cfs_throttled_periods_total", "container_fs_reads_bytes_total", "container_scrape_error")
	has(source(t, true).Cadvisor(t.Context()), `
# HELP container_scrape_error 1 if something could not be measured, else 0.
# TYPE container_scrape_error gauge
container_scrape_error 1
`, "container_scrape_error")
	has(source(t, true).Resource(t.Context()), `
# HELP resource_scrape_error 1 if something could not be measured, else 0.
# TYPE resource_scrape_error gauge
resource_scrape_error 1
`, "resource_scrape_error")
	has(s.Kubelet(), `
# HELP kubelet_running_containers Containers, by their state.
# TYPE kubelet_running_containers gauge
kubelet_running_containers{container_state="exited"} 1
kubelet_running_containers{container_state="running"} 1
# HELP kubelet_running_pods Pods that have a sandbox.
# TYPE kubelet_running_pods gauge
kubelet_running_pods 1
`, "kubelet_running_containers", "kubelet_running_pods")
	for name, c := range map[string]prometheus.Collector{"cadvisor": s.Cadvisor(t.Context()), "resource": s.Resource(t.Context()), "kubelet": s.Kubelet()} {
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(c)
		if _, err := r.Gather(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
