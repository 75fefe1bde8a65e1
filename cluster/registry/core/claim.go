package core

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

var claimKind = registry.Kind{
	Resource: gvr("persistentvolumeclaims"), Singular: "persistentvolumeclaim",
	Object: &corev1.PersistentVolumeClaim{}, List: &corev1.PersistentVolumeClaimList{},
	HasStatus: true, ShortNames: []string{"pvc"}, NoGeneration: true,
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		c := obj.(*corev1.PersistentVolumeClaim)
		c.Status.Phase = corev1.ClaimPending
		syncDataSource(&c.Spec)
	},
	PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
		syncDataSource(&obj.(*corev1.PersistentVolumeClaim).Spec)
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateClaim(&obj.(*corev1.PersistentVolumeClaim).Spec, field.NewPath("spec"))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateClaimUpdate(obj.(*corev1.PersistentVolumeClaim), old.(*corev1.PersistentVolumeClaim))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		c := obj.(*corev1.PersistentVolumeClaim)
		errs := validateQuantities(c.Status.Capacity, field.NewPath("status", "capacity"))
		return append(errs, validateQuantities(c.Status.AllocatedResources, field.NewPath("status", "allocatedResources"))...)
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		return claimWarnings(obj.(*corev1.PersistentVolumeClaim))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the claim"),
		registry.Column("Status", "Pending, Bound, Lost or Terminating"),
		registry.Column("Volume", "The volume it is bound to"),
		registry.Column("Capacity", "Size of the volume"),
		registry.Column("Access Modes", "How it may be mounted"),
		registry.Column("StorageClass", "Who provides it"),
		registry.Column("VolumeAttributesClass", "Class of changeable attributes"),
		registry.Column("Age", "Time since creation"),
		registry.WideColumn("VolumeMode", "Filesystem or Block"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*corev1.PersistentVolumeClaim)
		phase := string(c.Status.Phase)
		if c.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		capacity, modes := "", ""
		if c.Spec.VolumeName != "" {
			q := c.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = q.String(), accessModes(c.Status.AccessModes)
		}
		class := ptr.Deref(c.Spec.StorageClassName, "")
		if v, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
			class = v
		}
		return []any{c.Name, phase, c.Spec.VolumeName, capacity, modes, class, unset(c.Spec.VolumeAttributesClassName),
			registry.Age(c.CreationTimestamp), volumeMode(c.Spec.VolumeMode)}
	},
}

func setClaimDefaults(c *corev1.PersistentVolumeClaim) {
	if c.Status.Phase == "" {
		c.Status.Phase = corev1.ClaimPending
	}
	podspec.SetClaimDefaults(&c.Spec)
}

// syncDataSource keeps dataSource and its newer form, dataSourceRef, the same
// where both can say it.
func syncDataSource(s *corev1.PersistentVolumeClaimSpec) {
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.DataSource.APIGroup, Kind: s.DataSource.Kind, Name: s.DataSource.Name}
	case s.DataSource == nil && s.DataSourceRef != nil && ptr.Deref(s.DataSourceRef.Namespace, "") == "" && knownSource(s.DataSourceRef):
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: s.DataSourceRef.APIGroup, Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name}
	}
}

func knownSource(r *corev1.TypedObjectReference) bool {
	group := ptr.Deref(r.APIGroup, "")
	return group == "" && r.Kind == "PersistentVolumeClaim" || group == "snapshot.storage.k8s.io" && r.Kind == "VolumeSnapshot"
}

func unset(class *string) string {
	if class == nil || *class == "" {
		return "<unset>"
	}
	return *class
}

func volumeMode(m *corev1.PersistentVolumeMode) string {
	if m == nil {
		return "<unset>"
	}
	return string(*m)
}

