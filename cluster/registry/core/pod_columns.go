package core

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-sh/skiff/cluster/registry"
)

var podColumns = []metav1.TableColumnDefinition{
	registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
	registry.Column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
	registry.Column("Status", "The aggregate status of the containers in this pod."),
	registry.Column("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
	registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
	registry.WideColumn("IP", corev1.PodStatus{}.SwaggerDoc()["podIP"]),
	registry.WideColumn("Node", corev1.PodSpec{}.SwaggerDoc()["nodeName"]),
	registry.WideColumn("Nominated Node", corev1.PodStatus{}.SwaggerDoc()["nominatedNodeName"]),
	registry.WideColumn("Readiness Gates", corev1.PodSpec{}.SwaggerDoc()["readinessGates"]),
}

func podRow(obj runtime.Object) []any {
	pod := obj.(*corev1.Pod)
	s := summarize(pod)
	restarts := strconv.Itoa(s.restarts.count)
	if s.restarts.count != 0 && !s.restarts.last.IsZero() {
		restarts = fmt.Sprintf("%d (%s ago)", s.restarts.count, registry.Age(s.restarts.last))
	}
	ip := ""
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	return []any{
		pod.Name, fmt.Sprintf("%d/%d", s.ready, s.total), s.reason, restarts, registry.Age(pod.CreationTimestamp),
		orNone(ip), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), gatesCell(pod),
	}
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func gatesCell(pod *corev1.Pod) string {
	gates := pod.Spec.ReadinessGates
	if len(gates) == 0 {
		return "<none>"
	}
	open := 0
	for _, g := range gates {
		if hasCondition(pod, g.ConditionType) {
			open++
		}
	}
	return fmt.Sprintf("%d/%d", open, len(gates))
}

func hasCondition(pod *corev1.Pod, t corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// restartCount adds up restarts and remembers the last one.
type restartCount struct {
	count int
	last  metav1.Time
}

func (r *restartCount) add(s *corev1.ContainerStatus) {
	r.count += int(s.RestartCount)
	if end := s.LastTerminationState.Terminated; end != nil && r.last.Before(&end.FinishedAt) {
		r.last = end.FinishedAt
	}
}

// podSummary is a pod in the words of `kubectl get`.
type podSummary struct {
	reason       string
	ready, total int
	restarts     restartCount
}

func summarize(pod *corev1.Pod) podSummary {
	s := podSummary{reason: string(pod.Status.Phase), total: len(pod.Spec.Containers)}
	if pod.Status.Reason != "" {
		s.reason = pod.Status.Reason
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.reason = corev1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if p := pod.Spec.InitContainers[i].RestartPolicy; p != nil && *p == corev1.ContainerRestartPolicyAlways {
			sidecars[pod.Spec.InitContainers[i].Name] = true
			s.total++
		}
	}
	sidecarRestarts, initializing := s.initContainers(pod, sidecars)
	if !initializing || hasCondition(pod, corev1.PodInitialized) {
		s.restarts = sidecarRestarts
		s.containers(pod)
	}
	if pod.DeletionTimestamp != nil {
		terminal := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
		switch {
		case pod.Status.Reason == "NodeLost":
			s.reason = "Unknown"
		case !terminal:
			s.reason = "Terminating"
		}
	}
	return s
}

// initContainers stops at the first one that is not done.
func (s *podSummary) initContainers(pod *corev1.Pod, sidecars map[string]bool) (sidecarRestarts restartCount, initializing bool) {
	for i := range pod.Status.InitContainerStatuses {
		c := &pod.Status.InitContainerStatuses[i]
		s.restarts.add(c)
		if sidecars[c.Name] {
			sidecarRestarts.add(c)
		}
		ended := c.State.Terminated
		switch {
		case ended != nil && ended.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case ended != nil:
			s.reason = "Init:" + endReason(ended)
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			s.reason = "Init:" + c.State.Waiting.Reason
		default:
			s.reason = fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
		return sidecarRestarts, true
	}
	return sidecarRestarts, false
}

// containers goes backwards, so that the first container has the last word.
func (s *podSummary) containers(pod *corev1.Pod) {
	running, failed := false, ""
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &pod.Status.ContainerStatuses[i]
		s.restarts.add(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.reason = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.reason = endReason(c.State.Terminated)
			if c.State.Terminated.ExitCode != 0 {
				failed = s.reason
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	// The first container has completed: that is not the word for a pod with
	// others that run or have failed.
	switch {
	case s.reason != "Completed":
	case running && hasCondition(pod, corev1.PodReady):
		s.reason = "Running"
	case failed != "":
		s.reason = failed
	case running:
		s.reason = "NotReady"
	}
}

func endReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	default:
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
}
