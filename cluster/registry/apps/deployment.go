package apps

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func deploymentStorage(o registry.Options, m map[string]rest.Storage) error {
	s, err := deployments().AddTo(m, o)
	if err != nil {
		return err
	}
	m["deployments/scale"] = s.NewScale(registry.Scalable{
		Replicas: func(obj runtime.Object) *int32 { return obj.(*appsv1.Deployment).Spec.Replicas },
		Observed: func(obj runtime.Object) (int32, string) {
			d := obj.(*appsv1.Deployment)
			return d.Status.Replicas, selectorString(d.Spec.Selector)
		},
	})
	return nil
}

func deployments() registry.Kind {
	return registry.Kind{
		Resource:   gvr("deployments"),
		Singular:   "deployment",
		Object:     &appsv1.Deployment{},
		List:       &appsv1.DeploymentList{},
		HasStatus:  true,
		ShortNames: []string{"deploy"},
		Categories: []string{"all"},
		PrepareForCreate: func(_ context.Context, obj runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.Deployment).Spec.Template.Spec)
		},
		PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
			d, before := obj.(*appsv1.Deployment), old.(*appsv1.Deployment)
			podspec.MirrorServiceAccount(&d.Spec.Template.Spec)
			// Annotations are copied to the replica sets, so they count as a
			// change that the controller has to observe.
			if !registry.SemanticEqual(d.Annotations, before.Annotations) {
				d.Generation = before.Generation + 1
			}
		},
		PrepareForStatusUpdate: func(_ context.Context, obj, old runtime.Object) {
			obj.(*appsv1.Deployment).Labels = old.(*appsv1.Deployment).Labels
		},
		Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
			return validateDeploymentSpec(&obj.(*appsv1.Deployment).Spec, nil, field.NewPath("spec"))
		},
		ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			d, before := obj.(*appsv1.Deployment), old.(*appsv1.Deployment)
			errs := validateDeploymentSpec(&d.Spec, &before.Spec, field.NewPath("spec"))
			return append(errs, immutable(d.Spec.Selector, before.Spec.Selector, field.NewPath("spec", "selector"))...)
		},
		ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			return validateDeploymentStatus(&obj.(*appsv1.Deployment).Status, &old.(*appsv1.Deployment).Status, field.NewPath("status"))
		},
		Warnings: func(_ context.Context, obj runtime.Object) []string {
			d := obj.(*appsv1.Deployment)
			return append(nameWarnings(d.Name), podspec.TemplateWarnings(&d.Spec.Template, nil, templatePath)...)
		},
		WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
			d, before := obj.(*appsv1.Deployment), old.(*appsv1.Deployment)
			if d.Generation == before.Generation {
				return nil
			}
			return podspec.TemplateWarnings(&d.Spec.Template, &before.Spec.Template, templatePath)
		},
		Columns: []metav1.TableColumnDefinition{
			registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
			registry.Column("Ready", "Number of the pod with ready state"),
			registry.Column("Up-to-date", appsv1.DeploymentStatus{}.SwaggerDoc()["updatedReplicas"]),
			registry.Column("Available", appsv1.DeploymentStatus{}.SwaggerDoc()["availableReplicas"]),
			registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
			registry.WideColumn("Containers", "Names of each container in the template."),
			registry.WideColumn("Images", "Images referenced by each container in the template."),
			registry.WideColumn("Selector", appsv1.DeploymentSpec{}.SwaggerDoc()["selector"]),
		},
		Row: func(obj runtime.Object) []any {
			d := obj.(*appsv1.Deployment)
			names, images := podspec.ContainerCells(d.Spec.Template.Spec.Containers)
			return []any{
				d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, wanted(d.Spec.Replicas)), int64(d.Status.UpdatedReplicas),
				int64(d.Status.AvailableReplicas), registry.Age(d.CreationTimestamp), names, images, selectorString(d.Spec.Selector),
			}
		},
	}
}

