package disruption

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// scale sums up the replicas that the owners of pods ask for, each once. Pods
// without an owner do not count.
func (c *Controller) scale(pods []*corev1.Pod) (int32, error) {
	owners := map[types.UID]int32{}
	for _, pod := range pods {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			continue
		}
		if _, known := owners[ref.UID]; known {
			continue
		}
		uid, n, err := c.owner(pod.Namespace, *ref)
		if apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("found no controllers for pod %q", pod.Name)
		}
		if err != nil {
			return 0, err // worded as upstream does, for the condition and the event
		}
		owners[uid] = n
	}
	sum := int32(0)
	for _, n := range owners {
		sum += n
	}
	return sum, nil
}

// owner follows a reference to the object whose replicas a user sets: for a
// ReplicaSet of a Deployment that exists, the Deployment.
func (c *Controller) owner(namespace string, ref metav1.OwnerReference) (types.UID, int32, error) {
	var owner metav1.Object
	var replicas *int32
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: ref.Kind}, ref.Name)
	group := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
	switch group {
	case schema.GroupKind{Kind: "ReplicationController"}:
		rc, err := c.rcs.ReplicationControllers(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		owner, replicas = rc, rc.Spec.Replicas
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "ReplicaSet"}:
		rs, err := c.replicaSets.ReplicaSets(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" && rs.UID == ref.UID {
			if uid, n, err := c.owner(namespace, *up); err == nil {
				return uid, n, nil
			}
		}
		owner, replicas = rs, rs.Spec.Replicas
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "Deployment"}:
		d, err := c.deployments.Deployments(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		owner, replicas = d, d.Spec.Replicas
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "StatefulSet"}:
		s, err := c.statefulSets.StatefulSets(namespace).Get(ref.Name)
		if err != nil {
			return "", 0, err
		}
		owner, replicas = s, s.Spec.Replicas
	default:
		resource, _ := meta.UnsafeGuessKindToResource(schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind))
		if group.Group == "" || group.Group == appsv1.GroupName || group.Group == batchv1.GroupName {
			return "", 0, fmt.Errorf("%s does not implement the scale subresource", resource.GroupResource())
		}
		return "", 0, fmt.Errorf("the scale of %s is not supported in disruption budgets: use an integer minAvailable", resource.GroupResource())
	}
	if owner.GetUID() != ref.UID {
		return "", 0, gone
	}
	if replicas == nil {
		return ref.UID, 1, nil
	}
	return ref.UID, *replicas, nil
}
