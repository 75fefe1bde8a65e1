package stats

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ofContainer and ofPod are labels.
var (
	ofContainer = []string{"container", "pod", "namespace"}
	ofPod       = []string{"pod", "namespace"}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// What metrics-server and skiff's own servers read under /metrics/resource.
var (
	nodeCPU      = desc("node_cpu_usage_seconds_total", "CPU time that the node used, in core-seconds.")
	nodeMemory   = desc("node_memory_working_set_bytes", "Memory of the node that is in use and cannot be given back at once.")
	nodeSwap     = desc("node_swap_usage_bytes", "Swap space of the node that is in use.")
	ctrCPU       = desc("container_cpu_usage_seconds_total", "CPU time that the container used, in core-seconds.", ofContainer...)
	ctrMemory    = desc("container_memory_working_set_bytes", "Memory of the container that is in use and cannot be given back at once.", ofContainer...)
	ctrSwap      = desc("container_swap_usage_bytes", "Swap space that the container uses.", ofContainer...)
	ctrStart     = desc("container_start_time_seconds", "When the container started, in seconds since 1970.", ofContainer...)
	podCPU       = desc("pod_cpu_usage_seconds_total", "CPU time that the pod used, in core-seconds.", ofPod...)
	podMemory    = desc("pod_memory_working_set_bytes", "Memory of the pod that is in use and cannot be given back at once.", ofPod...)
	podSwap      = desc("pod_swap_usage_bytes", "Swap space that the pod uses.", ofPod...)
	resourceFail = desc("resource_scrape_error", "1 if something could not be measured, else 0.")
)

// collector collects without having told what: the metrics depend on the pods.
type collector func(ch chan<- prometheus.Metric)

// Describe implements prometheus.Collector.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) { c(ch) }

func seconds(nanos uint64) float64 { return float64(nanos) / 1e9 }

// Resource collects the metrics of resources, each with its time.
func (s Source) Resource(ctx context.Context) prometheus.Collector {
	return collector(func(ch chan<- prometheus.Metric) {
		failed := 0.0
		send := func(at time.Time, d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
			ch <- prometheus.NewMetricWithTimestamp(at, prometheus.MustNewConstMetric(d, t, v, labels...))
		}
		now := time.Now()
		if n, ok := machineCPU(); ok {
			send(now, nodeCPU, prometheus.CounterValue, seconds(n))
		} else {
			failed = 1
		}
		if m := readMemory(); m != nil {
			send(now, nodeMemory, prometheus.GaugeValue, float64(m.working()))
			send(now, nodeSwap, prometheus.GaugeValue, float64(m.swapUsed()))
		} else {
			failed = 1
		}
		for _, m := range s.measure(ctx) {
			now := time.Now()
			p := m.view.Pod
			if !m.known {
				failed = 1
				continue
			}
			send(now, podCPU, prometheus.CounterValue, seconds(m.pod.CPUUsageNanos), p.Name, p.Namespace)
			send(now, podMemory, prometheus.GaugeValue, float64(m.pod.MemoryWorkingSet), p.Name, p.Namespace)
			send(now, podSwap, prometheus.GaugeValue, float64(m.pod.Swap), p.Name, p.Namespace)
			for name, d := range m.ctrs {
				send(now, ctrCPU, prometheus.CounterValue, seconds(d.CPUUsageNanos), name, p.Name, p.Namespace)
				send(now, ctrMemory, prometheus.GaugeValue, float64(d.MemoryWorkingSet), name, p.Name, p.Namespace)
				send(now, ctrSwap, prometheus.GaugeValue, float64(d.Swap), name, p.Name, p.Namespace)
				if start := m.view.Containers[name].StartedAt; !start.IsZero() {
					ch <- prometheus.MustNewConstMetric(ctrStart, prometheus.GaugeValue, float64(start.UnixMilli())/1e3, name, p.Name, p.Namespace)
				}
			}
		}
		ch <- prometheus.MustNewConstMetric(resourceFail, prometheus.GaugeValue, failed)
	})
}
