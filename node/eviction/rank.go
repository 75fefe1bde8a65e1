package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
)

// Files is how much room files take.
type Files struct{ Bytes, Inodes int64 }

// Container is what a container uses.
type Container struct {
	Name       string
	Memory     int64 // working set, bytes
	Root, Logs Files
}

// Pod is a pod that could be evicted, and what it uses.
type Pod struct {
	Pod        *v1.Pod
	Measured   bool  // false: it could not be measured, and goes first
	Memory     int64 // working set, bytes
	Processes  int64
	Volumes    Files // emptyDirs on disk and the like, not those that outlive the pod
	Containers []Container
}

// Rank puts the pods in the order in which they are evicted for a signal. separate
// says that images and writable layers have a file system of their own.
func Rank(sig Signal, separate bool, pods []Pod) {
	res := sig.Resource()
	slices.SortStableFunc(pods, func(a, b Pod) int {
		if a.Measured != b.Measured {
			return first(!a.Measured)
		}
		if sig != PIDAvailable && a.Measured {
			overA, overB := a.above(sig, res, separate) > 0, b.above(sig, res, separate) > 0
			if overA != overB {
				return first(overA)
			}
		}
		if c := cmp.Compare(priority(a.Pod), priority(b.Pod)); c != 0 {
			return c
		}
		return cmp.Compare(b.above(sig, res, separate), a.above(sig, res, separate))
	})
}

func first(a bool) int {
	if a {
		return -1
	}
	return 1
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// above is how much more the pod uses than it requests.
func (p *Pod) above(sig Signal, res v1.ResourceName, separate bool) int64 {
	var used int64
	switch sig {
	case MemoryAvailable, PodsMemory:
		used = p.Memory
	case PIDAvailable:
		return p.Processes
	default:
		root, rest := true, true
		if separate {
			root = sig == ImageFsAvailable || sig == ImageFsInodesFree
			rest = !root
		}
		var f Files
		for _, c := range p.Containers {
			if root {
				f.Bytes, f.Inodes = f.Bytes+c.Root.Bytes, f.Inodes+c.Root.Inodes
			}
			if rest {
				f.Bytes, f.Inodes = f.Bytes+c.Logs.Bytes, f.Inodes+c.Logs.Inodes
			}
		}
		if rest {
			f.Bytes, f.Inodes = f.Bytes+p.Volumes.Bytes, f.Inodes+p.Volumes.Inodes
		}
		used = f.Bytes
		if res == inodes {
			used = f.Inodes
		}
	}
	q := resource.PodRequests(p.Pod, resource.PodResourcesOptions{})[res]
	return used - q.Value()
}

// Grace is how many seconds an evicted pod has: one for a hard threshold.
func (c *Config) Grace(t Threshold, p *v1.Pod) int64 {
	if t.Hard() {
		return 1
	}
	grace := c.MaxPodGrace
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = min(grace, *g)
	}
	return grace
}

// Message says why a pod was evicted, in kubelet's words, with what kubelet notes at
// the event.
func Message(t Threshold, starved []Threshold, obs Observations, p Pod) (text string, notes map[string]string) {
	res := t.Signal.Resource()
	text = fmt.Sprintf("The node was low on resource: %s. ", res)
	for _, s := range starved {
		if o, ok := obs[s.Signal]; ok && s.Signal.Resource() == res {
			text += fmt.Sprintf("Threshold quantity: %s, available: %s. ", quantity(s.Value.Of(o.Capacity), res), quantity(o.Available, res))
			break
		}
	}
	if req, ok := podRequest(p.Pod, res); ok && res == v1.ResourceMemory && p.Measured {
		text += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %s. ", p.Pod.Name, quantity(p.Memory, res), req.String(), res)
	}
	var names, used []string
	for _, c := range p.Containers {
		var use int64
		switch res {
		case v1.ResourceMemory:
			use = c.Memory
		case v1.ResourceEphemeralStorage:
			use = c.Root.Bytes + c.Logs.Bytes
		default:
			continue
		}
		req := containerRequest(p.Pod, c.Name, res)
		if use <= req.Value() {
			continue
		}
		q := quantity(use, res)
		text += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, q, req.String(), res)
		names, used = append(names, c.Name), append(used, q)
	}
	return text, map[string]string{"offending_containers": strings.Join(names, ","), "offending_containers_usage": strings.Join(used, ","), "starved_resource": string(res)}
}

func podRequest(p *v1.Pod, res v1.ResourceName) (apiresource.Quantity, bool) {
	if p.Spec.Resources == nil {
		return apiresource.Quantity{}, false
	}
	q, ok := p.Spec.Resources.Requests[res]
	return q, ok
}

func containerRequest(p *v1.Pod, name string, res v1.ResourceName) apiresource.Quantity {
	for _, list := range [][]v1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return list[i].Resources.Requests[res]
			}
		}
	}
	return apiresource.Quantity{}
}

func quantity(n int64, res v1.ResourceName) string {
	f := apiresource.BinarySI
	if res == inodes || res == pids {
		f = apiresource.DecimalSI
	}
	return apiresource.NewQuantity(n, f).String()
}
