package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	resourcehelper "k8s.io/component-helpers/resource"
)

// podResize refuses to make a pod larger than its node, where it could never be
// granted.
type podResize struct {
	*admission.Handler
	objects Objects
}

// resizes is what nodes declare that resize pods. Those of earlier versions would
// never do what they are asked.
const resizes = "InPlacePodVerticalScalingInitContainers"

// resizedPod gives the pod of a request that resizes one, else nil.
func resizedPod(a admission.Attributes) (*corev1.Pod, error) {
	if a.GetResource().GroupResource() != podsResource || a.GetSubresource() != "resize" || a.GetOperation() != admission.Update {
		return nil, nil
	}
	return as[*corev1.Pod](a.GetObject())
}

// Validate implements admission.ValidationInterface.
func (r *podResize) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, err := resizedPod(a)
	if pod == nil || err != nil || pod.Spec.NodeName == "" {
		return err
	}
	old, err := as[*corev1.Pod](a.GetOldObject())
	if err != nil || old.Generation == pod.Generation {
		return err
	}
	node, err := r.objects.Node(ctx, pod.Spec.NodeName)
	if apierrors.IsNotFound(err) {
		return admission.NewForbidden(a, fmt.Errorf("node %q not found", pod.Spec.NodeName))
	}
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("failed to get node %q: %w", pod.Spec.NodeName, err))
	}
	if !slices.Contains(node.Status.DeclaredFeatures, resizes) {
		return admission.NewForbidden(a, fmt.Errorf("pod update requires features %s which are not available on node %q: it runs an earlier version", resizes, node.Name))
	}
	var over []string
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	if want, have := requests.Cpu(), node.Status.Allocatable.Cpu(); want.Cmp(*have) > 0 {
		over = append(over, fmt.Sprintf("cpu, requested: %d, allocatable: %d", want.MilliValue(), have.MilliValue()))
	}
	if want, have := requests.Memory(), node.Status.Allocatable.Memory(); want.Cmp(*have) > 0 {
		over = append(over, fmt.Sprintf("memory, requested: %d, allocatable: %d", want.Value(), have.Value()))
	}
	if len(over) == 0 {
		return nil
	}
	err = admission.NewForbidden(a, fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(over, "; ")))
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: "NodeCapacity"})
	}
	return err
}