func validateDeploymentSpec(spec, old *appsv1.DeploymentSpec, fld *field.Path) field.ErrorList {
	errs := nonNegative(int64(wanted(spec.Replicas)), fld.Child("replicas"))
	errs = append(errs, validateSelector(spec.Selector, "deployment", fld.Child("selector"))...)
	if selector, err := metav1.LabelSelectorAsSelector(spec.Selector); err != nil {
		errs = append(errs, field.Invalid(fld.Child("selector"), spec.Selector, "invalid label selector"))
	} else {
		errs = append(errs, validateTemplate(&spec.Template, templateOf(old), selector, "ReplicaSet", fld.Child("template"))...)
	}
	errs = append(errs, validateDeploymentStrategy(&spec.Strategy, fld.Child("strategy"))...)
	errs = append(errs, nonNegative(int64(spec.MinReadySeconds), fld.Child("minReadySeconds"))...)
	if spec.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*spec.RevisionHistoryLimit), fld.Child("revisionHistoryLimit"))...)
	}
	if p := spec.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, nonNegative(int64(*p), fld.Child("progressDeadlineSeconds"))...)
		if *p <= spec.MinReadySeconds {
			errs = append(errs, field.Invalid(fld.Child("progressDeadlineSeconds"), *p, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func validateDeploymentStrategy(s *appsv1.DeploymentStrategy, fld *field.Path) field.ErrorList {
	rolling := fld.Child("rollingUpdate")
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rolling, "may not be specified when strategy `type` is '"+string(s.Type)+"'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
	default:
		return field.ErrorList{field.NotSupported(fld.Child("type"), s.Type,
			[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
	}
	if s.RollingUpdate == nil {
		return field.ErrorList{field.Required(rolling, "this should be defaulted and never be nil")}
	}
	unavailable, surge := orZero(s.RollingUpdate.MaxUnavailable), orZero(s.RollingUpdate.MaxSurge)
	errs := intOrPercent(unavailable, rolling.Child("maxUnavailable"))
	errs = append(errs, intOrPercent(surge, rolling.Child("maxSurge"))...)
	if isZero(unavailable) && isZero(surge) {
		errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0"))
	}
	return append(errs, atMostAll(unavailable, rolling.Child("maxUnavailable"))...)
}

func validateDeploymentStatus(s, old *appsv1.DeploymentStatus, fld *field.Path) field.ErrorList {
	errs := nonNegativeFields(fld, []counter{
		{"observedGeneration", s.ObservedGeneration},
		{"replicas", int64(s.Replicas)},
		{"updatedReplicas", int64(s.UpdatedReplicas)},
		{"readyReplicas", int64(s.ReadyReplicas)},
		{"availableReplicas", int64(s.AvailableReplicas)},
		{"unavailableReplicas", int64(s.UnavailableReplicas)},
	})
	if s.TerminatingReplicas != nil {
		errs = append(errs, nonNegative(int64(*s.TerminatingReplicas), fld.Child("terminatingReplicas"))...)
	}
	if s.CollisionCount != nil {
		errs = append(errs, nonNegative(int64(*s.CollisionCount), fld.Child("collisionCount"))...)
	}
	errs = append(errs, atMost("status.replicas", s.Replicas, fld, []counter{
		{"updatedReplicas", int64(s.UpdatedReplicas)}, {"readyReplicas", int64(s.ReadyReplicas)}, {"availableReplicas", int64(s.AvailableReplicas)},
	})...)
	errs = append(errs, atMost("readyReplicas", s.ReadyReplicas, fld, []counter{{"availableReplicas", int64(s.AvailableReplicas)}})...)
	return append(errs, notDecremented(s.CollisionCount, old.CollisionCount, fld.Child("collisionCount"))...)
}

func templateOf(spec *appsv1.DeploymentSpec) *podTemplate {
	if spec == nil {
		return nil
	}
	return &spec.Template
}
