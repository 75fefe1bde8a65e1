package metrics

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// reading is what one cgroup, or the whole node, had used at a moment of the
// node's clock.
type reading struct {
	at, start   time.Time // start is unknown for nodes
	cpu         float64   // seconds
	memory      int64     // bytes of the working set
	swap        int64     // bytes
	hasCPU, has bool      // has: the memory is known
	hasSwap     bool
}

type container struct{ namespace, pod, name string }

// sample is one answer of a node.
type sample struct {
	whole      reading
	containers map[container]*reading
}

// parse reads the exposition format as a node has it under /metrics/resource.
// Samples without a time are taken to be of now.
func parse(r io.Reader, now time.Time) (*sample, error) {
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("the node's metrics cannot be read: %w", err)
	}
	s := &sample{containers: map[container]*reading{}}
	s.each(families["node_cpu_usage_seconds_total"], now, (*reading).setCPU)
	s.each(families["node_memory_working_set_bytes"], now, (*reading).setMemory)
	s.each(families["node_swap_usage_bytes"], now, (*reading).setSwap)
	s.each(families["container_cpu_usage_seconds_total"], now, (*reading).setCPU)
	s.each(families["container_memory_working_set_bytes"], now, (*reading).setMemory)
	s.each(families["container_swap_usage_bytes"], now, (*reading).setSwap)
	s.each(families["container_start_time_seconds"], now, (*reading).setStart)
	return s, nil
}

func (r *reading) setCPU(v float64, at time.Time)   { r.cpu, r.hasCPU, r.at = v, true, at }
func (r *reading) setMemory(v float64, _ time.Time) { r.memory, r.has = int64(v), true }
func (r *reading) setSwap(v float64, _ time.Time)   { r.swap, r.hasSwap = int64(v), true }
func (r *reading) setStart(v float64, _ time.Time)  { r.start = time.UnixMicro(int64(v * 1e6)) }
func (r *reading) complete() bool                   { return r.hasCPU && r.has }
func (r *reading) restarted(since *reading) bool {
	return !r.start.Equal(since.start) || r.cpu < since.cpu
}
func newer(r, than *reading) (d time.Duration, ok bool) { d = r.at.Sub(than.at); return d, d > 0 }

// each gives the values of a family to the readings that they belong to.
func (s *sample) each(f *dto.MetricFamily, now time.Time, set func(*reading, float64, time.Time)) {
	for _, m := range f.GetMetric() {
		at := now
		if ms := m.GetTimestampMs(); ms != 0 {
			at = time.UnixMilli(ms)
		}
		var v float64
		switch {
		case m.Counter != nil:
			v = m.Counter.GetValue()
		case m.Gauge != nil:
			v = m.Gauge.GetValue()
		default:
			v = m.Untyped.GetValue()
		}
		set(s.of(m.GetLabel()), v, at)
	}
}

// of finds the reading that labels name; those of a node have none.
func (s *sample) of(labels []*dto.LabelPair) *reading {
	var c container
	for _, l := range labels {
		switch l.GetName() {
		case "namespace":
			c.namespace = l.GetValue()
		case "pod":
			c.pod = l.GetValue()
		case "container":
			c.name = l.GetValue()
		}
	}
	if c == (container{}) {
		return &s.whole
	}
	r := s.containers[c]
	if r == nil {
		r = &reading{}
		s.containers[c] = r
	}
	return r
}

// pair are two samples of one node.
type pair struct{ before, after *sample }

// minAge is how old a container is at least before its use since its start says
// anything.
const minAge = 10 * time.Millisecond

// rate gives the CPUs that were in use between two readings, and the time between
// them. Of what began after the first reading it is the rate since then.
func rate(before, after *reading) (cpus float64, window time.Duration, ok bool) {
	if !after.complete() {
		return 0, 0, false
	}
	if before != nil && before.hasCPU && !after.restarted(before) {
		d, ok := newer(after, before)
		if !ok {
			return 0, 0, false
		}
		return (after.cpu - before.cpu) / d.Seconds(), d, true
	}
	if after.start.IsZero() {
		return 0, 0, false
	}
	if window = after.at.Sub(after.start); window < minAge {
		return 0, 0, false
	}
	return after.cpu / window.Seconds(), window, true
}

func usage(cpus float64, r *reading) corev1.ResourceList {
	list := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(cpus*1e9), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(r.memory, resource.BinarySI),
	}
	if r.hasSwap {
		list["swap"] = *resource.NewQuantity(r.swap, resource.BinarySI)
	}
	return list
}

// node is what the node used; nil when that is not known.
func (p pair) node(n *corev1.Node) *metricsv1beta1.NodeMetrics {
	cpus, window, ok := rate(&p.before.whole, &p.after.whole)
	if !ok {
		return nil
	}
	return &metricsv1beta1.NodeMetrics{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.NewTime(time.Now())},
		Timestamp:  metav1.NewTime(p.after.whole.at), Window: metav1.Duration{Duration: window},
		Usage: usage(cpus, &p.after.whole),
	}
}

// pod is what the containers of a pod used; nil when that is not known of any.
func (p pair) pod(pod *corev1.Pod) *metricsv1beta1.PodMetrics {
	m := &metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, Labels: pod.Labels, CreationTimestamp: metav1.NewTime(time.Now())}}
	add := func(name string) {
		key := container{pod.Namespace, pod.Name, name}
		after := p.after.containers[key]
		if after == nil {
			return
		}
		cpus, window, ok := rate(p.before.containers[key], after)
		if !ok {
			return
		}
		m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: name, Usage: usage(cpus, after)})
		if after.at.After(m.Timestamp.Time) {
			m.Timestamp = metav1.NewTime(after.at)
		}
		m.Window.Duration = max(m.Window.Duration, window)
	}
	for _, c := range pod.Spec.InitContainers {
		add(c.Name)
	}
	for _, c := range pod.Spec.Containers {
		add(c.Name)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		add(c.Name)
	}
	if len(m.Containers) == 0 {
		return nil
	}
	slices.SortFunc(m.Containers, func(x, y metricsv1beta1.ContainerMetrics) int { return strings.Compare(x.Name, y.Name) })
	return m
}
