package core

import (
	"context"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

// setReplicationControllerDefaults takes labels and selector from the template
// where they are left open.
func setReplicationControllerDefaults(rc *corev1.ReplicationController) {
	if rc.Spec.Replicas == nil {
		one := int32(1)
		rc.Spec.Replicas = &one
	}
	t := rc.Spec.Template
	if t == nil {
		return
	}
	if len(t.Labels) > 0 {
		if len(rc.Spec.Selector) == 0 {
			rc.Spec.Selector = maps.Clone(t.Labels)
		}
		if len(rc.Labels) == 0 {
			rc.Labels = maps.Clone(t.Labels)
		}
	}
	podspec.SetTemplateDefaults(t)
}

func replicationControllerStorage(o registry.Options, m map[string]rest.Storage) error {
	s, err := replicationControllerKind.AddTo(m, o)
	if err != nil {
		return err
	}
	m["replicationcontrollers/scale"] = s.NewScale(registry.Scalable{
		Replicas: func(obj runtime.Object) *int32 { return obj.(*corev1.ReplicationController).Spec.Replicas },
		Observed: func(obj runtime.Object) (int32, string) {
			rc := obj.(*corev1.ReplicationController)
			return rc.Status.Replicas, labels.Set(rc.Spec.Selector).AsSelector().String()
		},
	})
	return nil
}

var replicationControllerKind = registry.Kind{
	Resource:   gvr("replicationcontrollers"),
	Singular:   "replicationcontroller",
	Object:     &corev1.ReplicationController{},
	List:       &corev1.ReplicationControllerList{},
	HasStatus:  true,
	ShortNames: []string{"rc"},
	Categories: []string{"all"},
	Fields: func(obj runtime.Object) fields.Set {
		return fields.Set{"status.replicas": strconv.Itoa(int(obj.(*corev1.ReplicationController).Status.Replicas))}
	},
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		mirrorTemplateAccount(obj.(*corev1.ReplicationController).Spec.Template)
	},
	PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
		mirrorTemplateAccount(obj.(*corev1.ReplicationController).Spec.Template)
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateReplicationControllerSpec(&obj.(*corev1.ReplicationController).Spec, nil, field.NewPath("spec"))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateReplicationControllerSpec(&obj.(*corev1.ReplicationController).Spec, old.(*corev1.ReplicationController).Spec.Template, field.NewPath("spec"))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateReplicationControllerStatus(&obj.(*corev1.ReplicationController).Status, field.NewPath("status"))
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		rc := obj.(*corev1.ReplicationController)
		if rc.Spec.Template == nil {
			return nil
		}
		return podspec.TemplateWarnings(rc.Spec.Template, nil, field.NewPath("spec", "template"))
	},
	WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
		rc := obj.(*corev1.ReplicationController)
		if rc.Spec.Template == nil {
			return nil
		}
		return podspec.TemplateWarnings(rc.Spec.Template, old.(*corev1.ReplicationController).Spec.Template, field.NewPath("spec", "template"))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
		registry.IntColumn("Desired", corev1.ReplicationControllerSpec{}.SwaggerDoc()["replicas"]),
		registry.IntColumn("Current", corev1.ReplicationControllerStatus{}.SwaggerDoc()["replicas"]),
		registry.IntColumn("Ready", corev1.ReplicationControllerStatus{}.SwaggerDoc()["readyReplicas"]),
		registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
		registry.WideColumn("Containers", "Names of each container in the template."),
		registry.WideColumn("Images", "Images referenced by each container in the template."),
		registry.WideColumn("Selector", corev1.ReplicationControllerSpec{}.SwaggerDoc()["selector"]),
	},
	Row: func(obj runtime.Object) []any {
		rc := obj.(*corev1.ReplicationController)
		var names, images string
		if rc.Spec.Template != nil {
			names, images = podspec.ContainerCells(rc.Spec.Template.Spec.Containers)
		}
		var desired int64
		if rc.Spec.Replicas != nil {
			desired = int64(*rc.Spec.Replicas)
		}
		return []any{
			rc.Name, desired, int64(rc.Status.Replicas), int64(rc.Status.ReadyReplicas), registry.Age(rc.CreationTimestamp),
			names, images, labels.FormatLabels(rc.Spec.Selector),
		}
	},
}

func mirrorTemplateAccount(t *corev1.PodTemplateSpec) {
	if t != nil {
		podspec.MirrorServiceAccount(&t.Spec)
	}
}

func validateReplicationControllerSpec(spec *corev1.ReplicationControllerSpec, old *corev1.PodTemplateSpec, fld *field.Path) field.ErrorList {
	errs := apivalidation.ValidateNonnegativeField(int64(spec.MinReadySeconds), fld.Child("minReadySeconds"))
	if len(spec.Selector) == 0 {
		errs = append(errs, field.Required(fld.Child("selector"), ""))
	}
	if spec.Replicas == nil {
		errs = append(errs, field.Required(fld.Child("replicas"), ""))
	} else {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*spec.Replicas), fld.Child("replicas"))...)
	}
	t, p := spec.Template, fld.Child("template")
	if t == nil {
		return append(errs, field.Required(p, ""))
	}
	selector := labels.Set(spec.Selector).AsSelectorPreValidated()
	if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(p.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, podspec.ValidateTemplate(t, old, p, podspec.Options{})...)
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(p.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicationController is not Supported"))
	}
	return errs
}

func validateReplicationControllerStatus(s *corev1.ReplicationControllerStatus, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		value int32
	}{{"replicas", s.Replicas}, {"fullyLabeledReplicas", s.FullyLabeledReplicas}, {"readyReplicas", s.ReadyReplicas}, {"availableReplicas", s.AvailableReplicas}} {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(f.value), fld.Child(f.name))...)
		if f.value > s.Replicas {
			errs = append(errs, field.Invalid(fld.Child(f.name), f.value, "cannot be greater than status.replicas"))
		}
	}
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(fld.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas"))
	}
	return append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, fld.Child("observedGeneration"))...)
}
