package apps

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"strconv"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func replicaSetStorage(o registry.Options, m map[string]rest.Storage) error {
	s, err := replicaSets().AddTo(m, o)
	if err != nil {
		return err
	}
	m["replicasets/scale"] = s.NewScale(registry.Scalable{
		Replicas: func(obj runtime.Object) *int32 { return obj.(*appsv1.ReplicaSet).Spec.Replicas },
		Observed: func(obj runtime.Object) (int32, string) {
			rs := obj.(*appsv1.ReplicaSet)
			return rs.Status.Replicas, selectorString(rs.Spec.Selector)
		},
	})
	return nil
}

func replicaSets() registry.Kind {
	return registry.Kind{
		Resource:   gvr("replicasets"),
		Singular:   "replicaset",
		Object:     &appsv1.ReplicaSet{},
		List:       &appsv1.ReplicaSetList{},
		HasStatus:  true,
		ShortNames: []string{"rs"},
		Categories: []string{"all"},
		Fields: func(obj runtime.Object) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(obj.(*appsv1.ReplicaSet).Status.Replicas))}
		},
		PrepareForCreate: func(_ context.Context, obj runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.ReplicaSet).Spec.Template.Spec)
		},
		PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.ReplicaSet).Spec.Template.Spec)
		},
		Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
			return validateReplicaSetSpec(&obj.(*appsv1.ReplicaSet).Spec, nil, field.NewPath("spec"))
		},
		ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			rs, before := obj.(*appsv1.ReplicaSet), old.(*appsv1.ReplicaSet)
			errs := validateReplicaSetSpec(&rs.Spec, &before.Spec.Template, field.NewPath("spec"))
			return append(errs, immutable(rs.Spec.Selector, before.Spec.Selector, field.NewPath("spec", "selector"))...)
		},
		ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
			return validateReplicaSetStatus(&obj.(*appsv1.ReplicaSet).Status, field.NewPath("status"))
		},
		Warnings: func(_ context.Context, obj runtime.Object) []string {
			rs := obj.(*appsv1.ReplicaSet)
			return append(nameWarnings(rs.Name), podspec.TemplateWarnings(&rs.Spec.Template, nil, templatePath)...)
		},
		WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
			rs, before := obj.(*appsv1.ReplicaSet), old.(*appsv1.ReplicaSet)
			if rs.Generation == before.Generation {
				return nil
			}
			return podspec.TemplateWarnings(&rs.Spec.Template, &before.Spec.Template, templatePath)
		},
		Columns: []metav1.TableColumnDefinition{
			registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
			registry.IntColumn("Desired", appsv1.ReplicaSetSpec{}.SwaggerDoc()["replicas"]),
			registry.IntColumn("Current", appsv1.ReplicaSetStatus{}.SwaggerDoc()["replicas"]),
			registry.IntColumn("Ready", appsv1.ReplicaSetStatus{}.SwaggerDoc()["readyReplicas"]),
			registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
			registry.WideColumn("Containers", "Names of each container in the template."),
			registry.WideColumn("Images", "Images referenced by each container in the template."),
			registry.WideColumn("Selector", appsv1.ReplicaSetSpec{}.SwaggerDoc()["selector"]),
		},
		Row: func(obj runtime.Object) []any {
			rs := obj.(*appsv1.ReplicaSet)
			names, images := podspec.ContainerCells(rs.Spec.Template.Spec.Containers)
			return []any{
				rs.Name, int64(wanted(rs.Spec.Replicas)), int64(rs.Status.Replicas), int64(rs.Status.ReadyReplicas),
				registry.Age(rs.CreationTimestamp), names, images, metav1.FormatLabelSelector(rs.Spec.Selector),
			}
		},
	}
}

func validateReplicaSetSpec(spec *appsv1.ReplicaSetSpec, old *podTemplate, fld *field.Path) field.ErrorList {
	errs := nonNegative(int64(wanted(spec.Replicas)), fld.Child("replicas"))
	errs = append(errs, nonNegative(int64(spec.MinReadySeconds), fld.Child("minReadySeconds"))...)
	// The API says deployment here for replica sets too.
	errs = append(errs, validateSelector(spec.Selector, "deployment", fld.Child("selector"))...)
	selector, err := metav1.LabelSelectorAsSelector(spec.Selector)
	if err != nil {
		return append(errs, field.Invalid(fld.Child("selector"), spec.Selector, "invalid label selector"))
	}
	return append(errs, validateTemplate(&spec.Template, old, selector, "ReplicaSet", fld.Child("template"))...)
}

func validateReplicaSetStatus(s *appsv1.ReplicaSetStatus, fld *field.Path) field.ErrorList {
	errs := nonNegativeFields(fld, []counter{
		{"replicas", int64(s.Replicas)},
		{"fullyLabeledReplicas", int64(s.FullyLabeledReplicas)},
		{"readyReplicas", int64(s.ReadyReplicas)},
		{"availableReplicas", int64(s.AvailableReplicas)},
		{"observedGeneration", s.ObservedGeneration},
	})
	if s.TerminatingReplicas != nil {
		errs = append(errs, nonNegative(int64(*s.TerminatingReplicas), fld.Child("terminatingReplicas"))...)
	}
	errs = append(errs, atMost("status.replicas", s.Replicas, fld, []counter{
		{"fullyLabeledReplicas", int64(s.FullyLabeledReplicas)}, {"readyReplicas", int64(s.ReadyReplicas)}, {"availableReplicas", int64(s.AvailableReplicas)},
	})...)
	return append(errs, atMost("readyReplicas", s.ReadyReplicas, fld, []counter{{"availableReplicas", int64(s.AvailableReplicas)}})...)
}
