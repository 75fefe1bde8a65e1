package pod

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// admit checks again what the scheduler has checked: a pod may name its node
// itself. The words are kubelet's.
func (m *Manager) admit(w *worker) (reason, message string) {
	p := w.pod
	if node := m.cfg.Node(); node != nil {
		ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(node)
		if err != nil || !ok {
			return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
		}
	}
	used := v1.ResourceList{}
	pods := int64(0)
	for _, o := range m.others(w) {
		pods++
		for name, q := range resource.PodRequests(o, resource.PodResourcesOptions{}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
		if port, clash := portClash(p, o); clash {
			return "NodePorts", fmt.Sprintf("Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (%d)", port)
		}
	}
	if most := m.cfg.Allocatable.Pods().Value(); most > 0 && pods+1 > most {
		return "OutOfpods", fmt.Sprintf("Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", pods, most)
	}
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		want, have := requests[name], m.cfg.Allocatable[name]
		if want.IsZero() || have.IsZero() {
			continue
		}
		sum := used[name]
		total := sum.DeepCopy()
		total.Add(want)
		if total.Cmp(have) > 0 {
			value := func(q interface {
				MilliValue() int64
				Value() int64
			}) int64 {
				if name == v1.ResourceCPU {
					return q.MilliValue()
				}
				return q.Value()
			}
			return "OutOf" + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				name, value(&want), value(&sum), value(&have))
		}
	}
	return "", ""
}

// others are the pods that were admitted and have not ended.
func (m *Manager) others(me *worker) (out []*v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w == me {
			continue
		}
		if v := w.view.Load(); v != nil && v.State != New && v.State != Stopped && v.State != Gone {
			out = append(out, v.Pod)
		}
	}
	return out
}

func portClash(a, b *v1.Pod) (int32, bool) {
	for i := range a.Spec.Containers {
		for _, x := range a.Spec.Containers[i].Ports {
			if x.HostPort == 0 {
				continue
			}
			for j := range b.Spec.Containers {
				for _, y := range b.Spec.Containers[j].Ports {
					if x.HostPort == y.HostPort && x.Protocol == y.Protocol && (x.HostIP == y.HostIP || anyIP(x.HostIP) || anyIP(y.HostIP)) {
						return x.HostPort, true
					}
				}
			}
		}
	}
	return 0, false
}

func anyIP(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
