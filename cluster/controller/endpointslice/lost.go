package endpointslice

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// unreachable reports whether nobody knows what runs on a node.
func unreachable(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

func (c *Controller) lost(name string) bool {
	node, err := c.nodes.Get(name)
	return err == nil && unreachable(node)
}

// nodeLost looks at every Service with pods on a node, at once.
func (c *Controller) nodeLost(node string) {
	seen := map[string]bool{}
	for _, pod := range controller.On(c.cfg.Informers.Core().V1().Pods().Informer(), node) {
		for _, key := range c.selecting(pod) {
			if !seen[key] {
				seen[key] = true
				c.sliceLoop.AddNow(key)
				c.endpointLoop.Add(key)
			}
		}
	}
}

// withoutLost returns the pods with those that are ready on lost nodes as not
// ready. The pods given, which others share, are not changed.
func withoutLost(pods []*corev1.Pod, lost func(node string) bool) []*corev1.Pod {
	known := map[string]bool{}
	copied := false
	for i, pod := range pods {
		gone, ok := known[pod.Spec.NodeName]
		if !ok {
			gone = pod.Spec.NodeName != "" && lost(pod.Spec.NodeName)
			known[pod.Spec.NodeName] = gone
		}
		if !gone || !controller.Ready(pod) {
			continue
		}
		if !copied {
			pods, copied = slices.Clone(pods), true
		}
		down := *pod
		down.Status.Conditions = slices.Clone(pod.Status.Conditions)
		controller.Condition(&down, corev1.PodReady).Status = corev1.ConditionFalse
		pods[i] = &down
	}
	return pods
}
