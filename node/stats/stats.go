// Package stats measures what the node and its pods use, and says so in the
// two forms that others read: the kubelet's summary and the resource metrics
// of metrics-server. It reads counters when asked and keeps nothing.
package stats

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/volume"
)

// Source is what to measure.
type Source struct {
	NodeName string
	DataDir  string
	Images   interface {
		MountUsage(key string) (bytes, inodes int64, err error)
	}
	Pods []*pod.View
}

// Summary measures everything once.
func (s Source) Summary(ctx context.Context, now time.Time) *stats.Summary {
	at := metav1.NewTime(now)
	out := &stats.Summary{Node: stats.NodeStats{NodeName: s.NodeName, StartTime: metav1.NewTime(bootTime()), CPU: nodeCPU(at), Memory: nodeMemory(at), Fs: filesystem(s.DataDir, at)}, Pods: []stats.PodStats{}}
	out.Node.Runtime = &stats.RuntimeStats{ImageFs: filesystem(s.DataDir, at)}
	for _, v := range s.sorted() {
		if v.Sandbox == nil {
			continue
		}
		ps := stats.PodStats{PodRef: stats.PodReference{Name: v.Pod.Name, Namespace: v.Pod.Namespace, UID: string(v.Pod.UID)}, Containers: []stats.ContainerStats{}}
		if v.Pod.Status.StartTime != nil {
			ps.StartTime = *v.Pod.Status.StartTime
		}
		if st, err := v.Sandbox.PodStats(ctx); err == nil {
			ps.CPU = &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &st.CPUUsageNanos}
			ps.Memory = &stats.MemoryStats{Time: at, UsageBytes: &st.MemoryUsage, WorkingSetBytes: &st.MemoryWorkingSet, RSSBytes: &st.MemoryRSS}
			ps.ProcessStats = &stats.ProcessStats{ProcessCount: &st.Pids}
		}
		byID, err := v.Sandbox.Stats(ctx)
		if err != nil {
			byID = nil
		}
		var disk uint64
		for _, name := range names(v) {
			c := v.Containers[name]
			st, ok := byID[c.ID]
			if !ok {
				continue
			}
			cs := stats.ContainerStats{Name: name, StartTime: metav1.NewTime(c.StartedAt),
				CPU:    &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &st.CPUUsageNanos},
				Memory: &stats.MemoryStats{Time: at, UsageBytes: &st.MemoryUsage, WorkingSetBytes: &st.MemoryWorkingSet, RSSBytes: &st.MemoryRSS, PageFaults: &st.PageFaults, MajorPageFaults: &st.MajorPageFaults}}
			if used, inodes, err := s.Images.MountUsage(c.ID); err == nil {
				cs.Rootfs = usage(used, inodes, at)
				disk += uint64(used)
			}
			if used, inodes, err := volume.Usage(c.LogPath); err == nil {
				cs.Logs = usage(used, inodes, at)
				disk += uint64(used)
			}
			ps.Containers = append(ps.Containers, cs)
		}
		ps.EphemeralStorage = &stats.FsStats{Time: at, UsedBytes: &disk}
		out.Pods = append(out.Pods, ps)
	}
	return out
}

func usage(bytes, inodes int64, at metav1.Time) *stats.FsStats {
	b, i := uint64(bytes), uint64(inodes)
	return &stats.FsStats{Time: at, UsedBytes: &b, InodesUsed: &i}
}

func (s Source) sorted() []*pod.View {
	out := slices.Clone(s.Pods)
	slices.SortFunc(out, func(a, b *pod.View) int {
		return strings.Compare(a.Pod.Namespace+"/"+a.Pod.Name, b.Pod.Namespace+"/"+b.Pod.Name)
	})
	return out
}

func names(v *pod.View) (out []string) {
	for n, c := range v.Containers {
		if c.Running {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// Resource writes the metrics that metrics-server scrapes.
func (s Source) Resource(ctx context.Context, w io.Writer, now time.Time) error {
	ms := now.UnixMilli()
	var b bytes.Buffer
	seconds := func(nanos uint64) string { return strconv.FormatFloat(float64(nanos)/1e9, 'f', -1, 64) }
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	type row struct {
		labels      string
		cpu, memory uint64
		start       time.Time
	}
	var ctrs, pods []row
	for _, v := range s.sorted() {
		if v.Sandbox == nil {
			continue
		}
		where := fmt.Sprintf("namespace=%q,pod=%q", v.Pod.Namespace, v.Pod.Name)
		if st, err := v.Sandbox.PodStats(ctx); err == nil {
			pods = append(pods, row{where, st.CPUUsageNanos, st.MemoryWorkingSet, time.Time{}})
		}
		byID, err := v.Sandbox.Stats(ctx)
		if err != nil {
			continue
		}
		for _, name := range names(v) {
			if st, ok := byID[v.Containers[name].ID]; ok {
				ctrs = append(ctrs, row{fmt.Sprintf("container=%q,%s", name, where), st.CPUUsageNanos, st.MemoryWorkingSet, v.Containers[name].StartedAt})
			}
		}
	}
	head("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds")
	for _, r := range ctrs {
		fmt.Fprintf(&b, "container_cpu_usage_seconds_total{%s} %s %d\n", r.labels, seconds(r.cpu), ms)
	}
	head("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes")
	for _, r := range ctrs {
		fmt.Fprintf(&b, "container_memory_working_set_bytes{%s} %d %d\n", r.labels, r.memory, ms)
	}
	head("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds")
	for _, r := range ctrs {
		fmt.Fprintf(&b, "container_start_time_seconds{%s} %.3f\n", r.labels, float64(r.start.UnixMilli())/1e3)
	}
	head("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
	if cpu := nodeCPU(metav1.NewTime(now)); cpu != nil {
		fmt.Fprintf(&b, "node_cpu_usage_seconds_total %s %d\n", seconds(*cpu.UsageCoreNanoSeconds), ms)
	}
	head("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
	if mem := nodeMemory(metav1.NewTime(now)); mem != nil {
		fmt.Fprintf(&b, "node_memory_working_set_bytes %d %d\n", *mem.WorkingSetBytes, ms)
	}
	head("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds")
	for _, r := range pods {
		fmt.Fprintf(&b, "pod_cpu_usage_seconds_total{%s} %s %d\n", r.labels, seconds(r.cpu), ms)
	}
	head("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes")
	for _, r := range pods {
		fmt.Fprintf(&b, "pod_memory_working_set_bytes{%s} %d %d\n", r.labels, r.memory, ms)
	}
	head("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	b.WriteString("resource_scrape_error 0\n")
	_, err := w.Write(b.Bytes())
	return err
}

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

// nodeCPU counts what all CPUs worked: everything but idle and waiting. A tick
// of /proc/stat is a hundredth of a second on every Linux.
func nodeCPU(at metav1.Time) *stats.CPUStats {
	f := procStat("cpu")
	if len(f) < 8 {
		return nil
	}
	var ticks uint64
	for i, s := range f[:8] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil
		}
		ticks += n
	}
	nanos := ticks * 10_000_000
	return &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &nanos}
}

func nodeMemory(at metav1.Time) *stats.MemoryStats {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	v := map[string]uint64{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				v[strings.TrimSuffix(f[0], ":")] = n << 10
			}
		}
	}
	used := v["MemTotal"] - v["MemFree"]
	working := used - min(used, v["Inactive(file)"])
	free := v["MemAvailable"]
	return &stats.MemoryStats{Time: at, AvailableBytes: &free, UsageBytes: &used, WorkingSetBytes: &working}
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
