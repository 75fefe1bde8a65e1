package pod

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// admit checks again what the scheduler has checked: a pod may name its node
// itself. The words are kubelet's.
func (m *Manager) admit(w *worker) (reason, message string) {
	p := w.pod
	if os, ok := p.Spec.NodeSelector[v1.LabelOSStable]; ok && os != string(v1.Linux) {
		return "PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != v1.Linux {
		return "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"
	}
	if node := m.cfg.Node(); node != nil {
		ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(node)
		if err != nil || !ok {
			return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
		}
		noExecute := func(t *v1.Taint) bool { return t.Effect == v1.TaintEffectNoExecute }
		if _, bad := corev1helpers.FindMatchingUntoleratedTaint(logr.FromSlogHandler(slog.DiscardHandler), node.Spec.Taints, p.Spec.Tolerations, noExecute, true); bad {
			return "TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
		}
	}
	if reason, message := m.cfg.Sysctls.admit(p); reason != "" {
		return reason, message
	}
	return m.grants.admit(p)
}

// lacking names the first resource of which there is not enough beside others
// for what p asks for, and says so; "" when all is there. What the node does not
// count, such as extended resources of the cluster, it does not limit.
func lacking(p *v1.Pod, others []*v1.Pod, allocatable v1.ResourceList) (v1.ResourceName, string) {
	used := v1.ResourceList{}
	for _, o := range others {
		for name, q := range resource.PodRequests(o, resource.PodResourcesOptions{}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	first := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	names := slices.Sorted(maps.Keys(requests))
	for _, name := range append(first, slices.DeleteFunc(names, func(n v1.ResourceName) bool { return slices.Contains(first, n) })...) {
		want, have := requests[name], allocatable[name]
		if want.IsZero() || have.IsZero() && !strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			continue
		}
		sum := used[name]
		total := sum.DeepCopy()
		total.Add(want)
		if total.Cmp(have) > 0 {
			return name, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				name, units(name, want), units(name, sum), units(name, have))
		}
	}
	return "", ""
}

// units is a quantity as messages give it: cpu in thousandths.
func units(name v1.ResourceName, q apiresource.Quantity) int64 {
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// portClash names a port of the node that both pods want.
func portClash(a, b *v1.Pod) (uint16, bool) {
	theirs := hostPorts(b)
	for _, x := range hostPorts(a) {
		for _, y := range theirs {
			if x.HostPort == y.HostPort && x.Protocol == y.Protocol && (x.HostIP == y.HostIP || anyIP(x.HostIP) || anyIP(y.HostIP)) {
				return x.HostPort, true
			}
		}
	}
	return 0, false
}

func anyIP(ip netip.Addr) bool { return !ip.IsValid() || ip.IsUnspecified() }
