package pod

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/resource"
)

// grants decides how much of the node each pod gets: at its admission, and when
// what it asks for changes. One lock makes it one decision at a time.
type grants struct {
	m *Manager

	mu   sync.Mutex
	pods map[types.UID]*grant // admitted and not over
	// weight is what the class of burstable pods was last given; see shares.
	weight int64
}

type grant struct {
	allocation allocation
	latest     *v1.Pod  // as the API has it; nil before its worker has seen it
	pod        *v1.Pod  // latest with what was granted
	over       bool     // its containers have ended: it takes no room
	pending    *pending // what it asks for and has not got; nil: nothing
	// granted is the generation of the last granted change; 0 when it is carried
	// out. begun counts those changes.
	granted int64
	begun   int
}

// pending is a change that could not be granted.
type pending struct {
	since           time.Time
	generation      int64
	reason, message string // v1.PodReasonDeferred or PodReasonInfeasible
}

// retake follows the API's object of an admitted pod. It returns the object with
// the granted resources, and how many changes of them these are, and asks for what
// has changed unless the pod is ending. Other pods are returned as they are.
func (g *grants) retake(p *v1.Pod, ending bool) (granted *v1.Pod, begun int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.pods[p.UID]
	if e == nil {
		return p, 0
	}
	if e.latest == p {
		return e.pod, e.begun
	}
	e.latest = p
	e.pod = e.allocation.apply(p)
	switch {
	case e.pod == p || ending || e.over:
		e.pending = nil
	default:
		if e.pending == nil {
			e.pending = &pending{since: g.m.cfg.now()}
			if c := findCondition(p, v1.PodResizePending); c != nil {
				e.pending.since = c.LastTransitionTime.Time // it waits since an earlier agent
			}
		}
		g.retry()
	}
	return e.pod, e.begun
}

// admit decides whether a new pod gets what it asks for. The words are kubelet's.
func (g *grants) admit(p *v1.Pod) (reason, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := allocationOf(p)
	if e := g.pods[p.UID]; e != nil { // by an earlier agent
		a, p = e.allocation, e.pod
	}
	others := g.others(p.UID)
	if most := g.m.cfg.Allocatable.Pods().Value(); most > 0 && int64(len(others)+1) > most {
		return "OutOfpods", fmt.Sprintf("Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", len(others), most)
	}
	for _, o := range others {
		if port, clash := portClash(p, o); clash {
			return "NodePorts", fmt.Sprintf("Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (%d)", port)
		}
	}
	if name, message := lacking(p, others, g.m.cfg.Allocatable); message != "" {
		return "OutOf" + string(name), message
	}
	g.enter(p, a)
	return "", ""
}

// adopt takes in a pod that runs already.
func (g *grants) adopt(p *v1.Pod) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pods[p.UID] == nil {
		g.enter(p, allocationOf(p))
	}
}

func (g *grants) enter(p *v1.Pod, a allocation) {
	if err := g.m.cfg.save(&a, g.m.podDir(p.UID), false); err != nil {
		g.m.cfg.Logger.Warn("noting what a pod is granted", "pod", p.Namespace+"/"+p.Name, "err", err)
	}
	e := g.pods[p.UID]
	if e == nil {
		e = &grant{latest: p, pod: p}
		g.pods[p.UID] = e
	}
	e.allocation, e.over = a, false
	g.shares()
}

// end tells that a pod takes no room any more; forget that it is gone.
func (g *grants) end(uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.pods[uid]; e != nil && !e.over {
		e.over, e.pending, e.granted = true, nil, 0
		g.retry()
		g.shares()
	}
}

func (g *grants) forget(uid types.UID) {
	g.end(uid)
	g.mu.Lock()
	delete(g.pods, uid)
	g.mu.Unlock()
}

// others are the pods that take room beside this one.
func (g *grants) others(uid types.UID) []*v1.Pod {
	var out []*v1.Pod
	for id, e := range g.pods {
		if id != uid && !e.over {
			out = append(out, e.pod)
		}
	}
	return out
}

// state is what a pod's status has to say of changes.
func (g *grants) state(uid types.UID) (p *pending, granted int64, begun int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.pods[uid]
	if e == nil {
		return nil, 0, 0
	}
	if e.pending != nil {
		c := *e.pending
		p = &c
	}
	return p, e.granted, e.begun
}

// done tells that the granted change of this count is carried out. It returns the
// generation of it, 0 if that is known already or another was granted meanwhile.
func (g *grants) done(uid types.UID, begun int) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.pods[uid]
	if e == nil || e.begun != begun {
		return 0
	}
	generation := e.granted
	e.granted = 0
	return generation
}

