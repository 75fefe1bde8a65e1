package daemonset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// input is everything that a decision looks at.
type input struct {
	set   *appsv1.DaemonSet
	nodes []*corev1.Node
	pods  []*corev1.Pod // those that the set holds
	hash  string        // of the current template
	now   time.Time
}

// plan is what is to be done.
type plan struct {
	create []string // nodes
	remove []*corev1.Pod
	failed []*corev1.Pod // to be removed because they failed
}

// perNode groups pods by the node that they run on, or are meant for.
func (in input) perNode() map[string][]*corev1.Pod {
	out := map[string][]*corev1.Pod{}
	for _, pod := range in.pods {
		name := nodeOf(pod)
		out[name] = append(out[name], pod)
	}
	return out
}

// nodeOf is a pod's node; before it is scheduled, the one that its affinity names.
func nodeOf(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == nodeNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// probe is a pod of the set that is meant for no node yet.
func probe(set *appsv1.DaemonSet) *corev1.Pod {
	pod := &corev1.Pod{Spec: *set.Spec.Template.Spec.DeepCopy()}
	addTolerations(&pod.Spec)
	return pod
}

// fits tells whether a pod like this should run on a node, and whether one that
// does may stay.
func fits(pod *corev1.Pod, node *corev1.Node) (run, stay bool) {
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != node.Name {
		return false, false
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); err != nil || !ok {
		return false, false
	}
	run, stay = true, true
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectPreferNoSchedule || tolerates(pod.Spec.Tolerations, taint) {
			continue
		}
		run = false
		if taint.Effect == corev1.TaintEffectNoExecute {
			stay = false
		}
	}
	return run, stay
}

func tolerates(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	return slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool { return t.ToleratesTaint(klog.Background(), taint, false) })
}

// decide computes the next step.
func decide(in input) plan {
	var p plan
	perNode := in.perNode()
	wanted := map[string]bool{}
	pod := probe(in.set)
	for _, node := range in.nodes {
		run, stay := fits(pod, node)
		wanted[node.Name] = run
		p.place(in, node.Name, run, stay, perNode[node.Name])
	}
	for name, pods := range perNode {
		if _, known := wanted[name]; !known && name != "" {
			p.removeWaiting(pods) // the node is gone; those that ran there are podgc's
		}
	}
	if in.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
		p.update(in, wanted, perNode)
	}
	return p
}

func (p *plan) removeWaiting(pods []*corev1.Pod) {
	for _, pod := range pods {
		if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
			p.remove = append(p.remove, pod)
		}
	}
}

// place sees to it that a node has one pod, or none.
func (p *plan) place(in input, node string, run, stay bool, pods []*corev1.Pod) {
	var alive []*corev1.Pod
	for _, pod := range pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case controller.Finished(pod): // a daemon should not end
			p.failed = append(p.failed, pod)
		default:
			alive = append(alive, pod)
		}
	}
	switch {
	case !run && !stay:
		p.remove = append(p.remove, alive...)
	case run && len(pods) == 0: // one that failed or is ending goes first
		p.create = append(p.create, node)
	case stay && len(alive) > 1:
		p.thinOut(in, alive)
	}
}

