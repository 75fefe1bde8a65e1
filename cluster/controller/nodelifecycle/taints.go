package nodelifecycle

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// ours are the taints that follow from a node's state; all others are left alone.
var ours = map[string]bool{
	corev1.TaintNodeNotReady:           true,
	corev1.TaintNodeUnreachable:        true,
	corev1.TaintNodeUnschedulable:      true,
	corev1.TaintNodeMemoryPressure:     true,
	corev1.TaintNodeDiskPressure:       true,
	corev1.TaintNodePIDPressure:        true,
	corev1.TaintNodeNetworkUnavailable: true,
}

// pressures are conditions that keep new pods away while they are true.
var pressures = []struct {
	condition corev1.NodeConditionType
	taint     string
}{
	{corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure},
	{corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure},
	{corev1.NodePIDPressure, corev1.TaintNodePIDPressure},
	{corev1.NodeNetworkUnavailable, corev1.TaintNodeNetworkUnavailable},
}

// decideTaints returns the taints that a node should have. A node that has never
// reported takes no pods, but loses none either; nor does one that is not ready
// while evict is false.
func decideTaints(node *corev1.Node, now time.Time, evict bool) []corev1.Taint {
	out := []corev1.Taint{}
	for _, t := range node.Spec.Taints {
		if !ours[t.Key] {
			out = append(out, t)
		}
	}
	add := func(key string, effect corev1.TaintEffect) {
		i := slices.IndexFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key && t.Effect == effect })
		if i >= 0 { // keeps the time since when it holds
			out = append(out, node.Spec.Taints[i])
			return
		}
		t := corev1.Taint{Key: key, Effect: effect}
		if effect == corev1.TaintEffectNoExecute {
			at := metav1.NewTime(now)
			t.TimeAdded = &at
		}
		out = append(out, t)
	}
	switch conditionStatus(node, corev1.NodeReady) {
	case corev1.ConditionTrue:
	case corev1.ConditionUnknown:
		add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)
		if evict {
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
		}
	case corev1.ConditionFalse:
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
		if evict {
			add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
		}
	default:
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
	}
	for _, p := range pressures {
		if conditionStatus(node, p.condition) == corev1.ConditionTrue {
			add(p.taint, corev1.TaintEffectNoSchedule)
		}
	}
	if node.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	return out
}

// evicting reports whether a node loses its pods because it is not ready.
func evicting(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable)
	})
}

func conditionStatus(node *corev1.Node, t corev1.NodeConditionType) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

// sameTaints compares without regard to order.
func sameTaints(a, b []corev1.Taint) bool {
	if len(a) != len(b) {
		return false
	}
	for _, t := range a {
		if !slices.ContainsFunc(b, func(o corev1.Taint) bool { return o.Key == t.Key && o.Effect == t.Effect && o.Value == t.Value }) {
			return false
		}
	}
	return true
}

func noExecute(node *corev1.Node) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range node.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// evictAt is when a pod has to leave a node with taints; evict is false if it may
// stay. Of several tolerations of one taint the shortest holds, of several taints
// the one that runs out first. The time counts from when the taint was set, or
// from the pod's creation if that came later, so a restart does not prolong it. (The
// API notes the time of a taint that comes without.)
func evictAt(pod *corev1.Pod, taints []corev1.Taint) (at time.Time, evict bool) {
	for i := range taints {
		seconds, tolerated := tolerationOf(pod, &taints[i])
		if tolerated && seconds == nil {
			continue
		}
		since := pod.CreationTimestamp.Time
		if added := taints[i].TimeAdded; added != nil && added.After(since) {
			since = added.Time
		}
		if tolerated {
			since = since.Add(time.Duration(max(0, *seconds)) * time.Second)
		}
		if !evict || since.Before(at) {
			at, evict = since, true
		}
	}
	return at, evict
}

// tolerationOf tells for how long a pod tolerates a taint; nil is for ever.
func tolerationOf(pod *corev1.Pod, taint *corev1.Taint) (seconds *int64, tolerated bool) {
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if !t.ToleratesTaint(klog.Background(), taint, false) {
			continue
		}
		tolerated = true
		if t.TolerationSeconds != nil && (seconds == nil || *t.TolerationSeconds < *seconds) {
			seconds = t.TolerationSeconds
		}
	}
	return seconds, tolerated
}
