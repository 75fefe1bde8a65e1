package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

// The finalizers that keep volumes and claims while they are in use.
const (
	claimProtection  = "kubernetes.io/pvc-protection"
	volumeProtection = "kubernetes.io/pv-protection"
)

var (
	claimsResource  = schema.GroupResource{Resource: "persistentvolumeclaims"}
	volumesResource = schema.GroupResource{Resource: "persistentvolumes"}
)

// storage gives new claims the default class, puts claims and volumes under
// protection, and refuses claims that ask for more than they got where nothing
// can expand the volume.
type storage struct {
	*admission.Handler
	objects Objects
}

// Admit implements admission.MutationInterface.
func (s *storage) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetSubresource() != "" || a.GetOperation() != admission.Create {
		return nil
	}
	switch a.GetResource().GroupResource() {
	case volumesResource:
		v, err := as[*corev1.PersistentVolume](a.GetObject())
		if err != nil {
			return err
		}
		protect(&v.Finalizers, volumeProtection)
	case claimsResource:
		claim, err := as[*corev1.PersistentVolumeClaim](a.GetObject())
		if err != nil {
			return err
		}
		protect(&claim.Finalizers, claimProtection)
		return s.giveClass(ctx, claim)
	}
	return nil
}

func protect(finalizers *[]string, name string) {
	if !slices.Contains(*finalizers, name) {
		*finalizers = append(*finalizers, name)
	}
}

func (s *storage) giveClass(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if storagehelpers.PersistentVolumeClaimHasClass(claim) {
		return nil
	}
	list, err := s.objects.StorageClasses(ctx)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read storage classes: %w", err))
	}
	classes := make([]*storagev1.StorageClass, len(list))
	for i := range list {
		classes[i] = &list[i]
	}
	if class := storageapi.Default(classes); class != nil {
		claim.Spec.StorageClassName = ptr.To(class.Name)
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (s *storage) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != claimsResource || a.GetSubresource() != "" || a.GetOperation() != admission.Update {
		return nil
	}
	claim, err := as[*corev1.PersistentVolumeClaim](a.GetObject())
	if err != nil {
		return err
	}
	old, err := as[*corev1.PersistentVolumeClaim](a.GetOldObject())
	if err != nil {
		return err
	}
	size, before := claim.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(before) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		//lint:ignore ST1005 these words are the API's
		return admission.NewForbidden(a, errors.New("Only bound persistent volume claims can be expanded"))
	}
	errNoExpansion := errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	if name == "" || name != storagehelpers.GetPersistentVolumeClaimClass(old) {
		return admission.NewForbidden(a, errNoExpansion)
	}
	class, err := s.objects.StorageClass(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		return admission.NewForbidden(a, errNoExpansion)
	case err != nil:
		return apierrors.NewInternalError(fmt.Errorf("read storage class %s: %w", name, err))
	case !ptr.Deref(class.AllowVolumeExpansion, false):
		return admission.NewForbidden(a, errNoExpansion)
	case class.Provisioner == localpath.Provisioner:
		return admission.NewForbidden(a, fmt.Errorf("volumes of provisioner %s cannot be expanded, whatever allowVolumeExpansion of storage class %q says: "+
			"their size limits nothing, it is only compared with the disk of the node", localpath.Provisioner, name))
	}
	return nil
}
