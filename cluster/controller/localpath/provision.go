package localpath

import (
	"context"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/core"
)

// syncClaim makes the volume of a claim, on the node that the scheduler chose.
func (c *Controller) syncClaim(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read claim %s: %w", key, err)
	}
	if !wanted(claim) || c.volume(volumeName(claim)) != nil {
		return nil
	}
	class, err := c.classes.Get(storagehelpers.GetPersistentVolumeClaimClass(claim))
	if apierrors.IsNotFound(err) {
		return nil // the binder tells
	}
	if err != nil {
		return fmt.Errorf("storage class of claim %s: %w", key, err)
	}
	failed := func(why string) {
		c.cfg.Events.Eventf(claim, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %s", class.Name, why)
	}
	if why := localpath.Refuse(class, claim); why != "" {
		failed(why)
		c.loop.AddAfter(claimKey+key, core.EventTTL/2) // or the event would expire
		return nil
	}
	chosen := claim.Annotations[storagehelpers.AnnSelectedNode]
	if chosen == "" {
		return nil // the scheduler is asked for another node
	}
	node, err := c.nodes.Get(chosen)
	if apierrors.IsNotFound(err) {
		failed(fmt.Sprintf("node %q does not exist", chosen))
		return c.reschedule(ctx, claim)
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", chosen, err)
	}
	if why := localpath.Unfit(node, claim); why != "" {
		failed(fmt.Sprintf("node %q: %s", chosen, why))
		return c.reschedule(ctx, claim)
	}
	v := volumeFor(claim, ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete), class.Name, node)
	_, err = c.cfg.Client.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		failed(err.Error())
		return fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	c.cfg.Events.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", v.Name)
	return nil
}

// reschedule asks the scheduler for another node.
func (c *Controller) reschedule(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	next := claim.DeepCopy()
	delete(next.Annotations, storagehelpers.AnnSelectedNode)
	if _, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("ask for another node for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

func volumeName(claim *corev1.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }

// volumeFor is the volume of a claim on a node. It has what was asked for, no
// more: nothing limits what is written to the folder.
func volumeFor(claim *corev1.PersistentVolumeClaim, policy corev1.PersistentVolumeReclaimPolicy, class string, node *corev1.Node) *corev1.PersistentVolume {
	root, _ := localpath.Offer(node)
	name := volumeName(claim)
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{storagehelpers.AnnDynamicallyProvisioned: localpath.Provisioner, localpath.NodeAnnotation: node.Name},
			Finalizers:  []string{localpath.Finalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			StorageClassName:              class,
			VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(root, name)}},
			ClaimRef: &corev1.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{localpath.Hostname(node)},
				}},
			}}}},
		},
	}
}
