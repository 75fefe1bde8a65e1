package storageapi

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// The annotations that make a class the default one.
const (
	DefaultAnnotation     = "storageclass.kubernetes.io/is-default-class"
	betaDefaultAnnotation = "storageclass.beta.kubernetes.io/is-default-class"
)

// IsDefault tells whether claims that name no class get this one.
func IsDefault(c *storagev1.StorageClass) bool {
	return c.Annotations[DefaultAnnotation] == "true" || c.Annotations[betaDefaultAnnotation] == "true"
}

// Default gives the default class: of several the youngest, of those equally
// young the first by name; nil without any.
func Default(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, c := range classes {
		if !IsDefault(c) {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) ||
			best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	return best
}

var classKind = registry.Kind{
	Resource: gvr("storageclasses"), Singular: "storageclass",
	Object: &storagev1.StorageClass{}, List: &storagev1.StorageClassList{},
	ClusterScoped: true, ShortNames: []string{"sc"},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateClass(obj.(*storagev1.StorageClass))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		c, was := obj.(*storagev1.StorageClass), old.(*storagev1.StorageClass)
		errs := validateClass(c)
		errs = append(errs, check.Unchanged(field.NewPath("parameters"), c.Parameters, was.Parameters)...)
		errs = append(errs, check.Unchanged(field.NewPath("provisioner"), c.Provisioner, was.Provisioner)...)
		errs = append(errs, check.Unchanged(field.NewPath("reclaimPolicy"), c.ReclaimPolicy, was.ReclaimPolicy)...)
		return append(errs, check.Unchanged(field.NewPath("volumeBindingMode"), c.VolumeBindingMode, was.VolumeBindingMode)...)
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		return classWarnings(obj.(*storagev1.StorageClass))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the class"),
		registry.Column("Provisioner", "Who makes its volumes"),
		registry.Column("ReclaimPolicy", "What becomes of a volume when its claim is deleted"),
		registry.Column("VolumeBindingMode", "When volumes are made and bound"),
		registry.Column("AllowVolumeExpansion", "Whether claims may ask for more"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*storagev1.StorageClass)
		name := c.Name
		if IsDefault(c) {
			name += " (default)"
		}
		return []any{name, c.Provisioner, string(ptr.Deref(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
			string(ptr.Deref(c.VolumeBindingMode, storagev1.VolumeBindingImmediate)), ptr.Deref(c.AllowVolumeExpansion, false),
			registry.Age(c.CreationTimestamp)}
	},
}

func setClassDefaults(c *storagev1.StorageClass) {
	if c.ReclaimPolicy == nil {
		c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimDelete)
	}
	if c.VolumeBindingMode == nil {
		c.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
	}
}

func validateClass(c *storagev1.StorageClass) field.ErrorList {
	errs := validateProvisioner(c.Provisioner, field.NewPath("provisioner"))
	errs = append(errs, validateParameters(c.Parameters, false, field.NewPath("parameters"))...)
	errs = append(errs, check.OptionalOneOf(field.NewPath("reclaimPolicy"), ptr.Deref(c.ReclaimPolicy, ""),
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	errs = append(errs, check.OneOf(field.NewPath("volumeBindingMode"), ptr.Deref(c.VolumeBindingMode, ""),
		storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
	return append(errs, validateTopologies(c.AllowedTopologies, field.NewPath("allowedTopologies"))...)
}

func validateTopologies(terms []corev1.TopologySelectorTerm, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	var seen []map[string]sets.Set[string]
	for i, term := range terms {
		at := p.Index(i).Child("matchLabelExpressions")
		keys := map[string]sets.Set[string]{}
		for j, e := range term.MatchLabelExpressions {
			here := at.Index(j)
			if _, ok := keys[e.Key]; ok {
				errs = append(errs, field.Duplicate(here.Child("key"), e.Key))
			}
			values := sets.New[string]()
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(here.Child("values"), ""))
			}
			for k, v := range e.Values {
				if values.Has(v) {
					errs = append(errs, field.Duplicate(here.Child("values").Index(k), v))
				}
				values.Insert(v)
			}
			errs = append(errs, check.Messages(here.Child("key"), e.Key, validation.IsQualifiedName(e.Key))...)
			keys[e.Key] = values
		}
		if slices.ContainsFunc(seen, func(other map[string]sets.Set[string]) bool { return equality.Semantic.DeepEqual(keys, other) }) {
			errs = append(errs, field.Duplicate(at, ""))
		}
		seen = append(seen, keys)
	}
	return errs
}

// classWarnings tells at once what would otherwise be told in events of claims.
func classWarnings(c *storagev1.StorageClass) []string {
	if c.Provisioner != localpath.Provisioner {
		return nil
	}
	var out []string
	for _, w := range []struct {
		bad  bool
		text string
	}{
		{*c.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer,
			"volumeBindingMode: must be WaitForFirstConsumer: the volume is made on the node of the first pod that uses it"},
		{ptr.Deref(c.AllowVolumeExpansion, false), "allowVolumeExpansion: volumes of this provisioner cannot be expanded"},
		{len(c.Parameters) > 0, "parameters: this provisioner has none"},
		{len(c.MountOptions) > 0, "mountOptions: volumes of this provisioner are folders and cannot have any"},
	} {
		if w.bad {
			out = append(out, fmt.Sprintf("provisioner %s: %s", localpath.Provisioner, w.text))
		}
	}
	return out
}

// attributesKind is VolumeAttributesClasses.
var attributesKind = registry.Kind{
	Resource: gvr("volumeattributesclasses"), Singular: "volumeattributesclass",
	Object: &storagev1.VolumeAttributesClass{}, List: &storagev1.VolumeAttributesClassList{},
	ClusterScoped: true, ShortNames: []string{"vac"},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateAttributes(obj.(*storagev1.VolumeAttributesClass))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		c, was := obj.(*storagev1.VolumeAttributesClass), old.(*storagev1.VolumeAttributesClass)
		var errs field.ErrorList
		for _, f := range []struct {
			name    string
			changed bool
		}{{"driverName", c.DriverName != was.DriverName}, {"parameters", !equality.Semantic.DeepEqual(c.Parameters, was.Parameters)}} {
			if f.changed {
				errs = append(errs, field.Forbidden(field.NewPath(f.name), fmt.Sprintf("updates to %s are forbidden.", f.name)))
			}
		}
		return append(errs, validateAttributes(c)...)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the class"),
		registry.Column("DriverName", "The CSI driver that knows its parameters"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*storagev1.VolumeAttributesClass)
		return []any{c.Name, c.DriverName, registry.Age(c.CreationTimestamp)}
	},
}

func validateAttributes(c *storagev1.VolumeAttributesClass) field.ErrorList {
	return append(validateProvisioner(c.DriverName, field.NewPath("driverName")),
		validateParameters(c.Parameters, true, field.NewPath("parameters"))...)
}

func lowerSubdomain(name string) []string { return apivalidation.NameIsDNSSubdomain(name, false) }
