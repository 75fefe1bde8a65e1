package storageapi

import (
	"context"
	"strings"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

var driverKind = registry.Kind{
	Resource: gvr("csidrivers"), Singular: "csidriver",
	Object: &storagev1.CSIDriver{}, List: &storagev1.CSIDriverList{},
	ClusterScoped: true, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateDriver(&obj.(*storagev1.CSIDriver).Spec)
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		s, was := &obj.(*storagev1.CSIDriver).Spec, &old.(*storagev1.CSIDriver).Spec
		errs := validateDriver(s)
		errs = append(errs, check.Unchanged(field.NewPath("spec", "attachedRequired"), s.AttachRequired, was.AttachRequired)...)
		return append(errs, check.Unchanged(field.NewPath("spec", "volumeLifecycleModes"), s.VolumeLifecycleModes, was.VolumeLifecycleModes)...)
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		if s := &obj.(*storagev1.CSIDriver).Spec; len(s.TokenRequests) > 0 && s.ServiceAccountTokenInSecrets == nil {
			return []string{"spec.tokenRequests: spec.serviceAccountTokenInSecrets: true is recommended where the driver knows it"}
		}
		return nil
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the driver"),
		boolColumn("AttachRequired", "Whether volumes have to be attached"),
		boolColumn("PodInfoOnMount", "Whether the driver is told the pod"),
		boolColumn("StorageCapacity", "Whether it tells how much room there is"),
		registry.Column("TokenRequests", "Audiences of tokens that it gets"),
		boolColumn("RequiresRepublish", "Whether it is called again and again"),
		registry.Column("Modes", "Persistent, Ephemeral"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		d := obj.(*storagev1.CSIDriver)
		var modes, audiences []string
		for _, m := range d.Spec.VolumeLifecycleModes {
			modes = append(modes, string(m))
		}
		for _, r := range d.Spec.TokenRequests {
			audiences = append(audiences, r.Audience)
		}
		tokens := strings.Join(audiences, ",")
		if d.Spec.TokenRequests == nil {
			tokens = "<unset>"
		}
		return []any{d.Name, ptr.Deref(d.Spec.AttachRequired, true), ptr.Deref(d.Spec.PodInfoOnMount, false), ptr.Deref(d.Spec.StorageCapacity, false),
			tokens, ptr.Deref(d.Spec.RequiresRepublish, false), strings.Join(modes, ","), registry.Age(d.CreationTimestamp)}
	},
}

func setDriverDefaults(s *storagev1.CSIDriverSpec) {
	set(&s.AttachRequired, true)
	set(&s.PodInfoOnMount, false)
	set(&s.StorageCapacity, false)
	set(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	set(&s.RequiresRepublish, false)
	set(&s.SELinuxMount, false)
	if len(s.VolumeLifecycleModes) == 0 {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
}

func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

const minTokenLife = 10 * time.Minute

func validateDriver(s *storagev1.CSIDriverSpec) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		value *bool
	}{{"attachedRequired", s.AttachRequired}, {"podInfoOnMount", s.PodInfoOnMount}, {"storageCapacity", s.StorageCapacity}, {"seLinuxMount", s.SELinuxMount}} {
		if f.value == nil {
			errs = append(errs, field.Required(p.Child(f.name), ""))
		}
	}
	if f := s.FSGroupPolicy; f != nil {
		errs = append(errs, check.OneOf(p.Child("fsGroupPolicy"), *f, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy)...)
	}
	audiences := sets.New[string]()
	for i, r := range s.TokenRequests {
		at := p.Child("tokenRequests").Index(i)
		if audiences.Has(r.Audience) {
			errs = append(errs, field.Duplicate(at.Child("audience"), r.Audience))
			continue
		}
		audiences.Insert(r.Audience)
		switch n := ptr.Deref(r.ExpirationSeconds, int64(minTokenLife.Seconds())); {
		case n < int64(minTokenLife.Seconds()):
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), n, "may not specify a duration less than 10 minutes"))
		case n > 1<<32:
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), n, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	for _, m := range s.VolumeLifecycleModes {
		errs = append(errs, check.OneOf(p.Child("volumeLifecycleModes"), m, storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)...)
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < 10 {
		errs = append(errs, field.Invalid(p.Child("nodeAllocatableUpdatePeriodSeconds"), *n, "must be greater than or equal to 10 seconds"))
	}
	if s.ServiceAccountTokenInSecrets != nil && len(s.TokenRequests) == 0 {
		errs = append(errs, field.Invalid(p.Child("serviceAccountTokenInSecrets"), *s.ServiceAccountTokenInSecrets, "serviceAccountTokenInSecrets is set but no tokenRequests are specified"))
	}
	if s.PreventPodSchedulingIfMissing != nil {
		errs = append(errs, field.Forbidden(p.Child("preventPodSchedulingIfMissing"), "not supported by skiff"))
	}
	return errs
}

