// Package stats measures what the node and its pods use, in the forms that
// others read: kubelet's summary, and metrics under kubelet's and cadvisor's
// names. It reads counters when asked; nothing runs in between.
package stats

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

// Source is what to measure.
type Source struct {
	NodeName string
	DataDir  string
	ImageDir string // DataDir when empty
	Images   interface {
		MountUsage(key string) (bytes, inodes int64, err error)
	}
	Pods  []*pod.View
	All   func() (runtime.Stats, error) // of all pods together; nil where nobody can tell
	Rates *Rates                        // nil: the summary has no rates
}

func (s Source) imageDir() string {
	if s.ImageDir == "" {
		return s.DataDir
	}
	return s.ImageDir
}

func metaNow() metav1.Time { return metav1.NewTime(time.Now()) }

// detailed is a sandbox that also has the counters for monitoring.
type detailed interface {
	Details(ctx context.Context) (runtime.Details, map[string]runtime.Details, error)
}

// measured is one pod with its counters.
type measured struct {
	view  *pod.View
	pod   runtime.Details
	known bool                       // that the pod's counters are
	ctrs  map[string]runtime.Details // by container name
}

// measure reads the counters of all pods that have a sandbox, by namespace and
// name.
func (s Source) measure(ctx context.Context) (out []measured) {
	views := slices.Clone(s.Pods)
	slices.SortFunc(views, func(a, b *pod.View) int {
		return strings.Compare(a.Pod.Namespace+"/"+a.Pod.Name, b.Pod.Namespace+"/"+b.Pod.Name)
	})
	for _, v := range views {
		if v.Sandbox == nil {
			continue
		}
		m := measured{view: v, ctrs: map[string]runtime.Details{}}
		byID := map[string]runtime.Details{}
		if d, ok := v.Sandbox.(detailed); ok {
			var err error
			m.pod, byID, err = d.Details(ctx)
			m.known = err == nil
		} else {
			st, err := v.Sandbox.PodStats(ctx)
			m.pod.Stats, m.known = st, err == nil
			if all, err := v.Sandbox.Stats(ctx); err == nil {
				for id, st := range all {
					byID[id] = runtime.Details{Stats: st}
				}
			}
		}
		for name, c := range v.Containers {
			if d, ok := byID[c.ID]; ok && c.Running {
				m.ctrs[name] = d
			}
		}
		out = append(out, m)
	}
	return out
}

