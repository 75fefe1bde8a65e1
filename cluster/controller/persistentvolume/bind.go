package persistentvolume

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// bind makes v and claim name each other and marks both as bound. It writes only
// what differs, the volume first: what is left undone by an error is done by the
// next pass.
func (c *Controller) bind(ctx context.Context, v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	bound, changed, err := storagehelpers.GetBindVolumeToClaim(v, claim)
	if err != nil {
		return fmt.Errorf("bind volume %s: %w", v.Name, err)
	}
	if changed {
		if bound, err = c.updateVolume(ctx, bound); err != nil {
			return err
		}
	}
	if err := c.setVolumePhase(ctx, bound, corev1.VolumeBound, "", ""); err != nil {
		return err
	}
	next := claim.DeepCopy()
	if next.Spec.VolumeName != v.Name {
		next.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnBoundByController, "yes")
	}
	if !metav1.HasAnnotation(next.ObjectMeta, storagehelpers.AnnBindCompleted) {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnBindCompleted, "yes")
		next, err = c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, next, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("bind claim %s/%s to volume %s: %w", claim.Namespace, claim.Name, v.Name, err)
		}
		c.wrote(next)
	}
	return c.setClaimPhase(ctx, next, corev1.ClaimBound, bound)
}

// unbind takes back a binding that did not come about: the claim has another
// volume. One that the user had asked for stays asked for.
func (c *Controller) unbind(ctx context.Context, v *corev1.PersistentVolume) error {
	next := v.DeepCopy()
	if metav1.HasAnnotation(v.ObjectMeta, storagehelpers.AnnBoundByController) {
		next.Spec.ClaimRef = nil
		delete(next.Annotations, storagehelpers.AnnBoundByController)
	} else {
		next.Spec.ClaimRef.UID = ""
	}
	next, err := c.updateVolume(ctx, next)
	if err != nil {
		return err
	}
	return c.setVolumePhase(ctx, next, corev1.VolumeAvailable, "", "")
}

func (c *Controller) updateVolume(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	out, err := c.cfg.Client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("update volume %s: %w", v.Name, err)
	}
	c.wrote(out)
	return out, nil
}

func (c *Controller) updateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	out, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("update claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	c.wrote(out)
	return nil
}

// setVolumePhase writes the phase, and reason and message of a failure, unless
// they are there already.
func (c *Controller) setVolumePhase(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, reason, message string) error {
	if v.Status.Phase == phase {
		return nil
	}
	next := v.DeepCopy()
	next.Status.Phase, next.Status.Reason, next.Status.Message = phase, reason, message
	out, err := c.cfg.Client.CoreV1().PersistentVolumes().UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("update status of volume %s: %w", v.Name, err)
	}
	c.wrote(out)
	return nil
}

// setClaimPhase writes the phase and what the claim has got from v, if anything,
// unless it is there already. The size is written when the claim becomes bound,
// and not after: later it is what the claim was expanded to.
func (c *Controller) setClaimPhase(ctx context.Context, claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) error {
	next := claim.DeepCopy()
	s := &next.Status
	changed := s.Phase != phase
	if v == nil {
		changed = changed || s.AccessModes != nil || s.Capacity != nil || s.CurrentVolumeAttributesClassName != nil
		s.AccessModes, s.Capacity, s.CurrentVolumeAttributesClassName = nil, nil, nil
	} else {
		if !slices.Equal(s.AccessModes, v.Spec.AccessModes) {
			s.AccessModes, changed = v.Spec.AccessModes, true
		}
		if s.Phase != phase {
			s.Capacity = v.Spec.Capacity
			if !ptr.Equal(s.CurrentVolumeAttributesClassName, v.Spec.VolumeAttributesClassName) {
				s.CurrentVolumeAttributesClassName = v.Spec.VolumeAttributesClassName
			}
		}
	}
	if !changed {
		return nil
	}
	s.Phase = phase
	out, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("update status of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	c.wrote(out)
	return nil
}
