package pod

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"

	"github.com/skiff-sh/skiff/node/runtime"
)

const (
	cpuPeriod = 100_000 // microseconds
	minQuota  = 1_000
	minShares = 2
	maxShares = 1 << 18
)

// QOS returns the pod's quality of service class.
func QOS(pod *v1.Pod) v1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	guaranteed, any := true, false
	look := func(r v1.ResourceRequirements) {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			req, lim := r.Requests[name], r.Limits[name]
			if !req.IsZero() || !lim.IsZero() {
				any = true
			}
			if lim.IsZero() || (!req.IsZero() && req.Cmp(lim) != 0) {
				guaranteed = false
			}
		}
	}
	if pod.Spec.Resources != nil {
		look(*pod.Spec.Resources)
	} else {
		for i := range pod.Spec.Containers {
			look(pod.Spec.Containers[i].Resources)
		}
		for i := range pod.Spec.InitContainers {
			look(pod.Spec.InitContainers[i].Resources)
		}
	}
	switch {
	case !any:
		return v1.PodQOSBestEffort
	case guaranteed:
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

func cpuShares(milli int64) int64 {
	return min(max(minShares, milli*1024/1000), maxShares)
}

// cpuQuota is microseconds in each cpuPeriod; 0 is no limit.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(minQuota, milli*cpuPeriod/1000)
}

// containerResources are the cgroup settings of one container. A limit that it
// has not is that of its pod as a whole.
func containerResources(pod *v1.Pod, c *v1.Container, memoryCapacity int64) runtime.Resources {
	r := runtime.Resources{CPUPeriod: cpuPeriod, OOMScoreAdj: oomScoreAdj(pod, c, memoryCapacity)}
	req, ok := c.Resources.Requests[v1.ResourceCPU]
	if !ok {
		req = c.Resources.Limits[v1.ResourceCPU]
	}
	limits := withPodLimits(c.Resources, computingOf(pod.Spec.Resources)).Limits
	r.CPUShares = cpuShares(req.MilliValue())
	r.CPUQuota = cpuQuota(limits.Cpu().MilliValue())
	r.MemoryLimit = limits.Memory().Value()
	r.HugePages = hugePages(c.Resources.Limits)
	return r
}

// podResources are the settings of the pod's own cgroup: what its containers and
// its overhead ask for together, or the pod as a whole; limits only where the pod
// or every container has one.
func podResources(pod *v1.Pod, pids int64) runtime.Resources {
	o := resource.PodResourcesOptions{}
	requests, limits := resource.PodRequests(pod, o), resource.PodLimits(pod, o)
	r := runtime.Resources{CPUPeriod: cpuPeriod, PidsLimit: pids, CPUShares: cpuShares(requests.Cpu().MilliValue())}
	r.HugePages = hugePages(limits)
	whole := computingOf(pod.Spec.Resources).Limits
	if limited(v1.ResourceCPU, pod) || !whole.Cpu().IsZero() {
		r.CPUQuota = cpuQuota(limits.Cpu().MilliValue())
	}
	if limited(v1.ResourceMemory, pod) || !whole.Memory().IsZero() {
		r.MemoryLimit = limits.Memory().Value()
	}
	return r
}

// hugePages are the limits of huge pages by their size.
func hugePages(limits v1.ResourceList) (out map[int64]int64) {
	for name, q := range limits {
		size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
		page, err := apiresource.ParseQuantity(size)
		if !ok || err != nil {
			continue
		}
		if out == nil {
			out = map[int64]int64{}
		}
		out[page.Value()] = q.Value()
	}
	return out
}

// limited says that every container has a limit.
func limited(name v1.ResourceName, pod *v1.Pod) bool {
	return !slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c v1.Container) bool {
		q := c.Resources.Limits[name]
		return q.IsZero()
	})
}

// oomScoreAdj makes the kernel kill best-effort containers first, guaranteed
// ones last, and the others by how little of the memory they asked for: what the
// pod asks for as a whole counts in equal parts, and a sidecar is never worse off
// than the containers that need it.
func oomScoreAdj(pod *v1.Pod, c *v1.Container, capacity int64) int {
	if pod.Spec.PriorityClassName == "system-node-critical" {
		return -997
	}
	switch QOS(pod) {
	case v1.PodQOSGuaranteed:
		return -997
	case v1.PodQOSBestEffort:
		return 1000
	}
	if capacity <= 0 {
		return 999
	}
	request := c.Resources.Requests.Memory().Value()
	if restartableInit(c) && len(pod.Spec.Containers) > 0 {
		least := pod.Spec.Containers[0].Resources.Requests.Memory().Value()
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		request = max(request, least)
	}
	if resource.IsPodLevelRequestsSet(pod) {
		whole := pod.Spec.Resources.Requests.Memory().Value()
		parts := resource.AggregateContainerRequests(pod, resource.PodResourcesOptions{})
		if n := int64(len(pod.Spec.Containers) + len(pod.Spec.InitContainers)); whole > parts.Memory().Value() {
			request += (whole - parts.Memory().Value()) / n
		}
	}
	return min(max(3, 1000-int(1000*request/capacity)), 999) // between guaranteed and best-effort
}

func restartableInit(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}