// names are those of the containers that run, sorted.
func (m measured) names() (out []string) {
	for n := range m.ctrs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Keys of rates that are neither a pod's UID nor a container's ID.
const (
	keyNode    = "node"
	keyPods    = "pods"
	keyKubelet = "kubelet"
	keyRuntime = "runtime"
)

// rates gives the CPUs in use of everything in the summary.
func (s Source) rates(ctx context.Context) map[string]uint64 {
	if s.Rates == nil {
		return nil
	}
	return s.Rates.Now(ctx, func() map[string]uint64 {
		out := map[string]uint64{}
		if n, ok := machineCPU(); ok {
			out[keyNode] = n
		}
		if p, ok := readProcess("self"); ok {
			out[keyKubelet] = p.cpuNanos
		}
		out[keyRuntime] = s.shims().cpuNanos
		if s.All != nil {
			if st, err := s.All(); err == nil {
				out[keyPods] = st.CPUUsageNanos
			}
		}
		for _, m := range s.measure(ctx) {
			if m.known {
				out[string(m.view.Pod.UID)] = m.pod.CPUUsageNanos
			}
			for _, d := range m.ctrs {
				out[d.ID] = d.CPUUsageNanos
			}
		}
		return out
	})
}

// shims adds up the processes that hold the pods.
func (s Source) shims() (sum process) {
	for _, v := range s.Pods {
		sb, ok := v.Sandbox.(interface{ PID() int })
		if !ok || sb.PID() <= 0 {
			continue
		}
		if p, ok := readProcess(strconv.Itoa(sb.PID())); ok {
			sum.cpuNanos += p.cpuNanos
			sum.rssBytes += p.rssBytes
			if sum.start.IsZero() || p.start.Before(sum.start) {
				sum.start = p.start
			}
		}
	}
	return sum
}

// Summary measures everything; brief leaves out all but CPU and memory. Its
// first caller waits a second for the rates.
func (s Source) Summary(ctx context.Context, brief bool) *stats.Summary {
	rates := s.rates(ctx)
	at := metav1.NewTime(time.Now())
	rate := func(key string) *uint64 {
		if n, ok := rates[key]; ok {
			return &n
		}
		return nil
	}
	out := &stats.Summary{Node: stats.NodeStats{NodeName: s.NodeName, StartTime: metav1.NewTime(bootTime())}, Pods: []stats.PodStats{}}
	mem := readMemory()
	out.Node.Memory = mem.stats(at)
	if n, ok := machineCPU(); ok {
		out.Node.CPU = &stats.CPUStats{Time: at, UsageNanoCores: rate(keyNode), UsageCoreNanoSeconds: &n, PSI: stall(runtime.ReadStall("/proc/pressure/cpu"))}
	}
	out.Node.SystemContainers = s.system(at, rate, mem)
	if !brief {
		out.Node.Swap, out.Node.Rlimit = mem.swap(at), limits(at)
		out.Node.Network = network(links("self"), defaultInterface(), at)
		out.Node.Fs = filesystem(s.DataDir, at)
		out.Node.Runtime = &stats.RuntimeStats{ImageFs: filesystem(s.imageDir(), at), ContainerFs: filesystem(s.imageDir(), at)}
		if out.Node.Memory != nil {
			out.Node.Memory.PSI = stall(runtime.ReadStall("/proc/pressure/memory"))
		}
		if p := stall(runtime.ReadStall("/proc/pressure/io")); p != nil {
			out.Node.IO = &stats.IOStats{Time: at, PSI: p}
		}
	}
	for _, m := range s.measure(ctx) {
		out.Pods = append(out.Pods, s.podStats(m, at, brief, rate))
	}
	return out
}

// system are the parts of the node itself: skiff, the shims, and the cgroup of
// all pods.
func (s Source) system(at metav1.Time, rate func(string) *uint64, mem memory) (out []stats.ContainerStats) {
	add := func(name, key string, start time.Time, cpu, used, working, rss uint64) {
		out = append(out, stats.ContainerStats{Name: name, StartTime: metav1.NewTime(start),
			CPU:    &stats.CPUStats{Time: at, UsageNanoCores: rate(key), UsageCoreNanoSeconds: &cpu},
			Memory: &stats.MemoryStats{Time: at, UsageBytes: &used, WorkingSetBytes: &working, RSSBytes: &rss}})
	}
	if p, ok := readProcess("self"); ok {
		add(stats.SystemContainerKubelet, keyKubelet, p.start, p.cpuNanos, p.rssBytes, p.rssBytes, p.rssBytes)
	}
	shims := s.shims()
	add(stats.SystemContainerRuntime, keyRuntime, shims.start, shims.cpuNanos, shims.rssBytes, shims.rssBytes, shims.rssBytes)
	if s.All != nil {
		if st, err := s.All(); err == nil {
			add(stats.SystemContainerPods, keyPods, bootTime(), st.CPUUsageNanos, st.MemoryUsage, st.MemoryWorkingSet, st.MemoryRSS)
			if i := len(out) - 1; mem != nil {
				free := mem["MemTotal"] - min(mem["MemTotal"], st.MemoryWorkingSet)
				out[i].Memory.AvailableBytes = &free
			}
		}
	}
	return out
}

func (s Source) podStats(m measured, at metav1.Time, brief bool, rate func(string) *uint64) stats.PodStats {
	p := m.view.Pod
	ps := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, Containers: []stats.ContainerStats{}}
	if p.Status.StartTime != nil {
		ps.StartTime = *p.Status.StartTime
	}
	if m.known {
		ps.CPU, ps.Memory = use(m.pod, at, rate(string(p.UID)), false)
		if !brief {
			pids := m.pod.Pids
			ps.ProcessStats = &stats.ProcessStats{ProcessCount: &pids}
			ps.Swap, ps.IO = swap(m.pod, at), io(m.pod, at)
		}
	}
	var disk, inodes uint64
	for _, name := range m.names() {
		d := m.ctrs[name]
		c := m.view.Containers[name]
		cs := stats.ContainerStats{Name: name, StartTime: metav1.NewTime(c.StartedAt)}
		cs.CPU, cs.Memory = use(d, at, rate(d.ID), true)
		if !brief {
			cs.Swap, cs.IO = swap(d, at), io(d, at)
			if used, n, err := s.Images.MountUsage(c.ID); err == nil {
				cs.Rootfs = within(s.imageDir(), used, n, at)
				disk, inodes = disk+uint64(used), inodes+uint64(n)
			}
			if used, n, err := logUsage(c.LogPath); err == nil {
				cs.Logs = within(filepath.Dir(c.LogPath), used, n, at)
				disk, inodes = disk+uint64(used), inodes+uint64(n)
			}
		}
		ps.Containers = append(ps.Containers, cs)
	}
	if brief {
		return ps
	}
	ps.Network = network(podLinks(m.view), podInterface, at)
	if m.view.Volumes != nil {
		for _, v := range m.view.Volumes.Stats() {
			ps.VolumeStats = append(ps.VolumeStats, volumeStats(v, p.Namespace, at))
			if v.Local {
				disk, inodes = disk+uint64(v.Used), inodes+uint64(v.InodesUsed)
			}
		}
	}
	ps.EphemeralStorage = within(s.DataDir, int64(disk), int64(inodes), at)
	return ps
}

