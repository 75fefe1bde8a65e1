package disruption

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// deletionTimeout is how long an evicted pod may take until it is being
// deleted; afterwards the eviction is taken for one that failed.
const deletionTimeout = 2 * time.Minute

// input is what a budget's status is computed from.
type input struct {
	budget *policyv1.PodDisruptionBudget
	pods   []*corev1.Pod // those that the budget's selector matches
	// scale sums up the replicas that the pods' owners ask for. It is called
	// only for budgets that are relative to them.
	scale func([]*corev1.Pod) (int32, error)
	now   time.Time
}

// outcome is a status, and what else follows from the input.
type outcome struct {
	status policyv1.PodDisruptionBudgetStatus
	again  time.Duration // when to look again, if not 0
	stayed []*corev1.Pod // evicted, but not deleted in time
}

// decide computes a budget's status. An error comes with a status that allows
// nothing.
func decide(in input) (outcome, error) {
	expected, desired, err := in.goal()
	if err != nil {
		return refuse(in.budget, err), err
	}
	out := outcome{status: *in.budget.Status.DeepCopy()}
	s := &out.status
	s.ObservedGeneration = in.budget.Generation
	s.ExpectedPods, s.DesiredHealthy = expected, desired
	s.DisruptedPods, s.CurrentHealthy = nil, 0
	for _, pod := range in.pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		if at, evicted := in.budget.Status.DisruptedPods[pod.Name]; evicted {
			if left := at.Add(deletionTimeout).Sub(in.now); left > 0 {
				if s.DisruptedPods == nil {
					s.DisruptedPods = map[string]metav1.Time{}
				}
				s.DisruptedPods[pod.Name] = at
				if out.again == 0 || left < out.again {
					out.again = left
				}
				continue
			}
			out.stayed = append(out.stayed, pod)
		}
		if controller.Ready(pod) {
			s.CurrentHealthy++
		}
	}
	s.DisruptionsAllowed = max(0, s.CurrentHealthy-desired)
	if expected <= 0 {
		s.DisruptionsAllowed = 0
	}
	if s.DisruptionsAllowed > 0 {
		setAllowed(s, metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		setAllowed(s, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	return out, nil
}

// refuse allows nothing and says why. The generation stays unobserved: the other
// numbers are not about it.
func refuse(b *policyv1.PodDisruptionBudget, why error) outcome {
	out := outcome{status: *b.Status.DeepCopy()}
	out.status.DisruptionsAllowed = 0
	setAllowed(&out.status, metav1.ConditionFalse, policyv1.SyncFailedReason, why.Error())
	return out
}

// relative reports whether a budget counts from what the owners of its pods ask
// for, instead of the pods that there are.
func relative(spec *policyv1.PodDisruptionBudgetSpec) bool {
	return spec.MaxUnavailable != nil || spec.MinAvailable != nil && spec.MinAvailable.Type == intstr.String
}

func setAllowed(s *policyv1.PodDisruptionBudgetStatus, is metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: is, Reason: reason, Message: message, ObservedGeneration: s.ObservedGeneration,
	})
}

// goal is how many pods there should be, and how many of them healthy.
func (in input) goal() (expected, desired int32, err error) {
	spec := in.budget.Spec
	switch {
	case spec.MaxUnavailable != nil:
		if expected, err = in.scale(in.pods); err != nil {
			return 0, 0, err
		}
		n, err := rounded(*spec.MaxUnavailable, expected)
		if err != nil {
			return 0, 0, fmt.Errorf("spec.maxUnavailable: %w", err)
		}
		return expected, max(0, expected-n), nil
	case spec.MinAvailable != nil && spec.MinAvailable.Type == intstr.Int:
		return int32(len(in.pods)), spec.MinAvailable.IntVal, nil
	case spec.MinAvailable != nil:
		if expected, err = in.scale(in.pods); err != nil {
			return 0, 0, err
		}
		if desired, err = rounded(*spec.MinAvailable, expected); err != nil {
			return 0, 0, fmt.Errorf("spec.minAvailable: %w", err)
		}
		return expected, desired, nil
	}
	return 0, 0, errors.New("neither spec.minAvailable nor spec.maxUnavailable is set")
}

// rounded is a number or a percentage of total, rounded up.
func rounded(v intstr.IntOrString, total int32) (int32, error) {
	n, err := intstr.GetScaledValueFromIntOrPercent(&v, int(total), true)
	return int32(n), err
}
