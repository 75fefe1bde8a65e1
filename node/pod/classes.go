package pod

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/skiff-sh/skiff/node/runtime"
)

// classOf is the class of pods whose cgroup a pod's lies in.
func classOf(p *v1.Pod) string {
	switch QOS(p) {
	case v1.PodQOSBurstable:
		return runtime.Burstable
	case v1.PodQOSBestEffort:
		return runtime.BestEffort
	}
	return ""
}

// shares has the class of burstable pods weigh what its pods ask for together,
// beside the guaranteed ones. The lock is held.
func (g *grants) shares() {
	c, ok := g.m.cfg.Runtime.(interface {
		SetClass(class string, r runtime.Resources) error
	})
	if !ok {
		return
	}
	var milli int64
	for _, e := range g.pods {
		if !e.over && QOS(e.pod) == v1.PodQOSBurstable {
			requests := resource.PodRequests(e.pod, resource.PodResourcesOptions{})
			milli += requests.Cpu().MilliValue()
		}
	}
	weight := cpuShares(milli)
	if weight == g.weight {
		return
	}
	if err := c.SetClass(runtime.Burstable, runtime.Resources{CPUShares: weight}); err != nil {
		g.m.cfg.Logger.Warn("setting the CPU shares of burstable pods", "err", err)
		return
	}
	g.weight = weight
}
