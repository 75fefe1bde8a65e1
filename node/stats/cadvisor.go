package stats

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"

	noderuntime "github.com/skiff-sh/skiff/node/runtime"
)

// ofCgroup are the labels of everything under /metrics/cadvisor: the path of the
// cgroup, the container's image and ID, and its names in the cluster. Those of a
// pod as a whole have neither container nor image, those of the machine nothing
// but the path.
var ofCgroup = []string{"container", "id", "image", "name", "namespace", "pod"}

// value is one number of a metric, with what it adds to the labels.
type value struct {
	v      float64
	labels []string
}

func one(v float64) []value { return []value{{v: v}} }

// family is one metric of every cgroup.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(noderuntime.Details) []value
}

func counter(name, help string, read func(noderuntime.Details) []value, labels ...string) family {
	return family{desc(name, help, append(ofCgroup[:len(ofCgroup):len(ofCgroup)], labels...)...), prometheus.CounterValue, read}
}

func gauge(name, help string, read func(noderuntime.Details) []value, labels ...string) family {
	f := counter(name, help, read, labels...)
	f.kind = prometheus.GaugeValue
	return f
}

func micros(s *noderuntime.Stall, of func(*noderuntime.Stall) noderuntime.StallTime) []value {
	if s == nil {
		return nil
	}
	return one(float64(of(s).TotalMicros) / 1e6)
}

func some(s *noderuntime.Stall) noderuntime.StallTime { return s.Some }
func full(s *noderuntime.Stall) noderuntime.StallTime { return s.Full }

// ofDevices gives a number of each block device.
func ofDevices(read func(noderuntime.IOCounters) uint64) func(noderuntime.Details) []value {
	return func(d noderuntime.Details) (out []value) {
		for _, c := range d.IO {
			out = append(out, value{float64(read(c)), []string{deviceName(c.Device)}})
		}
		return out
	}
}

// cgroupFamilies are read from every cgroup.
var cgroupFamilies = []family{
	counter("container_cpu_usage_seconds_total", "CPU time used, in core-seconds.", func(d noderuntime.Details) []value {
		return []value{{seconds(d.CPUUsageNanos), []string{"total"}}}
	}, "cpu"),
	counter("container_cpu_user_seconds_total", "CPU time used outside the kernel.", func(d noderuntime.Details) []value { return one(seconds(d.CPUUserNanos)) }),
	counter("container_cpu_system_seconds_total", "CPU time used by the kernel.", func(d noderuntime.Details) []value { return one(seconds(d.CPUSystemNanos)) }),
	counter("container_cpu_cfs_periods_total", "Periods of the CPU quota.", limited(func(d noderuntime.Details) float64 { return float64(d.CPUPeriods) })),
	counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", limited(func(d noderuntime.Details) float64 { return float64(d.CPUThrottledPeriods) })),
	counter("container_cpu_cfs_throttled_seconds_total", "Time for which the CPU quota made processes wait.", limited(func(d noderuntime.Details) float64 { return seconds(d.CPUThrottledNanos) })),
	gauge("container_memory_usage_bytes", "Memory in use, with all caches.", func(d noderuntime.Details) []value { return one(float64(d.MemoryUsage)) }),
	gauge("container_memory_working_set_bytes", "Memory in use that cannot be given back at once.", func(d noderuntime.Details) []value { return one(float64(d.MemoryWorkingSet)) }),
	gauge("container_memory_max_usage_bytes", "Most memory that was ever in use.", func(d noderuntime.Details) []value { return one(float64(d.MemoryPeak)) }),
	gauge("container_memory_rss", "Memory without a file behind it, in bytes.", func(d noderuntime.Details) []value { return one(float64(d.MemoryRSS)) }),
	gauge("container_memory_cache", "Page cache, in bytes.", func(d noderuntime.Details) []value { return one(float64(d.MemoryCache)) }),
	gauge("container_memory_mapped_file", "Mapped files, in bytes.", func(d noderuntime.Details) []value { return one(float64(d.MemoryMapped)) }),
	gauge("container_memory_swap", "Swap space in use, in bytes.", func(d noderuntime.Details) []value { return one(float64(d.Swap)) }),
	counter("container_memory_failcnt", "Times the memory limit was met.", func(d noderuntime.Details) []value { return one(float64(d.MemoryFailures)) }),
	counter("container_memory_failures_total", "Page faults.", func(d noderuntime.Details) []value {
		return []value{{float64(d.PageFaults), []string{"pgfault", "hierarchy"}}, {float64(d.MajorPageFaults), []string{"pgmajfault", "hierarchy"}}}
	}, "failure_type", "scope"),
	counter("container_oom_events_total", "Processes killed for lack of memory.", func(d noderuntime.Details) []value { return one(float64(d.OOMKills)) }),
	counter("container_fs_reads_bytes_total", "Bytes read from disks.", ofDevices(func(c noderuntime.IOCounters) uint64 { return c.ReadBytes }), "device"),
	counter("container_fs_writes_bytes_total", "Bytes written to disks.", ofDevices(func(c noderuntime.IOCounters) uint64 { return c.WriteBytes }), "device"),
	counter("container_fs_reads_total", "Reads from disks.", ofDevices(func(c noderuntime.IOCounters) uint64 { return c.Reads }), "device"),
	counter("container_fs_writes_total", "Writes to disks.", ofDevices(func(c noderuntime.IOCounters) uint64 { return c.Writes }), "device"),
	gauge("container_threads", "Processes and threads.", func(d noderuntime.Details) []value { return one(float64(d.Pids)) }),
	gauge("container_threads_max", "Most processes and threads that may be; 0 without a limit.", func(d noderuntime.Details) []value { return one(float64(d.PidsLimit)) }),
	counter("container_pressure_cpu_waiting_seconds_total", "Time in which some waited for a CPU.", func(d noderuntime.Details) []value { return micros(d.CPUStall, some) }),
	counter("container_pressure_cpu_stalled_seconds_total", "Time in which all waited for a CPU.", func(d noderuntime.Details) []value { return micros(d.CPUStall, full) }),
	counter("container_pressure_memory_waiting_seconds_total", "Time in which some waited for memory.", func(d noderuntime.Details) []value { return micros(d.MemoryStall, some) }),
	counter("container_pressure_memory_stalled_seconds_total", "Time in which all waited for memory.", func(d noderuntime.Details) []value { return micros(d.MemoryStall, full) }),
	counter("container_pressure_io_waiting_seconds_total", "Time in which some waited for disks.", func(d noderuntime.Details) []value { return micros(d.IOStall, some) }),
	counter("container_pressure_io_stalled_seconds_total", "Time in which all waited for disks.", func(d noderuntime.Details) []value { return micros(d.IOStall, full) }),
	gauge("container_spec_cpu_period", "Period of the CPU quota, in microseconds.", func(d noderuntime.Details) []value { return one(float64(d.CPUPeriodMicros)) }),
	gauge("container_spec_cpu_shares", "Weight for CPU time.", func(d noderuntime.Details) []value { return one(float64(d.CPUShares)) }),
	gauge("container_spec_cpu_quota", "CPU quota, in microseconds.", limited(func(d noderuntime.Details) float64 { return float64(d.CPUQuotaMicros) })),
	gauge("container_spec_memory_limit_bytes", "Memory limit; 0 without one.", func(d noderuntime.Details) []value { return one(float64(d.MemoryLimit)) }),
}

