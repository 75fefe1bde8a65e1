package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// QOS gives the pod's class: Guaranteed when cpu and memory of every container
// are limited and requested alike, BestEffort when nothing is asked for, else
// Burstable. Resources of the pod as a whole take the place of those of its
// containers.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	var all []corev1.ResourceRequirements
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		all = append(all, *pod.Spec.Resources)
	} else {
		for _, c := range pod.Spec.Containers {
			all = append(all, c.Resources)
		}
		for _, c := range pod.Spec.InitContainers {
			all = append(all, c.Resources)
		}
	}
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	guaranteed := true
	for _, r := range all {
		addComputing(requests, r.Requests)
		if addComputing(limits, r.Limits) < 2 {
			guaranteed = false
		}
	}
	if len(requests) == 0 && len(limits) == 0 {
		return corev1.PodQOSBestEffort
	}
	for name, request := range requests {
		if limit, ok := limits[name]; !ok || limit.Cmp(request) != 0 {
			guaranteed = false
		}
	}
	if guaranteed && len(requests) == len(limits) {
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// addComputing adds cpu and memory above zero to sum and says how many of the
// two there were.
func addComputing(sum, list corev1.ResourceList) int {
	n := 0
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		q, ok := list[name]
		if !ok || q.Cmp(resource.Quantity{}) <= 0 {
			continue
		}
		n++
		total := sum[name].DeepCopy()
		total.Add(q)
		sum[name] = total
	}
	return n
}
