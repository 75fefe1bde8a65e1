package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// decideStatus computes the status from what is held now. failed is what kept
// this sync from creating or deleting pods. wait is the time until the first of
// the pods that are ready becomes available, 0 if none is on the way.
func decideStatus(owner *appsv1.ReplicaSet, held []*corev1.Pod, failed error, now time.Time) (s appsv1.ReplicaSetStatus, wait time.Duration) {
	s.ObservedGeneration = owner.Generation
	s.Conditions = slices.Clone(owner.Status.Conditions)
	template := labels.Set(owner.Spec.Template.Labels).AsSelectorPreValidated()
	var terminating int32
	for _, pod := range held {
		if !controller.Active(pod) {
			if !controller.Finished(pod) {
				terminating++
			}
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(pod.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !controller.Ready(pod) {
			continue
		}
		s.ReadyReplicas++
		ok, missing := controller.Available(pod, owner.Spec.MinReadySeconds, now)
		switch {
		case ok:
			s.AvailableReplicas++
		case missing > 0 && (wait == 0 || missing < wait):
			wait = missing
		}
	}
	if owner.Kind != "ReplicationController" { // which has no such field
		s.TerminatingReplicas = &terminating
	}
	setFailure(&s, owner, failed, now)
	return s, wait
}

// setFailure adds the ReplicaFailure condition, or removes it after success. It
// stays as it is while the reason does, so that repeated failures do not write.
func setFailure(s *appsv1.ReplicaSetStatus, owner *appsv1.ReplicaSet, failed error, now time.Time) {
	at := slices.IndexFunc(s.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure
	})
	switch {
	case failed == nil && at >= 0:
		s.Conditions = slices.Delete(s.Conditions, at, at+1)
	case failed != nil && at < 0:
		reason := "FailedCreate"
		if s.Replicas > wanted(owner) {
			reason = "FailedDelete"
		}
		s.Conditions = append(s.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: failed.Error(),
		})
	}
}

func sameStatus(a, b appsv1.ReplicaSetStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// wanted is the number of replicas asked for; the API defaults it to 1.
func wanted(owner *appsv1.ReplicaSet) int32 {
	if owner.Spec.Replicas == nil {
		return 1
	}
	return *owner.Spec.Replicas
}