// limited is of cgroups with a CPU quota only, as with cadvisor.
func limited(read func(noderuntime.Details) float64) func(noderuntime.Details) []value {
	return func(d noderuntime.Details) []value {
		if d.CPUQuotaMicros == 0 {
			return nil
		}
		return one(read(d))
	}
}

var (
	lastSeen    = desc("container_last_seen", "When this was measured, in seconds since 1970.", ofCgroup...)
	startTime   = desc("container_start_time_seconds", "When it started, in seconds since 1970.", ofCgroup...)
	processes   = desc("container_processes", "Processes and threads.", ofCgroup...)
	fsUsage     = desc("container_fs_usage_bytes", "Bytes that the container wrote into its root file system.", append(ofCgroup[:len(ofCgroup):len(ofCgroup)], "device")...)
	fsLimit     = desc("container_fs_limit_bytes", "Size of the disk.", append(ofCgroup[:len(ofCgroup):len(ofCgroup)], "device")...)
	cpuCores    = desc("machine_cpu_cores", "CPUs of the machine.")
	memoryBytes = desc("machine_memory_bytes", "Memory of the machine.")
	swapBytes   = desc("machine_swap_bytes", "Swap space of the machine.")
	scrapeError = desc("container_scrape_error", "1 if something could not be measured, else 0.")
)

// networkFamilies are read from every interface.
var networkFamilies = func() (out []struct {
	desc *prometheus.Desc
	read func(link) uint64
}) {
	add := func(name, help string, read func(link) uint64) {
		out = append(out, struct {
			desc *prometheus.Desc
			read func(link) uint64
		}{desc(name, help, append(ofCgroup[:len(ofCgroup):len(ofCgroup)], "interface")...), read})
	}
	for _, way := range []struct {
		name string
		of   func(link) traffic
	}{{"receive", func(l link) traffic { return l.rx }}, {"transmit", func(l link) traffic { return l.tx }}} {
		prefix := "container_network_" + way.name + "_"
		add(prefix+"bytes_total", "Bytes, "+way.name+".", func(l link) uint64 { return way.of(l).bytes })
		add(prefix+"packets_total", "Packets, "+way.name+".", func(l link) uint64 { return way.of(l).packets })
		add(prefix+"errors_total", "Errors, "+way.name+".", func(l link) uint64 { return way.of(l).errors })
		add(prefix+"packets_dropped_total", "Packets dropped, "+way.name+".", func(l link) uint64 { return way.of(l).dropped })
	}
	return out
}()

