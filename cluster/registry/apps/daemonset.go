package apps

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func daemonSetStorage(o registry.Options, m map[string]rest.Storage) error {
	_, err := daemonSets().AddTo(m, o)
	return err
}

func daemonSets() registry.Kind {
	doc := appsv1.DaemonSetStatus{}.SwaggerDoc()
	return registry.Kind{
		Resource:   gvr("daemonsets"),
		Singular:   "daemonset",
		Object:     &appsv1.DaemonSet{},
		List:       &appsv1.DaemonSetList{},
		HasStatus:  true,
		ShortNames: []string{"ds"},
		Categories: []string{"all"},
		PrepareForCreate: func(_ context.Context, obj runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.DaemonSet).Spec.Template.Spec)
		},
		PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.DaemonSet).Spec.Template.Spec)
		},
		Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
			return validateDaemonSetSpec(&obj.(*appsv1.DaemonSet).Spec, nil, field.NewPath("spec"))
		},
		ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			ds, before := obj.(*appsv1.DaemonSet), old.(*appsv1.DaemonSet)
			errs := validateDaemonSetSpec(&ds.Spec, &before.Spec.Template, field.NewPath("spec"))
			return append(errs, immutable(ds.Spec.Selector, before.Spec.Selector, field.NewPath("spec", "selector"))...)
		},
		ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			return validateDaemonSetStatus(&obj.(*appsv1.DaemonSet).Status, &old.(*appsv1.DaemonSet).Status, field.NewPath("status"))
		},
		Warnings: func(_ context.Context, obj runtime.Object) []string {
			return podspec.TemplateWarnings(&obj.(*appsv1.DaemonSet).Spec.Template, nil, templatePath)
		},
		WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
			return podspec.TemplateWarnings(&obj.(*appsv1.DaemonSet).Spec.Template, &old.(*appsv1.DaemonSet).Spec.Template, templatePath)
		},
		Columns: []metav1.TableColumnDefinition{
			registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
			registry.IntColumn("Desired", doc["desiredNumberScheduled"]),
			registry.IntColumn("Current", doc["currentNumberScheduled"]),
			registry.IntColumn("Ready", doc["numberReady"]),
			registry.IntColumn("Up-to-date", doc["updatedNumberScheduled"]),
			registry.IntColumn("Available", doc["numberAvailable"]),
			registry.Column("Node Selector", "NodeSelector is a selector which must be true for the pod to fit on a node."),
			registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
			registry.WideColumn("Containers", "Names of each container in the template."),
			registry.WideColumn("Images", "Images referenced by each container in the template."),
			registry.WideColumn("Selector", appsv1.DaemonSetSpec{}.SwaggerDoc()["selector"]),
		},
		Row: func(obj runtime.Object) []any {
			ds := obj.(*appsv1.DaemonSet)
			names, images := podspec.ContainerCells(ds.Spec.Template.Spec.Containers)
			return []any{
				ds.Name, int64(ds.Status.DesiredNumberScheduled), int64(ds.Status.CurrentNumberScheduled), int64(ds.Status.NumberReady),
				int64(ds.Status.UpdatedNumberScheduled), int64(ds.Status.NumberAvailable), labels.FormatLabels(ds.Spec.Template.Spec.NodeSelector),
				registry.Age(ds.CreationTimestamp), names, images, metav1.FormatLabelSelector(ds.Spec.Selector),
			}
		},
	}
}

func validateDaemonSetSpec(spec *appsv1.DaemonSetSpec, old *podTemplate, fld *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabelSelector(spec.Selector, metavalidation.LabelSelectorValidationOptions{}, fld.Child("selector"))
	template := fld.Child("template")
	selector, err := metav1.LabelSelectorAsSelector(spec.Selector)
	if err == nil && !selector.Matches(labels.Set(spec.Template.Labels)) {
		errs = append(errs, field.Invalid(template.Child("metadata", "labels"), spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	if s := spec.Selector; s != nil && len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(fld.Child("selector"), s, "empty selector is invalid for daemonset"))
	}
	errs = append(errs, podspec.ValidateTemplate(&spec.Template, old, template, podspec.Options{})...)
	errs = append(errs, runsForever(&spec.Template, "DaemonSet", template)...)
	errs = append(errs, nonNegative(int64(spec.MinReadySeconds), fld.Child("minReadySeconds"))...)
	errs = append(errs, validateDaemonSetStrategy(&spec.UpdateStrategy, fld.Child("updateStrategy"))...)
	if spec.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*spec.RevisionHistoryLimit), fld.Child("revisionHistoryLimit"))...)
	}
	return errs
}

func validateDaemonSetStrategy(s *appsv1.DaemonSetUpdateStrategy, fld *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
	default:
		return field.ErrorList{field.NotSupported(fld, *s,
			[]appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType})}
	}
	rolling := fld.Child("rollingUpdate")
	if s.RollingUpdate == nil {
		return field.ErrorList{field.Required(rolling, "")}
	}
	unavailable, surge := orZero(s.RollingUpdate.MaxUnavailable), orZero(s.RollingUpdate.MaxSurge)
	errs := intOrPercent(unavailable, rolling.Child("maxUnavailable"))
	errs = append(errs, intOrPercent(surge, rolling.Child("maxSurge"))...)
	switch {
	case !isZero(unavailable) && !isZero(surge):
		errs = append(errs, field.Invalid(rolling.Child("maxSurge"), s.RollingUpdate.MaxSurge, "may not be set when maxUnavailable is non-zero"))
	case isZero(unavailable) && isZero(surge):
		errs = append(errs, field.Required(rolling.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
	}
	errs = append(errs, atMostAll(unavailable, rolling.Child("maxUnavailable"))...)
	return append(errs, atMostAll(surge, rolling.Child("maxSurge"))...)
}

func validateDaemonSetStatus(s, old *appsv1.DaemonSetStatus, fld *field.Path) field.ErrorList {
	errs := nonNegativeFields(fld, []counter{
		{"currentNumberScheduled", int64(s.CurrentNumberScheduled)},
		{"numberMisscheduled", int64(s.NumberMisscheduled)},
		{"desiredNumberScheduled", int64(s.DesiredNumberScheduled)},
		{"numberReady", int64(s.NumberReady)},
		{"observedGeneration", s.ObservedGeneration},
		{"updatedNumberScheduled", int64(s.UpdatedNumberScheduled)},
		{"numberAvailable", int64(s.NumberAvailable)},
		{"numberUnavailable", int64(s.NumberUnavailable)},
	})
	if s.CollisionCount != nil {
		errs = append(errs, nonNegative(int64(*s.CollisionCount), fld.Child("collisionCount"))...)
	}
	return append(errs, notDecremented(s.CollisionCount, old.CollisionCount, fld.Child("collisionCount"))...)
}
