package persistentvolume

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-sh/skiff/cluster/controller"
)

func (c *Controller) syncVolume(ctx context.Context, name string) error {
	v := c.volume(name)
	if v == nil || c.behind(v) {
		return nil
	}
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return c.setVolumePhase(ctx, v, corev1.VolumeAvailable, "", "")
	}
	claim, err := c.claimFor(ctx, v)
	if err != nil {
		return err
	}
	switch {
	case claim == nil:
		return c.release(ctx, v)
	case claim.Spec.VolumeName == "":
		if storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &v.Spec) {
			c.tell(claim, corev1.EventTypeWarning, "VolumeMismatch",
				fmt.Sprintf("Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", v.Name))
		}
		c.loop.Add(claimKey + controller.Key(claim.Namespace, claim.Name)) // it completes the binding
		return nil
	case claim.Spec.VolumeName == v.Name:
		return c.setVolumePhase(ctx, v, corev1.VolumeBound, "", "")
	}
	// The claim has another volume.
	if metav1.HasAnnotation(v.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned) &&
		v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return c.release(ctx, v)
	}
	return c.unbind(ctx, v)
}

// claimFor gives the very claim that a volume is bound to, nil if it is gone.
// The cache is not believed when it says so: data would be deleted.
func (c *Controller) claimFor(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := v.Spec.ClaimRef
	claim, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
	if err == nil && claim.UID == ref.UID {
		return claim, nil
	}
	if over(v) {
		return nil, nil
	}
	claim, err = c.cfg.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for the claim of volume %s: %w", v.Name, err)
	case claim.UID != ref.UID:
		return nil, nil
	}
	return claim, nil
}

// over reports whether a volume's claim was found to be gone before.
func over(v *corev1.PersistentVolume) bool {
	return v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed
}

// release marks a volume as released. Deleting it is for whoever made it.
func (c *Controller) release(ctx context.Context, v *corev1.PersistentVolume) error {
	if !over(v) {
		return c.setVolumePhase(ctx, v, corev1.VolumeReleased, "", "") // and back here when it is seen
	}
	if v.Status.Phase == corev1.VolumeFailed {
		return nil
	}
	reason, why := "", ""
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRecycle:
		reason, why = "VolumeFailedRecycle", "No recycler plugin found for the volume!"
	case corev1.PersistentVolumeReclaimDelete:
		if by := v.Annotations[storagehelpers.AnnDynamicallyProvisioned]; v.Spec.CSI == nil && (by == "" || strings.HasPrefix(by, "kubernetes.io/")) {
			reason, why = "VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.Name)
		}
	}
	if reason == "" {
		return nil
	}
	if err := c.setVolumePhase(ctx, v, corev1.VolumeFailed, reason, why); err != nil {
		return err
	}
	c.cfg.Events.Event(v, corev1.EventTypeWarning, reason, why)
	return nil
}