// nodeKind is CSINodes.
var nodeKind = registry.Kind{
	Resource: gvr("csinodes"), Singular: "csinode",
	Object: &storagev1.CSINode{}, List: &storagev1.CSINodeList{},
	ClusterScoped: true, NoGeneration: true, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateDrivers(obj.(*storagev1.CSINode).Spec.Drivers)
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		n, was := obj.(*storagev1.CSINode), old.(*storagev1.CSINode)
		errs := validateDrivers(n.Spec.Drivers)
		for _, before := range was.Spec.Drivers {
			for _, now := range n.Spec.Drivers {
				if now.Name == before.Name {
					now.Allocatable, before.Allocatable = nil, nil
					errs = append(errs, check.Unchanged(field.NewPath("spec", "drivers"), now, before)...)
				}
			}
		}
		return errs
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the node"),
		registry.IntColumn("Drivers", "Number of CSI drivers of the node"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		n := obj.(*storagev1.CSINode)
		return []any{n.Name, int64(len(n.Spec.Drivers)), registry.Age(n.CreationTimestamp)}
	},
}

const maxNodeID = 256

func validateDrivers(drivers []storagev1.CSINodeDriver) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, d := range drivers {
		p := field.NewPath("spec", "drivers").Index(i)
		errs = append(errs, validateDriverName(d.Name, p.Child("name"))...)
		if d.NodeID == "" {
			errs = append(errs, field.Required(p.Child("nodeID"), ""))
		}
		errs = append(errs, tooLong(p.Child("nodeID"), d.NodeID, maxNodeID)...)
		if d.Allocatable != nil && d.Allocatable.Count != nil {
			errs = append(errs, check.NonNegative(p.Child("allocatable", "count"), int64(*d.Allocatable.Count))...)
		}
		if names.Has(d.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), d.Name))
		}
		names.Insert(d.Name)
		keys := sets.New[string]()
		for _, key := range d.TopologyKeys {
			if key == "" {
				errs = append(errs, field.Required(p, ""))
			}
			if keys.Has(key) {
				errs = append(errs, field.Duplicate(p, key))
			}
			keys.Insert(key)
			errs = append(errs, check.Messages(p, key, validation.IsQualifiedName(key))...)
		}
	}
	return errs
}

// capacityKind is CSIStorageCapacities.
var capacityKind = registry.Kind{
	Resource: gvr("csistoragecapacities"), Singular: "csistoragecapacity",
	Object: &storagev1.CSIStorageCapacity{}, List: &storagev1.CSIStorageCapacityList{},
	NoGeneration: true, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateCapacity(obj.(*storagev1.CSIStorageCapacity))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		c, was := obj.(*storagev1.CSIStorageCapacity), old.(*storagev1.CSIStorageCapacity)
		errs := validateCapacity(c)
		errs = append(errs, check.Unchanged(field.NewPath("nodeTopology"), c.NodeTopology, was.NodeTopology)...)
		return append(errs, check.Unchanged(field.NewPath("storageClassName"), c.StorageClassName, was.StorageClassName)...)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the object"),
		registry.Column("StorageClassName", "The class that has this much room"),
		registry.Column("Capacity", "How much"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*storagev1.CSIStorageCapacity)
		room := "<unset>"
		if c.Capacity != nil {
			room = c.Capacity.String()
		}
		return []any{c.Name, c.StorageClassName, room}
	},
}

func validateCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := metav1validation.ValidateLabelSelector(c.NodeTopology, metav1validation.LabelSelectorValidationOptions{}, field.NewPath("nodeTopology"))
	errs = append(errs, check.Messages(field.NewPath("storageClassName"), c.StorageClassName, apivalidation.NameIsDNSSubdomain(c.StorageClassName, false))...)
	if c.Capacity != nil {
		errs = append(errs, check.NonNegativeQuantity(field.NewPath("capacity"), *c.Capacity)...)
	}
	return errs
}