// Cadvisor collects the counters of every cgroup under cadvisor's names.
func (s Source) Cadvisor(ctx context.Context) prometheus.Collector {
	return collector(func(ch chan<- prometheus.Metric) {
		failed := 0.0
		cgroup := func(d noderuntime.Details, labels []string, start time.Time) {
			for _, f := range cgroupFamilies {
				for _, v := range f.read(d) {
					ch <- prometheus.MustNewConstMetric(f.desc, f.kind, v.v, append(labels[:len(labels):len(labels)], v.labels...)...)
				}
			}
			ch <- prometheus.MustNewConstMetric(processes, prometheus.GaugeValue, float64(d.Pids), labels...)
			ch <- prometheus.MustNewConstMetric(lastSeen, prometheus.GaugeValue, float64(time.Now().Unix()), labels...)
			if !start.IsZero() {
				ch <- prometheus.MustNewConstMetric(startTime, prometheus.GaugeValue, float64(start.UnixMilli())/1e3, labels...)
			}
		}
		traffic := func(list []link, labels []string) {
			for _, l := range list {
				for _, f := range networkFamilies {
					ch <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, float64(f.read(l)), append(labels[:len(labels):len(labels)], l.name)...)
				}
			}
		}
		root := []string{"", "/", "", "", "", ""}
		if d, ok := machineDetails(); ok {
			cgroup(d, root, bootTime())
			traffic(links("self"), root)
		} else {
			failed = 1
		}
		if s.All != nil {
			if st, err := s.All(); err == nil {
				cgroup(noderuntime.Details{Stats: st}, []string{"", "/kubepods", "", "", "", ""}, time.Time{})
			}
		}
		for _, m := range s.measure(ctx) {
			if !m.known {
				failed = 1
				continue
			}
			p := m.view.Pod
			labels := []string{"", m.pod.Cgroup, "", "", p.Namespace, p.Name}
			var start time.Time
			if p.Status.StartTime != nil {
				start = p.Status.StartTime.Time
			}
			cgroup(m.pod, labels, start)
			traffic(podLinks(m.view), labels)
			for name, d := range m.ctrs {
				c := m.view.Containers[name]
				labels := []string{name, d.Cgroup, imageOf(p, name), c.ID, p.Namespace, p.Name}
				cgroup(d, labels, c.StartedAt)
				if used, _, err := s.Images.MountUsage(c.ID); err == nil {
					ch <- prometheus.MustNewConstMetric(fsUsage, prometheus.GaugeValue, float64(used), append(labels, "")...)
				}
			}
		}
		if fs := filesystem(s.DataDir, metaNow()); fs != nil {
			ch <- prometheus.MustNewConstMetric(fsLimit, prometheus.GaugeValue, float64(*fs.CapacityBytes), append(root, "")...)
			ch <- prometheus.MustNewConstMetric(fsUsage, prometheus.GaugeValue, float64(*fs.UsedBytes), append(root, "")...)
		}
		if m := readMemory(); m != nil {
			ch <- prometheus.MustNewConstMetric(memoryBytes, prometheus.GaugeValue, float64(m["MemTotal"]))
			ch <- prometheus.MustNewConstMetric(swapBytes, prometheus.GaugeValue, float64(m["SwapTotal"]))
		}
		ch <- prometheus.MustNewConstMetric(cpuCores, prometheus.GaugeValue, float64(runtime.NumCPU()))
		ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, failed)
	})
}

// machineDetails is the machine in the form of a cgroup.
func machineDetails() (d noderuntime.Details, ok bool) {
	if d.CPUUsageNanos, ok = machineCPU(); !ok {
		return d, false
	}
	m := readMemory()
	d.MemoryUsage, d.MemoryWorkingSet, d.MemoryRSS, d.MemoryCache, d.MemoryMapped = m.used(), m.working(), m["AnonPages"], m["Cached"], m["Mapped"]
	d.Swap = m.swapUsed()
	d.CPUStall, d.MemoryStall, d.IOStall = noderuntime.ReadStall("/proc/pressure/cpu"), noderuntime.ReadStall("/proc/pressure/memory"), noderuntime.ReadStall("/proc/pressure/io")
	if l := limits(metaNow()); l != nil {
		d.Pids, d.PidsLimit = uint64(*l.NumOfRunningProcesses), uint64(*l.MaxPID)
	}
	return d, true
}

// imageOf is how the status of a container calls its image.
func imageOf(p *v1.Pod, name string) string {
	for _, list := range [][]v1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return list[i].Image
			}
		}
	}
	return ""
}

// deviceName is /dev/NAME of a block device by its numbers, as far as the kernel
// tells.
func deviceName(numbers string) string {
	b, err := os.ReadFile("/sys/dev/block/" + numbers + "/uevent")
	if err != nil {
		return numbers
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return numbers
}
