package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// While a pod is resized, the larger of what it asks for, was granted and has
// counts; what its node can never grant does not.
func TestResizingPodsCountForTheMost(t *testing.T) {
	cpu := func(s string) corev1.ResourceList { return corev1.ResourceList{"cpu": resource.MustParse(s)} }
	status := func(granted, has string, reason string) corev1.PodStatus {
		st := corev1.PodStatus{
			AllocatedResources: cpu(granted), Resources: &corev1.ResourceRequirements{Requests: cpu(has)},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", AllocatedResources: cpu(granted), Resources: &corev1.ResourceRequirements{Requests: cpu(has)}}},
		}
		if reason != "" {
			st.Conditions = []corev1.PodCondition{{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: reason}}
		}
		return st
	}
	for _, tc := range []struct {
		name   string
		spec   string
		status corev1.PodStatus
		whole  bool
		want   int64
	}{
		{"grown, not granted", "2", status("1", "1", ""), false, 2000},
		{"deferred", "2", status("1", "1", corev1.PodReasonDeferred), false, 2000},
		{"infeasible", "9", status("1", "1", corev1.PodReasonInfeasible), false, 1000},
		{"shrunk, not granted", "1", status("2", "2", ""), false, 2000},
		{"shrunk, still in force", "1", status("1", "3", ""), false, 3000},
		{"as a whole, shrunk", "1", status("1", "3", ""), true, 3000},
		{"as a whole, infeasible", "9", status("2", "1", corev1.PodReasonInfeasible), true, 2000},
	} {
		p := pod("p")
		p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: cpu(tc.spec)}}}
		if tc.whole {
			p.Spec.Resources, p.Spec.Containers[0].Resources = &corev1.ResourceRequirements{Requests: cpu(tc.spec)}, corev1.ResourceRequirements{}
		}
		p.Spec.Overhead = cpu("10m")
		p.Status = tc.status
		i, err := newPodInfo(p)
		if err != nil || i.requests.cpu != tc.want+10 {
			t.Errorf("%s: %d, %v; want %d and 10 of overhead", tc.name, i.requests.cpu, err, tc.want)
		}
	}
}
