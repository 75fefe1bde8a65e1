package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of conditions, as users and scripts know them.
const (
	reasonCreated     = "NewReplicaSetCreated"
	reasonFound       = "FoundNewReplicaSet"
	reasonUpdated     = "ReplicaSetUpdated"
	reasonDone        = "NewReplicaSetAvailable"
	reasonTimedOut    = "ProgressDeadlineExceeded"
	reasonCreateError = "ReplicaSetCreateError"
	reasonPaused      = "DeploymentPaused"
	reasonResumed     = "DeploymentResumed"
	reasonAvailable   = "MinimumReplicasAvailable"
	reasonUnavailable = "MinimumReplicasUnavailable"
)

// decideStatus computes the status from the ReplicaSets' statuses. newer may be
// nil. Conditions start from those of d.
func decideStatus(d *appsv1.Deployment, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	all := slices.Clone(old)
	if newer != nil {
		all = append(all, newer)
	}
	s := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation,
		CollisionCount:     d.Status.CollisionCount,
		Conditions:         slices.Clone(d.Status.Conditions),
	}
	var terminating int32
	for _, rs := range all {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		}
	}
	s.TerminatingReplicas = &terminating
	if newer != nil {
		s.UpdatedReplicas = newer.Status.Replicas
	}
	s.UnavailableReplicas = max(0, sizes(all)-s.AvailableReplicas)
	if s.AvailableReplicas >= wanted(d)-maxUnavailable(d) {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionTrue, reasonAvailable, "Deployment has minimum availability.", now)
	} else {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionFalse, reasonUnavailable, "Deployment does not have minimum availability.", now)
	}
	return s
}

// judgeProgress brings the Progressing and ReplicaFailure conditions up to date.
func judgeProgress(d *appsv1.Deployment, s *appsv1.DeploymentStatus, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, now time.Time) {
	if !hasDeadline(d) {
		dropCondition(s, appsv1.DeploymentProgressing)
	}
	current := condition(s.Conditions, appsv1.DeploymentProgressing)
	settled := s.Replicas == s.UpdatedReplicas && current != nil && current.Reason == reasonDone
	if hasDeadline(d) && !settled {
		subject := fmt.Sprintf("Deployment %q", d.Name)
		if newer != nil {
			subject = fmt.Sprintf("ReplicaSet %q", newer.Name)
		}
		switch {
		case complete(d, s):
			setCondition(s, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonDone, subject+" has successfully progressed.", now)
		case moved(&d.Status, s):
			since := metav1.NewTime(now)
			if current != nil && current.Status == corev1.ConditionTrue {
				since = current.LastTransitionTime
			}
			// Progress of the same kind counts anew each time: the deadline is
			// measured from the last of it.
			dropCondition(s, appsv1.DeploymentProgressing)
			setCondition(s, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonUpdated, subject+" is progressing.", now)
			condition(s.Conditions, appsv1.DeploymentProgressing).LastTransitionTime = since
		case timedOut(d, s, now):
			setCondition(s, appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, subject+" has timed out progressing.", now)
		}
	}
	noteFailure(s, newer, old, now)
}

// noteFailure shows the reason why a ReplicaSet cannot make or remove pods, the
// new one's before the others'.
func noteFailure(s *appsv1.DeploymentStatus, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, now time.Time) {
	candidates := slices.Clone(old)
	if newer != nil {
		candidates = slices.Insert(candidates, 0, newer)
	}
	for _, rs := range candidates {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				setCondition(s, appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message, now)
				return
			}
		}
	}
	dropCondition(s, appsv1.DeploymentReplicaFailure)
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// complete reports whether the newest template is rolled out in full.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == wanted(d) && s.Replicas == wanted(d) && s.AvailableReplicas == wanted(d) &&
		s.ObservedGeneration >= d.Generation
}

// moved reports whether s is closer to the goal than before.
func moved(before, s *appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas > before.UpdatedReplicas ||
		s.Replicas-s.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		s.ReadyReplicas > before.ReadyReplicas ||
		s.AvailableReplicas > before.AvailableReplicas
}

func timedOut(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) bool {
	c := condition(s.Conditions, appsv1.DeploymentProgressing)
	switch {
	case c == nil || c.Reason == reasonDone:
		return false
	case c.Reason == reasonTimedOut:
		return true
	}
	return now.After(c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second))
}

// deadlineIn is the time until the deadline may pass; 0 if none is running.
func deadlineIn(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) time.Duration {
	c := condition(s.Conditions, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || c.Reason == reasonTimedOut || d.Spec.Paused ||
		complete(d, s) || c.Reason == reasonDone && s.Replicas == s.UpdatedReplicas {
		return 0
	}
	until := c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second)
	return max(0, until.Sub(now)) + time.Second // times in the API are whole seconds
}

func condition(list []appsv1.DeploymentCondition, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// setCondition leaves a condition of the same status and reason alone, and keeps
// the transition time while the status does not change.
func setCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) {
	next := appsv1.DeploymentCondition{
		Type: t, Status: status, Reason: reason, Message: message,
		LastUpdateTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(now),
	}
	if c := condition(s.Conditions, t); c != nil {
		if c.Status == status && c.Reason == reason {
			return
		}
		if c.Status == status {
			next.LastTransitionTime = c.LastTransitionTime
		}
		dropCondition(s, t)
	}
	s.Conditions = append(s.Conditions, next)
}

func dropCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	s.Conditions = slices.DeleteFunc(slices.Clone(s.Conditions), func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}
