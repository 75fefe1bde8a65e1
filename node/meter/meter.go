// Package meter counts what a node does, under the names that a kubelet's
// metrics have: dashboards and alerts for Kubernetes read them. What can be read
// when somebody asks (what runs, how much it uses) is not here but in package
// stats.
//
// The methods of a nil Meter do nothing. All are safe for concurrent use.
package meter

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
)

// Operations of the runtime, as a container runtime calls them.
const (
	RunSandbox     = "run_podsandbox"
	StartContainer = "start_container"
	PullImage      = "pull_image"
)

// Types of containers.
const (
	Main      = "container"
	Init      = "init_container"
	Ephemeral = "ephemeral_container"
)

// Meter holds the counters of one node.
type Meter struct {
	kubelet, probes *prometheus.Registry

	operations, failures                  *prometheus.CounterVec
	durations                             *prometheus.HistogramVec
	podsStarted, podsFailed               prometheus.Counter
	started, startFailed, terminated      *prometheus.CounterVec
	podStart, podSLI, podTotal, sandboxes prometheus.Observer
	rejected, evicted, collected          *prometheus.CounterVec
	pulls                                 *prometheus.HistogramVec
	asked                                 *prometheus.CounterVec
	askedFor                              *prometheus.HistogramVec
}

var (
	startBuckets = []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
	pullBuckets  = []float64{1, 5, 10, 20, 30, 60, 180, 300, 600, 900, 1200, 1800, 2700, 3600}
)

// New makes the counters of the node called name.
func New(name string) *Meter {
	m := &Meter{kubelet: prometheus.NewRegistry(), probes: prometheus.NewRegistry()}
	counters := func(r *prometheus.Registry, subsystem, name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return counters(m.kubelet, "kubelet", name, help, labels...)
	}
	times := func(r *prometheus.Registry, subsystem, name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Subsystem: subsystem, Name: name, Help: help, Buckets: buckets}, labels)
		r.MustRegister(v)
		return v
	}
	time := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return times(m.kubelet, "kubelet", name, help, buckets, labels...)
	}
	self := prometheus.NewGaugeVec(prometheus.GaugeOpts{Subsystem: "kubelet", Name: "node_name", Help: "The node's name. The count is always 1."}, []string{"node"})
	self.WithLabelValues(name).Set(1)
	m.kubelet.MustRegister(self)

	m.operations = count("runtime_operations_total", "Operations of the container runtime.", "operation_type")
	m.failures = count("runtime_operations_errors_total", "Operations of the container runtime that failed.", "operation_type")
	m.durations = time("runtime_operations_duration_seconds", "How long operations of the container runtime take.", prometheus.ExponentialBuckets(.005, 2.5, 14), "operation_type")
	m.sandboxes = time("run_podsandbox_duration_seconds", "How long it takes to make a pod's sandbox.", prometheus.DefBuckets, "runtime_handler").WithLabelValues("")
	m.podsStarted = count("started_pods_total", "Pods that got a sandbox.").WithLabelValues()
	m.podsFailed = count("started_pods_errors_total", "Pods of which a sandbox could not be made.").WithLabelValues()
	m.started = count("started_containers_total", "Containers started.", "container_type")
	m.startFailed = count("started_containers_errors_total", "Containers that could not be started.", "container_type", "code")
	m.terminated = count("terminated_containers_total", "Containers that ended.", "container_type", "exit_code", "reason")
	m.podStart = time("pod_start_duration_seconds", "From when the node sees a pod to when it runs.", startBuckets).WithLabelValues()
	m.podSLI = time("pod_start_sli_duration_seconds", "From a pod's creation to when all its containers have started, less pulls and init containers.", startBuckets).WithLabelValues()
	m.podTotal = time("pod_start_total_duration_seconds", "From a pod's creation to when all its containers have started.", startBuckets).WithLabelValues()
	m.rejected = count("admission_rejections_total", "Pods that the node did not take.", "reason")
	m.evicted = count("evictions", "Pods evicted, by what the node was short of.", "eviction_signal")
	m.collected = count("image_garbage_collected_total", "Images removed to make room or for their age.", "reason")
	m.pulls = time("image_pull_duration_seconds", "How long pulls of images take.", pullBuckets, "image_size_in_bytes")
	m.asked = counters(m.probes, "prober", "probe_total", "Answers to liveness, readiness and startup probes.", "probe_type", "result", "container", "pod", "namespace", "pod_uid")
	m.askedFor = times(m.probes, "prober", "probe_duration_seconds", "How long probes take.", prometheus.DefBuckets, "probe_type", "container", "pod", "namespace")
	return m
}

