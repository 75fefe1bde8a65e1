package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// volumeTimeout is how long a pod may wait for the volumes of its claims on the
// node that was chosen for it.
const volumeTimeout = 10 * time.Minute

// bindVolumes tells those who bind and make volumes what was decided, and
// returns when all claims are bound. Each write is done only if it is not there:
// pods that share a claim do not disturb each other.
func (s *Scheduler) bindVolumes(ctx context.Context, pod *corev1.Pod, plan []claimPlan) error {
	if err := s.writePlan(ctx, plan); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, volumeTimeout, errors.New("timed out waiting for volumes"))
	defer cancel()
	for {
		changed := s.state.volumes.next()
		open := 0
		for _, p := range plan {
			done, err := s.settled(p)
			if err != nil {
				return err
			}
			if !done {
				open++
			}
		}
		if open == 0 {
			return nil
		}
		if cur, err := s.pods.Pods(pod.Namespace).Get(pod.Name); apierrors.IsNotFound(err) || err == nil && (cur.UID != pod.UID || cur.DeletionTimestamp != nil) {
			return apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Scheduler) writePlan(ctx context.Context, plan []claimPlan) error {
	for i := range plan {
		p := &plan[i]
		claim, err := s.cfg.Binder.Claim(ctx, p.claim.Namespace, p.claim.Name)
		if err != nil {
			return err
		}
		if claim.UID != p.claim.UID {
			return fmt.Errorf("claim %s/%s was made anew", claim.Namespace, claim.Name)
		}
		if boundCompletely(claim) {
			continue
		}
		if p.volume == "" {
			if claim, err = s.chooseNode(ctx, claim, p.node); err != nil {
				return err
			}
			p.since = version(claim)
			continue
		}
		v, err := s.state.volumes.byName.Get(p.volume)
		if err != nil {
			return fmt.Errorf("volume %s for claim %s: %w", p.volume, p.claim.Name, err)
		}
		bound, dirty, err := storagehelpers.GetBindVolumeToClaim(v, claim)
		if err != nil {
			return fmt.Errorf("volume %s for claim %s: %w", p.volume, p.claim.Name, err)
		}
		if v.Spec.ClaimRef != nil && !storagehelpers.IsVolumeBoundToClaim(v, claim) {
			return fmt.Errorf("volume %s was taken by claim %s/%s", v.Name, v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
		}
		if dirty {
			if err := s.cfg.Binder.UpdateVolume(ctx, bound); err != nil {
				return err
			}
		}
	}
	return nil
}

// chooseNode asks the provisioner of a claim's class for a volume on node.
func (s *Scheduler) chooseNode(ctx context.Context, claim *corev1.PersistentVolumeClaim, node string) (*corev1.PersistentVolumeClaim, error) {
	switch have := claim.Annotations[storagehelpers.AnnSelectedNode]; have {
	case node:
		return claim, nil
	case "":
		next := claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnSelectedNode, node)
		return s.cfg.Binder.UpdateClaim(ctx, next)
	default:
		return nil, fmt.Errorf("volume of claim %s/%s is to be made on node %s", claim.Namespace, claim.Name, have)
	}
}

// settled reports whether a claim has its volume. It fails when it will not get
// it where the plan says.
func (s *Scheduler) settled(p claimPlan) (bool, error) {
	claim, err := s.state.volumes.claims.PersistentVolumeClaims(p.claim.Namespace).Get(p.claim.Name)
	if err != nil || claim.UID != p.claim.UID {
		return false, fmt.Errorf("persistentvolumeclaim %q not found", p.claim.Name)
	}
	if boundCompletely(claim) && claim.Status.Phase == corev1.ClaimBound {
		v, err := s.state.volumes.byName.Get(claim.Spec.VolumeName)
		if apierrors.IsNotFound(err) {
			return false, nil // the claim was faster
		}
		if err != nil {
			return false, err
		}
		node := s.state.node(p.node)
		if node == nil {
			return false, fmt.Errorf("node %q not found", p.node)
		}
		if err := storagehelpers.CheckNodeAffinity(v, node.Labels); err != nil {
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q: %w", v.Name, p.node, err)
		}
		return true, nil
	}
	switch {
	case claim.DeletionTimestamp != nil:
		return false, fmt.Errorf("persistentvolumeclaim %q is being deleted", claim.Name)
	case claim.Status.Phase == corev1.ClaimLost:
		return false, fmt.Errorf("persistentvolumeclaim %q has lost its volume", claim.Name)
	}
	if p.volume != "" {
		if v, err := s.state.volumes.byName.Get(p.volume); apierrors.IsNotFound(err) || err == nil && v.Spec.ClaimRef != nil && !storagehelpers.IsVolumeBoundToClaim(v, claim) {
			return false, fmt.Errorf("volume %q is not to be had any more", p.volume)
		}
		return false, nil
	}
	if s.state.node(p.node) == nil {
		return false, fmt.Errorf("node %q not found", p.node)
	}
	// A provisioner that can't takes the annotation away.
	if claim.Annotations[storagehelpers.AnnSelectedNode] != p.node && version(claim) >= p.since {
		return false, fmt.Errorf("provisioning failed for PVC %q", claim.Name)
	}
	return false, nil
}

// version is the revision of the store that an object was written at.
func version(obj metav1.Object) uint64 {
	n, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
