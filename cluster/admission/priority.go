package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/utils/ptr"
)

// systemPriorities are the two classes that exist in every cluster.
var systemPriorities = map[string]int32{
	"system-cluster-critical": 2000000000,
	"system-node-critical":    2000001000,
}

// priority resolves priorityClassName. PriorityClass objects are not served
// yet, so any other name is one that does not exist.
type priority struct{ *admission.Handler }

// Admit implements admission.MutationInterface.
func (p *priority) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, err := podSpec(a)
	if pod == nil || err != nil {
		return err
	}
	if a.GetOperation() == admission.Update {
		return keepPriority(pod, a)
	}
	value := int32(0)
	if name := pod.Spec.PriorityClassName; name != "" {
		v, ok := systemPriorities[name]
		if !ok {
			return admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
		}
		value = v
	}
	if v := pod.Spec.Priority; v != nil && *v != value {
		return admission.NewForbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *v, value))
	}
	if v := pod.Spec.PreemptionPolicy; v != nil && *v != corev1.PreemptLowerPriority {
		return admission.NewForbidden(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *v, corev1.PreemptLowerPriority))
	}
	pod.Spec.Priority = ptr.To(value)
	pod.Spec.PreemptionPolicy = ptr.To(corev1.PreemptLowerPriority)
	return nil
}

// keepPriority fills in what an update left out; what it says otherwise is for
// validation to refuse.
func keepPriority(pod *corev1.Pod, a admission.Attributes) error {
	old, err := as[*corev1.Pod](a.GetOldObject())
	if err != nil {
		return err
	}
	if pod.Spec.Priority == nil {
		pod.Spec.Priority = old.Spec.Priority
	}
	if pod.Spec.PreemptionPolicy == nil {
		pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
	return nil
}
