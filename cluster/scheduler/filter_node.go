package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// unschedulableFilter refuses cordoned nodes.
func unschedulableFilter(p *podInfo, _ *state) check {
	cordoned := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	if tolerates(p.pod.Spec.Tolerations, &cordoned) {
		return nil
	}
	return func(n *nodeInfo) []string {
		if n.node.Spec.Unschedulable {
			return []string{"node(s) were unschedulable"}
		}
		return nil
	}
}

// nodeNameFilter keeps pods that name a node to it. They never come here unless
// their binding is still on its way, but other callers may ask.
func nodeNameFilter(p *podInfo, _ *state) check {
	if p.pod.Spec.NodeName == "" {
		return nil
	}
	return func(n *nodeInfo) []string {
		if n.name != p.pod.Spec.NodeName {
			return []string{"node(s) didn't match the requested node name"}
		}
		return nil
	}
}

// taintFilter refuses nodes with a taint against scheduling that the pod does
// not tolerate.
func taintFilter(p *podInfo, _ *state) check {
	return func(n *nodeInfo) []string {
		if untolerated(p.pod, n.node) {
			return []string{"node(s) had untolerated taint(s)"}
		}
		return nil
	}
}

func untolerated(pod *corev1.Pod, node *corev1.Node) bool {
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(pod.Spec.Tolerations, t) {
			return true
		}
	}
	return false
}

func tolerates(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range tolerations {
		if tolerations[i].ToleratesTaint(klog.Background(), taint, false) {
			return true
		}
	}
	return false
}

// nodeAffinityFilter keeps to the node selector and the required node affinity.
func nodeAffinityFilter(p *podInfo, _ *state) check {
	match := nodeAffinity(p.pod)
	if match == nil {
		return nil
	}
	return func(n *nodeInfo) []string {
		if !match(n.node) {
			return []string{"node(s) didn't match Pod's node affinity/selector"}
		}
		return nil
	}
}

// nodeAffinity returns what tells the nodes that a pod may run on; nil for all.
func nodeAffinity(pod *corev1.Pod) func(*corev1.Node) bool {
	a := pod.Spec.Affinity
	if len(pod.Spec.NodeSelector) == 0 &&
		(a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil) {
		return nil
	}
	required := nodeaffinity.GetRequiredNodeAffinity(pod)
	return func(node *corev1.Node) bool {
		ok, err := required.Match(node)
		return ok && err == nil
	}
}

// pinnedTo returns the only nodes that a pod's affinity allows by name, as the
// pods of DaemonSets have it; ok is false if other nodes may do.
func pinnedTo(pod *corev1.Pod) (names []string, ok bool) {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil, false
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		named := false
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && f.Operator == corev1.NodeSelectorOpIn {
				names = append(names, f.Values...)
				named = true
			}
		}
		if !named {
			return nil, false // terms are alternatives: this one allows others
		}
	}
	return names, true
}

// portFilter refuses nodes where a host port is taken.
func portFilter(p *podInfo, _ *state) check {
	if len(p.ports) == 0 {
		return nil
	}
	return func(n *nodeInfo) []string {
		for _, port := range p.ports {
			if n.portTaken(port) {
				return []string{"node(s) didn't have free ports for the requested pod ports"}
			}
		}
		return nil
	}
}

// fitFilter refuses nodes without room. It names every resource that is short.
func fitFilter(p *podInfo, _ *state) check {
	r := p.requests
	return func(n *nodeInfo) []string {
		var short []string
		if len(n.pods)+1 > n.maxPods {
			short = append(short, "Too many pods")
		}
		if r.cpu > 0 && r.cpu > n.allocatable.cpu-n.used.cpu {
			short = append(short, "Insufficient cpu")
		}
		if r.memory > 0 && r.memory > n.allocatable.memory-n.used.memory {
			short = append(short, "Insufficient memory")
		}
		if r.storage > 0 && r.storage > n.allocatable.storage-n.used.storage {
			short = append(short, "Insufficient ephemeral-storage")
		}
		for name, want := range r.other {
			if want > 0 && want > n.allocatable.other[name]-n.used.other[name] {
				short = append(short, "Insufficient "+string(name))
			}
		}
		return short
	}
}
