package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
)

// runtimeClass gives pods that name a RuntimeClass its overhead, and sees to it
// that they get to nodes that have its handler.
type runtimeClass struct {
	*admission.Handler
	objects Objects
}

var errOverhead = errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")

// Admit implements admission.MutationInterface.
func (r *runtimeClass) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, class, err := r.of(ctx, a)
	if class == nil || err != nil {
		return err
	}
	if o := class.Overhead; o != nil {
		if len(pod.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(o.PodFixed, pod.Spec.Overhead) {
			return admission.NewForbidden(a, errOverhead)
		}
		pod.Spec.Overhead = o.PodFixed.DeepCopy()
	}
	if s := class.Scheduling; s != nil {
		selector := maps.Clone(s.NodeSelector)
		for key, value := range pod.Spec.NodeSelector {
			if theirs, ok := selector[key]; ok && theirs != value {
				return admission.NewForbidden(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, theirs, key, value))
			}
			if selector == nil {
				selector = map[string]string{}
			}
			selector[key] = value
		}
		pod.Spec.NodeSelector = selector
		pod.Spec.Tolerations = mergeTolerations(pod.Spec.Tolerations, s.Tolerations)
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (r *runtimeClass) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, class, err := r.of(ctx, a)
	switch {
	case pod == nil || err != nil:
		return err
	case class != nil && class.Overhead != nil:
		if !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return admission.NewForbidden(a, errOverhead)
		}
	case pod.Spec.Overhead != nil:
		return admission.NewForbidden(a, errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
	}
	return nil
}

// of gives the new pod of a request and the class that it names, each nil if
// there is none. The class must not be changed.
func (r *runtimeClass) of(ctx context.Context, a admission.Attributes) (*corev1.Pod, *nodev1.RuntimeClass, error) {
	pod, err := newPod(a)
	if pod == nil || err != nil || pod.Spec.RuntimeClassName == nil {
		return pod, nil, err
	}
	name := *pod.Spec.RuntimeClassName
	class, err := r.objects.RuntimeClass(ctx, name)
	if apierrors.IsNotFound(err) {
		return pod, nil, admission.NewForbidden(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", name))
	}
	return pod, class, err
}

// mergeTolerations gives all of first and second but those that another makes
// superfluous.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	var out []corev1.Toleration
	for _, t := range slices.Concat(first, second) {
		if slices.ContainsFunc(out, func(o corev1.Toleration) bool { return covers(o, t) }) {
			continue
		}
		out = append(slices.DeleteFunc(out, func(o corev1.Toleration) bool { return covers(t, o) }), t)
	}
	return out
}

// covers tells whether a tolerates whatever b does, and for as long.
func covers(a, b corev1.Toleration) bool {
	exists := a.Operator == corev1.TolerationOpExists
	switch {
	case equality.Semantic.DeepEqual(a, b):
		return true
	case a.Key != b.Key && (a.Key != "" || !exists), a.Effect != b.Effect && a.Effect != "":
		return false
	case a.TolerationSeconds != nil && (b.TolerationSeconds == nil || *b.TolerationSeconds > *a.TolerationSeconds):
		return false
	case exists:
		return true
	}
	return b.Operator != corev1.TolerationOpExists && a.Value == b.Value
}
