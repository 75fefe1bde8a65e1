package storageapi

import (
	"context"
	"math"

	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
	"github.com/skiff-sh/skiff/cluster/registry/core"
)

// attachmentKind is VolumeAttachments.
var attachmentKind = registry.Kind{
	Resource: gvr("volumeattachments"), Singular: "volumeattachment",
	Object: &storagev1.VolumeAttachment{}, List: &storagev1.VolumeAttachmentList{},
	ClusterScoped: true, HasStatus: true, NoGeneration: true, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateAttachment(obj.(*storagev1.VolumeAttachment))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		a, was := obj.(*storagev1.VolumeAttachment), old.(*storagev1.VolumeAttachment)
		return append(validateAttachment(a), check.Unchanged(field.NewPath("spec"), a.Spec, was.Spec)...)
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateAttachmentStatus(&obj.(*storagev1.VolumeAttachment).Status)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the object"),
		registry.Column("Attacher", "The driver that is to attach"),
		registry.Column("PV", "The volume"),
		registry.Column("Node", "The node"),
		boolColumn("Attached", "Whether it is"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		a := obj.(*storagev1.VolumeAttachment)
		return []any{a.Name, a.Spec.Attacher, ptr.Deref(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName, a.Status.Attached, registry.Age(a.CreationTimestamp)}
	},
}

func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	p := field.NewPath("spec")
	errs := validateDriverName(a.Spec.Attacher, p.Child("attacher"))
	source := p.Child("source")
	const exactlyOne = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
	switch inline, name := a.Spec.Source.InlineVolumeSpec, a.Spec.Source.PersistentVolumeName; {
	case inline == nil && name == nil:
		errs = append(errs, field.Required(source, exactlyOne))
	case inline != nil && name != nil:
		errs = append(errs, field.Forbidden(source, exactlyOne))
	case inline != nil:
		errs = append(errs, core.ValidateInlineVolume(inline, source.Child("inlineVolumeSpec"))...)
	case *name == "":
		errs = append(errs, field.Required(source.Child("persistentVolumeName"), "must specify non empty persistentVolumeName"))
	default:
		errs = append(errs, check.Messages(source.Child("persistentVolumeName"), *name, apivalidation.NameIsDNSSubdomain(*name, false))...)
	}
	errs = append(errs, check.Messages(p.Child("nodeName"), a.Spec.NodeName, apivalidation.NameIsDNSSubdomain(a.Spec.NodeName, false))...)
	return append(errs, validateAttachmentStatus(&a.Status)...)
}

const (
	maxAttachmentMetadata = 256 << 10
	maxErrorMessage       = 1024
)

func validateAttachmentStatus(s *storagev1.VolumeAttachmentStatus) field.ErrorList {
	p := field.NewPath("status")
	var errs field.ErrorList
	size := 0
	for k, v := range s.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxAttachmentMetadata {
		errs = append(errs, field.TooLong(p.Child("attachmentMetadata"), "", maxAttachmentMetadata))
	}
	for name, e := range map[string]*storagev1.VolumeError{"attachError": s.AttachError, "detachError": s.DetachError} {
		if e == nil {
			continue
		}
		if len(e.Message) > maxErrorMessage {
			errs = append(errs, field.TooLong(p.Child(name, "message"), "", maxErrorMessage))
		}
		if e.ErrorCode != nil && *e.ErrorCode < 0 {
			errs = append(errs, field.Invalid(p.Child(name, "errorCode"), *e.ErrorCode, validation.InclusiveRangeError(0, math.MaxInt32)))
		}
	}
	return errs
}
