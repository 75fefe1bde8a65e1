package scheduler

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// message is what users read in the FailedScheduling event: "0/3 nodes are
// available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s)."
func (r *refusals) message() string {
	if r.whole != "" {
		return fmt.Sprintf("0/%d nodes are available: %s.", r.nodes, r.whole)
	}
	if r.nodes == 0 {
		return "no nodes available to schedule pods"
	}
	parts := make([]string, 0, len(r.reasons))
	for reason, n := range r.reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", r.nodes, strings.Join(parts, ", "))
}

// unsupported names the first field of a pod that asks for what this scheduler
// does not do; "" if there is none.
func unsupported(pod *corev1.Pod) string {
	if len(pod.Spec.ResourceClaims) > 0 {
		return "spec.resourceClaims"
	}
	if pod.Spec.SchedulingGroup != nil {
		return "spec.schedulingGroup"
	}
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		return "spec.os.name" // every node would fail it, and controllers would make the next one
	}
	return ""
}