// accessModes is the ACCESS MODES cell, such as RWO,ROX.
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	short := map[corev1.PersistentVolumeAccessMode]string{corev1.ReadWriteOnce: "RWO", corev1.ReadOnlyMany: "ROX",
		corev1.ReadWriteMany: "RWX", corev1.ReadWriteOncePod: "RWOP"}
	var out []string
	for _, m := range []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod} {
		if slices.Contains(modes, m) {
			out = append(out, short[m])
		}
	}
	return strings.Join(out, ",")
}

func validateAccessModes(modes []corev1.PersistentVolumeAccessMode, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, m := range modes {
		errs = append(errs, check.OneOf(p, m, corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod)...)
	}
	if len(modes) > 1 && slices.Contains(modes, corev1.ReadWriteOncePod) {
		errs = append(errs, field.Forbidden(p, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

// validateClaim checks the spec, beyond what templates of claims have.
func validateClaim(s *corev1.PersistentVolumeClaimSpec, p *field.Path) field.ErrorList {
	errs := podspec.ValidateClaimSpec(s, p)
	if s.Selector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(s.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	}
	if c := s.VolumeAttributesClassName; c != nil && *c != "" {
		errs = append(errs, check.Messages(p.Child("volumeAttributesClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))...)
	}
	if d := s.DataSource; d != nil {
		errs = append(errs, validateSource(d.APIGroup, d.Kind, d.Name, p.Child("dataSource"))...)
	}
	if d := s.DataSourceRef; d != nil {
		errs = append(errs, validateSource(d.APIGroup, d.Kind, d.Name, p.Child("dataSourceRef"))...)
		if ptr.Deref(d.Namespace, "") != "" {
			errs = append(errs, field.Forbidden(p.Child("dataSourceRef").Child("namespace"), "sources in other namespaces are not supported"))
		}
	}
	if s.DataSource != nil && s.DataSourceRef != nil && !sameSource(s.DataSource, s.DataSourceRef) {
		errs = append(errs, field.Invalid(p, p.Child("dataSource"), "must match dataSourceRef"))
	}
	return errs
}

func validateSource(group *string, kind, name string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	if kind == "" {
		errs = append(errs, field.Required(p.Child("kind"), ""))
	}
	if ptr.Deref(group, "") == "" && kind != "PersistentVolumeClaim" {
		errs = append(errs, field.Invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
	} else if g := ptr.Deref(group, ""); g != "" {
		errs = append(errs, check.Subdomain(p.Child("apiGroup"), g)...)
	}
	return errs
}

func sameSource(a *corev1.TypedLocalObjectReference, b *corev1.TypedObjectReference) bool {
	return ptr.Deref(a.APIGroup, "") == ptr.Deref(b.APIGroup, "") && a.Kind == b.Kind && a.Name == b.Name
}

func validateClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	path := field.NewPath("spec")
	errs := validateClaim(&c.Spec, path)
	now, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = now.VolumeName // it is being bound
	}
	class, beta := now.StorageClassName, old.Annotations[corev1.BetaStorageClassAnnotation]
	_, hadBeta := old.Annotations[corev1.BetaStorageClassAnnotation]
	if was.StorageClassName == nil && class != nil && (!hadBeta || *class == beta) {
		was.StorageClassName = class // assigned later, or moved from the annotation
	}
	if newBeta, has := c.Annotations[corev1.BetaStorageClassAnnotation]; newBeta != beta && (has || old.Spec.StorageClassName != nil || ptr.Deref(class, "") != beta) {
		errs = append(errs, check.Unchanged(field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation), newBeta, beta)...)
	}
	if old.Status.Phase == corev1.ClaimBound {
		was.Resources.Requests = now.Resources.Requests
		was.VolumeAttributesClassName = now.VolumeAttributesClassName
	}
	if !registry.SemanticEqual(now, was) {
		errs = append(errs, field.Forbidden(path, fmt.Sprintf(
			"spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", cmp.Diff(was, now))))
	}
	size, before := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if have := old.Status.Capacity[corev1.ResourceStorage]; size.Cmp(before) < 0 && size.Cmp(have) <= 0 {
		errs = append(errs, field.Forbidden(path.Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	return errs
}
