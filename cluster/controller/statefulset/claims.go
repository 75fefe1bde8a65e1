package statefulset

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-sh/skiff/cluster/controller"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// Claims are deleted by the garbage collector: with the set when that owns them,
// with the pod that is removed for good when a set shrinks. The policy is
// carried out by keeping the owners right.

const (
	retain = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	remove = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
)

func retention(set *appsv1.StatefulSet) (deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType) {
	if p := set.Spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		return p.WhenDeleted, p.WhenScaled
	}
	return retain, retain
}

// names reports whether a reference is to an object of that kind and name,
// whatever its UID.
func names(ref metav1.OwnerReference, obj metav1.Object, kind schema.GroupVersionKind) bool {
	return ref.APIVersion == kind.GroupVersion().String() && ref.Kind == kind.Kind && ref.Name == obj.GetName()
}

// owners gives the references that a claim of pod should have; condemned tells
// that the pod is beyond the size of the set. A claim that belongs to a former
// set or pod of the name, or to another controller, is not touched, and conflict
// tells so; where nothing was ever to be deleted that is none.
func owners(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod, condemned bool) (refs []metav1.OwnerReference, conflict bool) {
	deleted, scaled := retention(set)
	for _, ref := range claim.OwnerReferences {
		former := names(ref, set, kind) && ref.UID != set.UID || names(ref, pod, podKind) && ref.UID != pod.UID
		if former {
			return claim.OwnerReferences, false // it goes with that one
		}
		ours := names(ref, set, kind) || names(ref, pod, podKind)
		if !ours {
			refs = append(refs, ref)
			conflict = conflict || ref.Controller != nil && *ref.Controller
		}
	}
	if conflict {
		return refs, deleted == remove || scaled == remove
	}
	switch {
	case condemned && scaled == remove:
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	case deleted == remove && (!condemned || scaled == retain):
		refs = append(refs, *metav1.NewControllerRef(set, kind))
	}
	return refs, false
}

// stale reports whether a claim still belongs to a former pod of the name, and
// goes with it: the next pod has to wait.
func stale(claim *corev1.PersistentVolumeClaim, pod *corev1.Pod) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return names(ref, pod, podKind) && ref.UID != pod.UID
	})
}

// keepClaims brings the owners of all pods' claims up to date, and makes claims
// anew that pods wait for.
func (c *Controller) keepClaims(ctx context.Context, in input) error {
	if len(in.set.Spec.VolumeClaimTemplates) == 0 {
		return nil
	}
	first, end := in.bounds()
	for _, pod := range in.pods {
		n := ordinalOf(pod)
		condemned := n < first || n >= end
		for _, wanted := range claimsFor(in.set, n) {
			claim, err := c.claims.PersistentVolumeClaims(wanted.Namespace).Get(wanted.Name)
			switch {
			case apierrors.IsNotFound(err):
				if !condemned && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodPending {
					err = c.createClaim(ctx, in.set, pod, wanted)
				} else {
					err = nil
				}
			case err == nil:
				err = c.keepOwners(ctx, in.set, pod, claim, condemned)
			}
			if err != nil {
				return fmt.Errorf("claim %s/%s: %w", wanted.Namespace, wanted.Name, err)
			}
		}
	}
	return nil
}

func (c *Controller) keepOwners(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod, claim *corev1.PersistentVolumeClaim, condemned bool) error {
	refs, conflict := owners(claim, set, pod, condemned)
	if conflict {
		c.cfg.Events.Eventf(set, corev1.EventTypeWarning, "ConflictingController",
			"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim", claim.Name)
	}
	if equality.Semantic.DeepEqual(refs, claim.OwnerReferences) {
		return nil
	}
	next := claim.DeepCopy()
	next.OwnerReferences = refs
	_, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, next, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update owners: %w", err)
	}
	return nil
}

// createClaim makes the claim of a pod that may not exist yet. It is ErrAgain
// while one of that name ends with a former pod.
func (c *Controller) createClaim(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) error {
	if have, err := c.claims.PersistentVolumeClaims(claim.Namespace).Get(claim.Name); err == nil {
		if _, scaled := retention(set); scaled == remove && stale(have, pod) {
			return controller.ErrAgain
		}
		return nil
	}
	if deleted, _ := retention(set); deleted == remove {
		claim.OwnerReferences = append(claim.OwnerReferences, *metav1.NewControllerRef(set, kind))
	}
	_, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.cfg.Events.Eventf(set, corev1.EventTypeNormal, "SuccessfulCreate", "create Claim %s Pod %s in StatefulSet %s success", claim.Name, pod.Name, set.Name)
	case apierrors.IsAlreadyExists(err): // and the cache does not show it yet
	default:
		c.cfg.Events.Eventf(set, corev1.EventTypeWarning, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %v", claim.Name, pod.Name, set.Name, err)
		return fmt.Errorf("create claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}
