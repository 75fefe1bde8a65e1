package persistentvolume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

func (c *Controller) syncClaim(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read claim %s: %w", key, err)
	}
	if c.behind(claim) {
		return nil
	}
	if metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted) {
		return c.syncBound(ctx, claim)
	}
	if claim.Spec.VolumeName != "" {
		return c.syncWanted(ctx, claim)
	}
	return c.syncOpen(ctx, claim)
}

// syncBound checks that what a claim was bound to is still there.
func (c *Controller) syncBound(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName == "" {
		return c.lose(ctx, claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	v := c.volume(claim.Spec.VolumeName)
	switch {
	case v == nil:
		// The claim may have been bound to a volume that is newer than the cache.
		if _, err := c.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return errors.Join(controller.ErrAgain, err)
		}
		return c.lose(ctx, claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case c.behind(v):
		return nil
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == claim.UID:
		return c.bind(ctx, v, claim)
	}
	return c.lose(ctx, claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

func (c *Controller) lose(ctx context.Context, claim *corev1.PersistentVolumeClaim, reason, message string) error {
	if claim.Status.Phase == corev1.ClaimLost {
		return nil
	}
	if err := c.setClaimPhase(ctx, claim, corev1.ClaimLost, nil); err != nil {
		return err
	}
	c.cfg.Events.Event(claim, corev1.EventTypeWarning, reason, message)
	return nil
}

// syncWanted binds a claim that names its volume.
func (c *Controller) syncWanted(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	v := c.volume(claim.Spec.VolumeName)
	switch {
	case v == nil:
		return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
	case c.behind(v):
		return nil
	case v.Spec.ClaimRef == nil:
		if why := mismatch(v, claim); why != "" {
			c.tell(claim, corev1.EventTypeWarning, "VolumeMismatch", fmt.Sprintf("Cannot bind to requested volume %q: %s", v.Name, why))
			return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
		}
		return c.bind(ctx, v, claim)
	case storagehelpers.IsVolumeBoundToClaim(v, claim):
		return c.bind(ctx, v, claim)
	}
	c.tell(claim, corev1.EventTypeWarning, "FailedBinding", fmt.Sprintf("volume %q already bound to a different claim.", v.Name))
	return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
}

// mismatch tells why a volume that a claim names is not for it; "" if it is.
func mismatch(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) string {
	have, want := v.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case v.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", v.Name)
	case have.Cmp(want) < 0:
		return "requested PV is too small"
	case storagehelpers.GetPersistentVolumeClass(v) != storagehelpers.GetPersistentVolumeClaimClass(claim):
		return "storageClassName does not match"
	case ptr.Deref(v.Spec.VolumeAttributesClassName, "") != ptr.Deref(claim.Spec.VolumeAttributesClassName, ""):
		return "volumeAttributesClassName does not match"
	case storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &v.Spec):
		return "incompatible volumeMode"
	case !storagehelpers.CheckAccessModes(claim, v):
		return "incompatible accessMode"
	}
	return ""
}

// syncOpen finds a volume for a claim that takes any.
func (c *Controller) syncOpen(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp != nil {
		return nil
	}
	delayed, err := storagehelpers.IsDelayBindingMode(claim, c.classes)
	if err != nil {
		return fmt.Errorf("binding mode of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	v, err := c.pick(claim, delayed)
	if err != nil {
		return fmt.Errorf("volume for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if v != nil {
		defer c.unpick(v)
		return c.bind(ctx, v, claim)
	}
	if !storagehelpers.PersistentVolumeClaimHasClass(claim) {
		all, err := c.classes.List(labels.Everything())
		if err != nil {
			return fmt.Errorf("list storage classes: %w", err)
		}
		if class := storageapi.Default(all); class != nil {
			changed := claim.DeepCopy()
			changed.Spec.StorageClassName = &class.Name
			return c.updateClaim(ctx, changed)
		}
	}
	switch class := storagehelpers.GetPersistentVolumeClaimClass(claim); {
	case delayed && !storagehelpers.IsDelayBindingProvisioning(claim):
		reason, message := c.waitsFor(claim)
		c.tell(claim, corev1.EventTypeNormal, reason, message)
	case class != "":
		return c.askProvisioner(ctx, claim, class)
	default:
		c.tell(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	}
	return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
}

// pick chooses a volume for a claim and keeps others from choosing it until
// unpick.
func (c *Controller) pick(claim *corev1.PersistentVolumeClaim, delayed bool) (*corev1.PersistentVolume, error) {
	c.picking.Lock()
	defer c.picking.Unlock()
	v, err := c.match(claim, delayed)
	if v != nil {
		c.picked[v.Name] = struct{}{}
	}
	return v, err
}

func (c *Controller) unpick(v *corev1.PersistentVolume) {
	c.picking.Lock()
	defer c.picking.Unlock()
	delete(c.picked, v.Name)
}

// match finds the best volume for a claim: one that names it, else the smallest
// that is large enough among those with the fewest access modes.
func (c *Controller) match(claim *corev1.PersistentVolumeClaim, delayed bool) (*corev1.PersistentVolume, error) {
	find := func(from []*corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
		from = slices.DeleteFunc(from, func(v *corev1.PersistentVolume) bool {
			_, picked := c.picked[v.Name]
			return picked || !storagehelpers.CheckAccessModes(claim, v) || c.behind(v)
		})
		return storagehelpers.FindMatchingVolume(claim, from, nil, nil, delayed, true)
	}
	meant := c.at(byClaim, controller.Key(claim.Namespace, claim.Name))
	for _, v := range meant {
		if storagehelpers.IsVolumeBoundToClaim(v, claim) && c.behind(v) {
			return nil, controller.ErrAgain // no other must be taken instead
		}
	}
	if v, err := find(meant); v != nil || err != nil {
		return v, err
	}
	if delayed {
		return nil, nil
	}
	free := c.at(byClass, storagehelpers.GetPersistentVolumeClaimClass(claim))
	slices.SortStableFunc(free, func(a, b *corev1.PersistentVolume) int {
		return cmp.Or(cmp.Compare(len(a.Spec.AccessModes), len(b.Spec.AccessModes)), cmp.Compare(a.Name, b.Name))
	})
	for len(free) > 0 {
		n := 1
		for n < len(free) && len(free[n].Spec.AccessModes) == len(free[0].Spec.AccessModes) {
			n++
		}
		if v, err := find(slices.Clone(free[:n])); v != nil || err != nil {
			return v, err
		}
		free = free[n:]
	}
	return nil, nil
}

// waitsFor says what a claim waits for whose class leaves the choice of the node
// to the scheduler.
func (c *Controller) waitsFor(claim *corev1.PersistentVolumeClaim) (reason, message string) {
	var names []string
	for _, pod := range controller.PodsWithClaim(c.pods, claim.Namespace, claim.Name) {
		if pod.Spec.NodeName == "" && !controller.Finished(pod) {
			names = append(names, pod.Name)
		}
	}
	switch len(names) {
	case 0:
		return "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
	case 1:
		return "WaitForPodScheduled", fmt.Sprintf("waiting for pod %s to be scheduled", names[0])
	}
	return "WaitForPodScheduled", fmt.Sprintf("waiting for pods %s to be scheduled", strings.Join(names, ","))
}

// askProvisioner tells the provisioner of the class, by annotations that every
// provisioner looks for, that a volume is wanted.
func (c *Controller) askProvisioner(ctx context.Context, claim *corev1.PersistentVolumeClaim, name string) error {
	class, err := c.classes.Get(name)
	if apierrors.IsNotFound(err) {
		c.tell(claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
	}
	if err != nil {
		return fmt.Errorf("read storage class %s: %w", name, err)
	}
	if class.Provisioner == storagehelpers.NotSupportedProvisioner {
		c.tell(claim, corev1.EventTypeNormal, "FailedBinding", fmt.Sprintf("storageclass %q does not support dynamic provisioning", name))
		return c.setClaimPhase(ctx, claim, corev1.ClaimPending, nil)
	}
	if claim.Annotations[storagehelpers.AnnStorageProvisioner] != class.Provisioner {
		changed := claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, storagehelpers.AnnBetaStorageProvisioner, class.Provisioner)
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, storagehelpers.AnnStorageProvisioner, class.Provisioner)
		if err := c.updateClaim(ctx, changed); err != nil {
			return err
		}
	}
	c.sayProvisioning(claim, class)
	return nil
}

// sayProvisioning tells about provisioners that run elsewhere, if they run.
func (c *Controller) sayProvisioning(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) {
	if class.Provisioner == localpath.Provisioner {
		return
	}
	c.tell(claim, corev1.EventTypeNormal, "ExternalProvisioning", fmt.Sprintf("Waiting for a volume to be created either by the external provisioner '%s' "+
		"or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner))
}