// resume tells that a granted change is not carried out: an earlier agent granted
// it.
func (g *grants) resume(p *v1.Pod) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.pods[p.UID]
	if e == nil || e.granted != 0 {
		return
	}
	e.granted = p.Generation
}

// retry grants what fits of all that was not granted before. Those that ask for
// no more than they have come first, then the important ones, then those that
// have waited long. The lock is held.
func (g *grants) retry() {
	var list []*grant
	for _, e := range g.pods {
		if e.pending != nil {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *grant) int {
		return cmp.Or(
			cmp.Compare(rank(grows(a)), rank(grows(b))),
			-cmp.Compare(priority(a.latest), priority(b.latest)),
			cmp.Compare(rank(QOS(a.latest) != v1.PodQOSGuaranteed), rank(QOS(b.latest) != v1.PodQOSGuaranteed)),
			a.pending.since.Compare(b.pending.since),
			cmp.Compare(a.latest.UID, b.latest.UID))
	})
	for _, e := range list {
		g.try(e)
	}
}

func rank(later bool) int {
	if later {
		return 1
	}
	return 0
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// grows says that the pod asks for more than it has.
func grows(e *grant) bool {
	now, want := resource.PodRequests(e.pod, resource.PodResourcesOptions{}), resource.PodRequests(e.latest, resource.PodResourcesOptions{})
	return want.Cpu().Cmp(*now.Cpu()) > 0 || want.Memory().Cmp(*now.Memory()) > 0
}

// try grants a change if there is room, else says why not.
func (g *grants) try(e *grant) {
	p, was := e.latest, *e.pending
	e.pending.generation = p.Generation
	e.pending.reason, e.pending.message = g.judge(p)
	if e.pending.reason == "" {
		next := e.allocation.regrant(p)
		if err := g.m.cfg.save(&next, g.m.podDir(p.UID), true); err != nil {
			e.pending.reason, e.pending.message = v1.PodReasonDeferred, "noting what the pod is granted: "+err.Error()
		} else {
			e.allocation, e.pod, e.pending = next, p, nil
			e.granted = p.Generation
			e.begun++
			g.shares()
			g.event(p, v1.EventTypeNormal, "ResizeStarted", "Pod resize started", p.Generation, "")
			g.m.poke(p.UID)
			return
		}
	}
	if was.reason == e.pending.reason && was.generation == e.pending.generation && was.message == e.pending.message {
		return
	}
	g.m.poke(p.UID)
	if was.reason == e.pending.reason && was.generation == e.pending.generation || told(p, e.pending) {
		return
	}
	g.event(p, v1.EventTypeWarning, "Resize"+e.pending.reason, "Pod resize "+e.pending.reason, p.Generation, e.pending.message)
}

// told says that an earlier agent has said the same.
func told(p *v1.Pod, n *pending) bool {
	c := findCondition(p, v1.PodResizePending)
	return c != nil && c.Reason == n.reason && c.ObservedGeneration == n.generation
}

func findCondition(p *v1.Pod, t v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// judge says why a pod can't have what it asks for; "" if it can.
func (g *grants) judge(p *v1.Pod) (reason, message string) {
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		want, have := requests[name], g.m.cfg.Allocatable[name]
		if !have.IsZero() && want.Cmp(have) > 0 {
			return v1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", name, units(name, want), units(name, have))
		}
	}
	if _, message := lacking(p, g.others(p.UID), g.m.cfg.Allocatable); message != "" {
		return v1.PodReasonDeferred, message
	}
	return "", ""
}

// event tells of a change with what the pod asks for now, as kubelet does.
func (g *grants) event(p *v1.Pod, kind, reason, what string, generation int64, failure string) {
	g.m.cfg.Recorder.Eventf(reference(p, ""), kind, reason, "%s: %s", what, resizeSummary(p, generation, failure))
}

func resizeSummary(p *v1.Pod, generation int64, failure string) string {
	type part struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources"`
	}
	s := struct {
		Init       []part `json:"initContainers,omitempty"`
		Main       []part `json:"containers,omitempty"`
		Generation int64  `json:"generation"`
		Error      string `json:"error,omitempty"`
	}{Generation: generation, Error: failure}
	for _, c := range p.Spec.InitContainers {
		s.Init = append(s.Init, part{c.Name, c.Resources})
	}
	for _, c := range p.Spec.Containers {
		s.Main = append(s.Main, part{c.Name, c.Resources})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return failure
	}
	return string(b)
}