// thinOut leaves one pod of several on a node: the oldest, and during a surge the
// old one until the new one is available.
func (p *plan) thinOut(in input, alive []*corev1.Pod) {
	slices.SortFunc(alive, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	surge, _ := bounds(in.set, len(in.nodes))
	if surge == 0 {
		p.remove = append(p.remove, alive[1:]...)
		return
	}
	keep := map[bool]bool{}
	for _, pod := range alive { // one of each kind; update decides between them
		current := pod.Labels[controller.RevisionLabel] == in.hash
		if keep[current] {
			p.remove = append(p.remove, pod)
		}
		keep[current] = true
	}
}

// bounds are the update strategy's limits as numbers of pods.
func bounds(set *appsv1.DaemonSet, desired int) (surge, unavailable int) {
	r := set.Spec.UpdateStrategy.RollingUpdate
	if r == nil {
		return 0, 1
	}
	scaled := func(v *intstr.IntOrString) int {
		if v == nil {
			return 0
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, desired, true)
		if err != nil {
			return 0 // refused by validation
		}
		return n
	}
	surge, unavailable = scaled(r.MaxSurge), scaled(r.MaxUnavailable)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// update replaces old pods as far as the bounds allow.
func (p *plan) update(in input, wanted map[string]bool, perNode map[string][]*corev1.Pod) {
	desired := 0
	for _, w := range wanted {
		if w {
			desired++
		}
	}
	surge, unavailable := bounds(in.set, desired)
	names := make([]string, 0, len(wanted))
	for name, w := range wanted {
		if w {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	down, extra := 0, 0
	var broken, candidates []*corev1.Pod // old pods
	for _, name := range names {
		old, fresh := in.split(perNode[name])
		switch {
		case old != nil && fresh != nil:
			extra++
			if in.available(fresh) {
				p.remove = append(p.remove, old)
			}
		case old == nil && fresh == nil:
			down++
		case fresh != nil:
			if !in.available(fresh) {
				down++
			}
		case !in.available(old):
			broken = append(broken, old)
		default:
			candidates = append(candidates, old)
		}
	}
	if surge > 0 {
		for _, pod := range append(broken, candidates...) {
			if extra >= surge && in.available(pod) {
				break
			}
			p.create = append(p.create, nodeOf(pod))
			extra++
		}
		return
	}
	p.remove = append(p.remove, broken...) // they are down already
	room := max(0, unavailable-down-len(broken))
	p.remove = append(p.remove, candidates[:min(room, len(candidates))]...)
}

// split finds the living pods of a node, at most one old and one current.
func (in input) split(pods []*corev1.Pod) (old, fresh *corev1.Pod) {
	for _, pod := range pods {
		if !controller.Active(pod) {
			continue
		}
		if pod.Labels[controller.RevisionLabel] == in.hash {
			fresh = pod
		} else {
			old = pod
		}
	}
	return old, fresh
}

func (in input) available(pod *corev1.Pod) bool {
	ok, _ := controller.Available(pod, in.set.Spec.MinReadySeconds, in.now)
	return ok
}

// decideStatus counts. wait is the time until a ready pod becomes available.
func decideStatus(in input) (s appsv1.DaemonSetStatus, wait time.Duration) {
	before := in.set.Status.DeepCopy()
	s = appsv1.DaemonSetStatus{CollisionCount: before.CollisionCount, Conditions: before.Conditions, ObservedGeneration: in.set.Generation}
	perNode := in.perNode()
	like := probe(in.set)
	for _, node := range in.nodes {
		run, _ := fits(like, node)
		var there []*corev1.Pod
		for _, pod := range perNode[node.Name] {
			if pod.DeletionTimestamp == nil || run {
				there = append(there, pod)
			}
		}
		if !run {
			if len(there) > 0 {
				s.NumberMisscheduled++
			}
			continue
		}
		s.DesiredNumberScheduled++
		if len(there) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		slices.SortFunc(there, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		pod := there[0] // during a surge, the one that serves
		for _, other := range there {
			if !controller.Ready(pod) && controller.Ready(other) {
				pod = other
			}
			if other.Labels[controller.RevisionLabel] == in.hash && other.DeletionTimestamp == nil {
				s.UpdatedNumberScheduled++
				break
			}
		}
		if !controller.Ready(pod) {
			continue
		}
		s.NumberReady++
		ok, missing := controller.Available(pod, in.set.Spec.MinReadySeconds, in.now)
		if ok {
			s.NumberAvailable++
		} else if missing > 0 && (wait == 0 || missing < wait) {
			wait = missing
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	return s, wait
}