// Kubelet is what /metrics has of it.
func (m *Meter) Kubelet() prometheus.Gatherer { return m.kubelet }

// Probes is what /metrics/probes has.
func (m *Meter) Probes() prometheus.Gatherer { return m.probes }

// Operation tells of an operation of the runtime that began at began.
func (m *Meter) Operation(name string, began time.Time, err error) {
	if m == nil {
		return
	}
	took := time.Since(began).Seconds()
	m.operations.WithLabelValues(name).Inc()
	m.durations.WithLabelValues(name).Observe(took)
	if err != nil {
		m.failures.WithLabelValues(name).Inc()
	}
	if name != RunSandbox {
		return
	}
	m.sandboxes.Observe(took)
	if err != nil {
		m.podsFailed.Inc()
	} else {
		m.podsStarted.Inc()
	}
}

// Started tells of the start of a container; code names the error, if any.
func (m *Meter) Started(kind, code string) {
	switch {
	case m == nil:
	case code == "":
		m.started.WithLabelValues(kind).Inc()
	default:
		m.startFailed.WithLabelValues(kind, code).Inc()
	}
}

// Terminated tells of the end of a container.
func (m *Meter) Terminated(kind string, exitCode int32, reason string) {
	if m != nil {
		m.terminated.WithLabelValues(kind, strconv.Itoa(int(exitCode)), reason).Inc()
	}
}

// PodRuns tells that a pod has come to run: how long after its creation, after
// the node saw it, and how much of that were pulls and init containers.
func (m *Meter) PodRuns(sinceCreation, sinceSeen, excluded time.Duration) {
	if m != nil {
		m.podStart.Observe(max(0, sinceSeen).Seconds())
		m.podTotal.Observe(max(0, sinceCreation).Seconds())
		m.podSLI.Observe(max(0, sinceCreation-excluded).Seconds())
	}
}

// Rejected tells of a pod that the node did not take.
func (m *Meter) Rejected(reason string) {
	if m != nil {
		m.rejected.WithLabelValues(reason).Inc()
	}
}

// Evicted tells of a pod that had to go for a signal such as memory.available.
func (m *Meter) Evicted(signal string) {
	if m != nil {
		m.evicted.WithLabelValues(signal).Inc()
	}
}

// ImageRemoved tells of an image that nobody asked to remove; reason is space or
// age.
func (m *Meter) ImageRemoved(reason string) {
	if m != nil {
		m.collected.WithLabelValues(reason).Inc()
	}
}

// Pulled tells of a pull; bytes is the image's size when it succeeded.
func (m *Meter) Pulled(took time.Duration, bytes int64, err error) {
	if m == nil {
		return
	}
	m.operations.WithLabelValues(PullImage).Inc()
	m.durations.WithLabelValues(PullImage).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(PullImage).Inc()
		return
	}
	m.pulls.WithLabelValues(sizeClass(bytes)).Observe(took.Seconds())
}

// sizeClass are the classes that kubelet has.
func sizeClass(bytes int64) string {
	class := "0-10MB"
	for _, c := range []struct {
		from int64
		name string
	}{{10, "10MB-100MB"}, {100, "100MB-500MB"}, {500, "500MB-1GB"}, {1 << 10, "1GB-5GB"}, {5 << 10, "5GB-10GB"}, {10 << 10, "10GB-20GB"},
		{20 << 10, "20GB-30GB"}, {30 << 10, "30GB-40GB"}, {40 << 10, "40GB-60GB"}, {60 << 10, "60GB-100GB"}, {100 << 10, "GT100GB"}} {
		if bytes >= c.from<<20 {
			class = c.name
		}
	}
	return class
}

// Probed tells of one answer to a probe.
func (m *Meter) Probed(p *v1.Pod, container, kind, result string, took time.Duration) {
	if m != nil {
		m.asked.WithLabelValues(kind, result, container, p.Name, p.Namespace, string(p.UID)).Inc()
		m.askedFor.WithLabelValues(kind, container, p.Name, p.Namespace).Observe(took.Seconds())
	}
}

// Gone forgets what was counted for one pod alone.
func (m *Meter) Gone(p *v1.Pod) {
	if m != nil {
		m.asked.DeletePartialMatch(prometheus.Labels{"pod_uid": string(p.UID)})
		m.askedFor.DeletePartialMatch(prometheus.Labels{"pod": p.Name, "namespace": p.Namespace})
	}
}
