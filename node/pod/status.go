package pod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// observed is everything that a pod's status is computed from.
type observed struct {
	pod   *v1.Pod
	init  []v1.ContainerStatus // in the order of the spec
	main  []v1.ContainerStatus
	ips   []string
	hosts []string
	start time.Time
	// networked: the sandbox and its network are there.
	networked bool
	// initialized: a main container was started in this sandbox.
	initialized bool
	// final: no container runs, and none will be started any more.
	final bool
	// resetting: all containers are being ended, to start anew.
	resetting bool
	// reason and message say why the pod was ended from outside (Evicted,
	// DeadlineExceeded, …); such a pod is Failed once it is final.
	reason, message string
	// extra are conditions that the worker adds (DisruptionTarget).
	extra []v1.PodCondition
	// resize are those that tell of changes of resources, with the generation that
	// each is about.
	resize []v1.PodCondition
}

// compute returns the status that the pod should have. Conditions that are
// not the node's are kept from the pod, as are times of transitions.
func compute(o observed, now time.Time) v1.PodStatus {
	st := *o.pod.Status.DeepCopy()
	st.ObservedGeneration = o.pod.Generation
	st.QOSClass = QOS(o.pod)
	st.InitContainerStatuses = o.init
	st.ContainerStatuses = slices.Clone(o.main)
	slices.SortStableFunc(st.ContainerStatuses, func(a, b v1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	if !o.start.IsZero() && st.StartTime == nil {
		t := metav1.NewTime(o.start).Rfc3339Copy()
		st.StartTime = &t
	}
	st.HostIP, st.HostIPs = "", nil
	for i, ip := range o.hosts {
		if i == 0 {
			st.HostIP = ip
		}
		st.HostIPs = append(st.HostIPs, v1.HostIP{IP: ip})
	}
	if len(o.ips) > 0 {
		st.PodIP, st.PodIPs = o.ips[0], nil
		for _, ip := range o.ips {
			st.PodIPs = append(st.PodIPs, v1.PodIP{IP: ip})
		}
	}
	phase := phaseOf(o)
	if o.reason != "" && o.final {
		st.Reason, st.Message, phase = o.reason, o.message, v1.PodFailed
	}
	if before := o.pod.Status.Phase; before == v1.PodFailed || before == v1.PodSucceeded {
		phase = before // terminal phases are for ever
	}
	st.Phase = phase
	st.Conditions = nil
	for _, c := range conditionsOf(o, st) {
		c.ObservedGeneration = o.pod.Generation
		setCondition(&st.Conditions, o.pod.Status.Conditions, c, now)
	}
	for _, c := range o.resize {
		setCondition(&st.Conditions, o.pod.Status.Conditions, c, now)
	}
	for _, c := range o.pod.Status.Conditions {
		if !resizeCondition(c.Type) && !slices.ContainsFunc(st.Conditions, func(h v1.PodCondition) bool { return h.Type == c.Type }) {
			st.Conditions = append(st.Conditions, c)
		}
	}
	return st
}

// setCondition appends c, with the time of the condition's last change.
func setCondition(to *[]v1.PodCondition, old []v1.PodCondition, c v1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	for _, o := range old {
		if o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
			c.LastTransitionTime = o.LastTransitionTime
		}
	}
	*to = append(*to, c)
}

func conditionsOf(o observed, st v1.PodStatus) []v1.PodCondition {
	boolean := func(b bool) v1.ConditionStatus {
		if b {
			return v1.ConditionTrue
		}
		return v1.ConditionFalse
	}
	conds := []v1.PodCondition{
		{Type: v1.PodReadyToStartContainers, Status: boolean(o.networked)},
		initialized(o, st),
	}
	ready := containersReady(o, st)
	podReady := ready
	podReady.Type = v1.PodReady
	if ready.Status == v1.ConditionTrue {
		if msgs := unmetGates(o.pod); len(msgs) > 0 {
			podReady.Status, podReady.Reason, podReady.Message = v1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(msgs, ", ")
		}
	}
	conds = append(conds, podReady, ready, v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionTrue})
	if mayRestartAll(o.pod) {
		conds = append(conds, allRestarting(o, st))
	}
	return append(conds, o.extra...)
}

func allRestarting(o observed, st v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.AllContainersRestarting, Status: v1.ConditionFalse}
	switch {
	case st.Phase == v1.PodSucceeded:
		c.Reason = "PodCompleted"
	case st.Phase == v1.PodFailed:
		c.Reason = "PodFailed"
	case o.resetting:
		c.Status, c.Reason, c.Message = v1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return c
}

func initialized(o observed, st v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionTrue}
	if st.Phase == v1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	var missing []string
	for i, s := range o.init {
		done := s.Ready
		if restartableInit(&o.pod.Spec.InitContainers[i]) {
			done = s.Started != nil && *s.Started
		}
		if !done {
			missing = append(missing, s.Name)
		}
	}
	for _, s := range o.main {
		if s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil {
			return c // once containers ran, the pod stays initialized
		}
	}
	if len(missing) > 0 && !wasTrue(o.pod, v1.PodInitialized) {
		c.Status, c.Reason = v1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %s", missing)
	}
	return c
}

func wasTrue(p *v1.Pod, t v1.PodConditionType) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == t && c.Status == v1.ConditionTrue })
}

func containersReady(o observed, st v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionFalse}
	switch st.Phase {
	case v1.PodSucceeded:
		c.Reason = "PodCompleted"
		return c
	case v1.PodFailed:
		c.Reason = "PodFailed"
		return c
	}
	var unready []string
	for i, s := range o.init {
		if restartableInit(&o.pod.Spec.InitContainers[i]) && !s.Ready {
			unready = append(unready, s.Name)
		}
	}
	for _, s := range o.main {
		if !s.Ready {
			unready = append(unready, s.Name)
		}
	}
	if len(unready) > 0 {
		c.Reason, c.Message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
		return c
	}
	c.Status = v1.ConditionTrue
	return c
}

func unmetGates(pod *v1.Pod) (msgs []string) {
	for _, gate := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(pod.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == gate.ConditionType })
		if i < 0 {
			msgs = append(msgs, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		} else if got := pod.Status.Conditions[i].Status; got != v1.ConditionTrue {
			msgs = append(msgs, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), got))
		}
	}
	return msgs
}
