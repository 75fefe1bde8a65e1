package pod

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node/runtime"
)

const (
	cpuPeriod = 100_000 // microseconds
	minQuota  = 1_000
	minShares = 2
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

func cpuShares(q resource.Quantity) int64 {
	return max(minShares, q.MilliValue()*1024/1000)
}

func cpuQuota(q resource.Quantity) int64 {
	if q.IsZero() {
		return 0
	}
	return max(minQuota, q.MilliValue()*cpuPeriod/1000)
}

// containerResources are the cgroup settings of one container.
func containerResources(pod *v1.Pod, c *v1.Container, memoryCapacity int64) runtime.Resources {
	r := runtime.Resources{CPUPeriod: cpuPeriod, OOMScoreAdj: oomScoreAdj(pod, c, memoryCapacity)}
	req, ok := c.Resources.Requests[v1.ResourceCPU]
	if !ok {
		req = c.Resources.Limits[v1.ResourceCPU]
	}
	r.CPUShares = cpuShares(req)
	r.CPUQuota = cpuQuota(c.Resources.Limits[v1.ResourceCPU])
	r.MemoryLimit = c.Resources.Limits.Memory().Value()
	return r
}

// podResources are the settings of the pod's own cgroup: the sum of what its
// containers ask for; limits only when every container has one.
func podResources(pod *v1.Pod, pids int64) runtime.Resources {
	r := runtime.Resources{CPUPeriod: cpuPeriod, PidsLimit: pids}
	var milli, limMilli, mem int64
	cpuLimited, memLimited := true, true
	add := func(c *v1.Container) {
		req, ok := c.Resources.Requests[v1.ResourceCPU]
		if !ok {
			req = c.Resources.Limits[v1.ResourceCPU]
		}
		milli += req.MilliValue()
		if l := c.Resources.Limits.Cpu(); l.IsZero() {
			cpuLimited = false
		} else {
			limMilli += l.MilliValue()
		}
		if l := c.Resources.Limits.Memory(); l.IsZero() {
			memLimited = false
		} else {
			mem += l.Value()
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if restartableInit(c) {
			add(c)
			continue
		}
		// An init container runs alone (with sidecars): it must fit, but adds nothing.
		milli = max(milli, c.Resources.Requests.Cpu().MilliValue())
		if l := c.Resources.Limits.Cpu(); l.IsZero() {
			cpuLimited = false
		} else {
			limMilli = max(limMilli, l.MilliValue())
		}
		if l := c.Resources.Limits.Memory(); l.IsZero() {
			memLimited = false
		} else {
			mem = max(mem, l.Value())
		}
	}
	milli += pod.Spec.Overhead.Cpu().MilliValue()
	r.CPUShares = max(minShares, milli*1024/1000)
	if cpuLimited {
		r.CPUQuota = max(minQuota, limMilli*cpuPeriod/1000)
	}
	if memLimited {
		r.MemoryLimit = mem + pod.Spec.Overhead.Memory().Value()
	}
	if pod.Spec.Resources != nil {
		if l := pod.Spec.Resources.Limits.Cpu(); !l.IsZero() {
			r.CPUQuota = cpuQuota(*l)
		}
		if l := pod.Spec.Resources.Limits.Memory(); !l.IsZero() {
			r.MemoryLimit = l.Value()
		}
		if q := pod.Spec.Resources.Requests.Cpu(); !q.IsZero() {
			r.CPUShares = cpuShares(*q)
		}
	}
	return r
}

// oomScoreAdj makes the kernel kill best-effort containers first, guaranteed
// ones last, and the others by how little of the memory they asked for.
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
	adj := int(1000 - 1000*request/capacity)
	if adj < 3 { // above guaranteed pods
		return 3
	}
	if adj == 1000 {
		return 999
	}
	return adj
}

func restartableInit(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}
