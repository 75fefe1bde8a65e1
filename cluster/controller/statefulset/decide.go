package statefulset

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// input is everything that a decision looks at.
type input struct {
	set     *appsv1.StatefulSet
	pods    []*corev1.Pod
	current *appsv1.ControllerRevision // what the set comes from
	update  *appsv1.ControllerRevision // what it goes to
	now     time.Time
}

// plan is what is to be done now.
type plan struct {
	create []creation
	remove []*corev1.Pod
	failed []*corev1.Pod // to be removed because they ended
}

// creation makes the pod of an ordinal.
type creation struct {
	ordinal  int
	revision *appsv1.ControllerRevision
}

// parse splits web-3 into web and 3.
func parse(name string) (parent string, ordinal int, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(name[i+1:], 10, 32)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != name[i+1:] {
		return "", 0, false
	}
	return name[:i], int(n), true
}

func ordinalOf(pod *corev1.Pod) int {
	_, n, ok := parse(pod.Name)
	if !ok {
		return -1
	}
	return n
}

// bounds are the first ordinal and the one after the last.
func (in input) bounds() (first, end int) {
	if o := in.set.Spec.Ordinals; o != nil {
		first = int(o.Start)
	}
	return first, first + int(wanted(in.set))
}

func wanted(set *appsv1.StatefulSet) int32 {
	if set.Spec.Replicas == nil {
		return 1
	}
	return *set.Spec.Replicas
}

// partition is the first ordinal that takes part in an update.
func (in input) partition() int {
	first, _ := in.bounds()
	r := in.set.Spec.UpdateStrategy.RollingUpdate
	if in.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType || r == nil || r.Partition == nil {
		return first
	}
	return first + int(*r.Partition)
}

// revisionFor is that of a new pod.
func (in input) revisionFor(ordinal int) *appsv1.ControllerRevision {
	if ordinal < in.partition() {
		return in.current
	}
	return in.update
}

// revisionOf is the name of the revision that a pod comes from. (The pods of a
// DaemonSet bear only its hash.)
func revisionOf(pod *corev1.Pod) string {
	return pod.Labels[controller.RevisionLabel]
}

// healthy reports whether a pod runs and has been ready for long enough.
func (in input) healthy(pod *corev1.Pod) bool {
	ok, _ := controller.Available(pod, in.set.Spec.MinReadySeconds, in.now)
	return ok && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil
}

// decide computes the next step.
func decide(in input) plan {
	ordered := in.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	first, end := in.bounds()
	there := map[int]*corev1.Pod{}
	var condemned []*corev1.Pod
	for _, pod := range in.pods {
		if n := ordinalOf(pod); n >= first && n < end {
			there[n] = pod
		} else {
			condemned = append(condemned, pod)
		}
	}
	var p plan
	for n := first; n < end; n++ {
		pod := there[n]
		switch {
		case pod == nil:
			p.create = append(p.create, creation{n, in.revisionFor(n)})
		case pod.DeletionTimestamp != nil:
		case controller.Finished(pod):
			p.failed = append(p.failed, pod)
		case in.healthy(pod):
			continue
		}
		if ordered {
			return p // the next one waits for this one
		}
	}
	if p.condemn(condemned, ordered) && ordered {
		return p
	}
	if in.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType {
		p.replace(in, there, end)
	}
	return p
}

// condemn removes what is beyond the size, last one first; true if there is any.
func (p *plan) condemn(pods []*corev1.Pod, ordered bool) bool {
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(ordinalOf(b), ordinalOf(a)) })
	for _, pod := range pods {
		if pod.DeletionTimestamp == nil {
			p.remove = append(p.remove, pod)
		}
		if ordered {
			return true // the one before it waits until this one is gone
		}
	}
	return len(pods) > 0
}

// replace removes pods of old revisions, last one first, so that they are made
// anew. Pods that are not available use up the allowance.
func (p *plan) replace(in input, there map[int]*corev1.Pod, end int) {
	allowed := maxUnavailable(in.set)
	for n := end - 1; n >= in.partition() && allowed > 0; n-- {
		pod := there[n]
		if pod == nil || pod.DeletionTimestamp != nil || controller.Finished(pod) {
			allowed--
			continue
		}
		old := revisionOf(pod) != in.update.Name
		if old {
			p.remove = append(p.remove, pod)
		}
		if old || !in.healthy(pod) {
			allowed--
		}
	}
}

func maxUnavailable(set *appsv1.StatefulSet) int {
	r := set.Spec.UpdateStrategy.RollingUpdate
	if r == nil || r.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, int(wanted(set)), false)
	if err != nil {
		return 1 // refused by validation
	}
	return max(1, n)
}

// decideStatus counts. wait is the time until a ready pod becomes available.
func decideStatus(in input) (s appsv1.StatefulSetStatus, wait time.Duration) {
	before := in.set.Status.DeepCopy()
	s = appsv1.StatefulSetStatus{
		ObservedGeneration: in.set.Generation, CollisionCount: before.CollisionCount, Conditions: before.Conditions,
		CurrentRevision: in.current.Name, UpdateRevision: in.update.Name,
	}
	current, update := in.current.Name, in.update.Name
	for _, pod := range in.pods {
		if pod.Status.Phase != "" {
			s.Replicas++
		}
		if controller.Ready(pod) && pod.Status.Phase == corev1.PodRunning {
			s.ReadyReplicas++
			ok, missing := controller.Available(pod, in.set.Spec.MinReadySeconds, in.now)
			if ok {
				s.AvailableReplicas++
			} else if missing > 0 && (wait == 0 || missing < wait) {
				wait = missing
			}
		}
		if pod.DeletionTimestamp != nil {
			continue
		}
		switch revisionOf(pod) {
		case update:
			s.UpdatedReplicas++
			if current == update {
				s.CurrentReplicas++
			}
		case current:
			s.CurrentReplicas++
		}
	}
	n := wanted(in.set)
	if in.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType &&
		s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n { // arrived
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	return s, wait
}