// use gives the two parts that everything has; containers tell what they have
// left below their limit.
func use(d runtime.Details, at metav1.Time, rate *uint64, container bool) (*stats.CPUStats, *stats.MemoryStats) {
	cpu := &stats.CPUStats{Time: at, UsageNanoCores: rate, UsageCoreNanoSeconds: &d.CPUUsageNanos, PSI: stall(d.CPUStall)}
	mem := &stats.MemoryStats{Time: at, UsageBytes: &d.MemoryUsage, WorkingSetBytes: &d.MemoryWorkingSet, RSSBytes: &d.MemoryRSS,
		PageFaults: &d.PageFaults, MajorPageFaults: &d.MajorPageFaults, PSI: stall(d.MemoryStall)}
	if container && d.MemoryLimit > 0 {
		left := d.MemoryLimit - min(d.MemoryLimit, d.MemoryWorkingSet)
		mem.AvailableBytes = &left
	}
	return cpu, mem
}

func swap(d runtime.Details, at metav1.Time) *stats.SwapStats {
	return &stats.SwapStats{Time: at, SwapUsageBytes: &d.Swap}
}

func io(d runtime.Details, at metav1.Time) *stats.IOStats {
	if d.IOStall == nil {
		return nil
	}
	return &stats.IOStats{Time: at, PSI: stall(d.IOStall)}
}

func stall(s *runtime.Stall) *stats.PSIStats {
	if s == nil {
		return nil
	}
	data := func(t runtime.StallTime) stats.PSIData {
		return stats.PSIData{Total: t.TotalMicros * 1000, Avg10: t.Avg10, Avg60: t.Avg60, Avg300: t.Avg300}
	}
	return &stats.PSIStats{Some: data(s.Some), Full: data(s.Full)}
}

// within is what is used of the file system that has dir.
func within(dir string, bytes, inodes int64, at metav1.Time) *stats.FsStats {
	b, i := uint64(bytes), uint64(inodes)
	fs := filesystem(dir, at)
	if fs == nil {
		fs = &stats.FsStats{Time: at}
	}
	fs.UsedBytes, fs.InodesUsed = &b, &i
	return fs
}

// logUsage measures the logs of a container: those of all its attempts.
func logUsage(newest string) (bytes, inodes int64, err error) {
	i := strings.LastIndexByte(newest, '/')
	if i <= 0 {
		return 0, 0, os.ErrNotExist
	}
	return volume.Usage(newest[:i])
}

func volumeStats(v volume.Stats, namespace string, at metav1.Time) stats.VolumeStats {
	u := func(n int64) *uint64 { x := uint64(n); return &x }
	out := stats.VolumeStats{Name: v.Name, FsStats: stats.FsStats{Time: at, CapacityBytes: u(v.Capacity), AvailableBytes: u(v.Available), UsedBytes: u(v.Used),
		Inodes: u(v.Inodes), InodesFree: u(v.InodesFree), InodesUsed: u(v.InodesUsed)}}
	if v.Claim != "" {
		out.PVCRef = &stats.PVCReference{Name: v.Claim, Namespace: namespace}
	}
	return out
}
