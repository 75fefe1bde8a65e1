package apps

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func statefulSetStorage(o registry.Options, m map[string]rest.Storage) error {
	s, err := statefulSets().AddTo(m, o)
	if err != nil {
		return err
	}
	m["statefulsets/scale"] = s.NewScale(registry.Scalable{
		Replicas: func(obj runtime.Object) *int32 { return obj.(*appsv1.StatefulSet).Spec.Replicas },
		Observed: func(obj runtime.Object) (int32, string) {
			s := obj.(*appsv1.StatefulSet)
			return s.Status.Replicas, selectorString(s.Spec.Selector)
		},
	})
	return nil
}

func statefulSets() registry.Kind {
	return registry.Kind{
		Resource:   gvr("statefulsets"),
		Singular:   "statefulset",
		Object:     &appsv1.StatefulSet{},
		List:       &appsv1.StatefulSetList{},
		HasStatus:  true,
		ShortNames: []string{"sts"},
		Categories: []string{"all"},
		// A pod's hostname is made from the name, so it has to be a label.
		ValidateName: apivalidation.NameIsDNSLabel,
		PrepareForCreate: func(_ context.Context, obj runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.StatefulSet).Spec.Template.Spec)
		},
		PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
			podspec.MirrorServiceAccount(&obj.(*appsv1.StatefulSet).Spec.Template.Spec)
		},
		Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
			return validateStatefulSetSpec(&obj.(*appsv1.StatefulSet).Spec, nil, field.NewPath("spec"))
		},
		ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			s, before := obj.(*appsv1.StatefulSet), old.(*appsv1.StatefulSet)
			errs := validateStatefulSetSpec(&s.Spec, &before.Spec, field.NewPath("spec"))
			return append(errs, validateStatefulSetChange(&s.Spec, &before.Spec, field.NewPath("spec"))...)
		},
		ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			return validateStatefulSetStatus(&obj.(*appsv1.StatefulSet).Status, &old.(*appsv1.StatefulSet).Status, field.NewPath("status"))
		},
		Warnings: func(_ context.Context, obj runtime.Object) []string {
			s := obj.(*appsv1.StatefulSet)
			return append(podspec.TemplateWarnings(&s.Spec.Template, nil, templatePath), historyWarnings(&s.Spec)...)
		},
		WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
			s, before := obj.(*appsv1.StatefulSet), old.(*appsv1.StatefulSet)
			if s.Generation == before.Generation {
				return nil
			}
			return append(podspec.TemplateWarnings(&s.Spec.Template, &before.Spec.Template, templatePath), historyWarnings(&s.Spec)...)
		},
		Columns: []metav1.TableColumnDefinition{
			registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
			registry.Column("Ready", "Number of the pod with ready state"),
			registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
			registry.WideColumn("Containers", "Names of each container in the template."),
			registry.WideColumn("Images", "Images referenced by each container in the template."),
		},
		Row: func(obj runtime.Object) []any {
			s := obj.(*appsv1.StatefulSet)
			names, images := podspec.ContainerCells(s.Spec.Template.Spec.Containers)
			return []any{
				s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, wanted(s.Spec.Replicas)), registry.Age(s.CreationTimestamp), names, images,
			}
		},
	}
}

func historyWarnings(spec *appsv1.StatefulSetSpec) []string {
	if wanted(spec.RevisionHistoryLimit) < 0 {
		return []string{"spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"}
	}
	return nil
}

func validateStatefulSetSpec(spec, old *appsv1.StatefulSetSpec, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch p := spec.PodManagementPolicy; p {
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	case "":
		errs = append(errs, field.Required(fld.Child("podManagementPolicy"), ""))
	default:
		errs = append(errs, field.Invalid(fld.Child("podManagementPolicy"), p,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)))
	}
	errs = append(errs, validateStatefulSetStrategy(&spec.UpdateStrategy, fld.Child("updateStrategy"))...)
	errs = append(errs, validateRetention(spec.PersistentVolumeClaimRetentionPolicy, fld.Child("persistentVolumeClaimRetentionPolicy"))...)
	errs = append(errs, nonNegative(int64(wanted(spec.Replicas)), fld.Child("replicas"))...)
	errs = append(errs, nonNegative(int64(spec.MinReadySeconds), fld.Child("minReadySeconds"))...)
	if spec.Ordinals != nil {
		errs = append(errs, nonNegative(int64(spec.Ordinals.Start), fld.Child("ordinals.start"))...)
	}
	if changed := old == nil || old.ServiceName != spec.ServiceName; changed && spec.ServiceName != "" {
		for _, msg := range validation.IsDNS1123Label(spec.ServiceName) {
			errs = append(errs, field.Invalid(fld.Child("serviceName"), spec.ServiceName, msg))
		}
	}
	errs = append(errs, validateSelector(spec.Selector, "statefulset", fld.Child("selector"))...)
	template := fld.Child("template")
	if selector, err := metav1.LabelSelectorAsSelector(spec.Selector); err != nil {
		errs = append(errs, field.Invalid(fld.Child("selector"), spec.Selector, ""))
	} else if !selector.Empty() && !selector.Matches(labels.Set(spec.Template.Labels)) {
		errs = append(errs, field.Invalid(template.Child("metadata", "labels"), spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	o := podspec.Options{}
	for i := range spec.VolumeClaimTemplates {
		o.ClaimedVolumes = append(o.ClaimedVolumes, &spec.VolumeClaimTemplates[i])
	}
	var oldTemplate *podTemplate
	if old != nil {
		oldTemplate = &old.Template
	}
	errs = append(errs, podspec.ValidateTemplate(&spec.Template, oldTemplate, template, o)...)
	return append(errs, runsForever(&spec.Template, "StatefulSet", template)...)
}

func validateStatefulSetStrategy(s *appsv1.StatefulSetUpdateStrategy, fld *field.Path) field.ErrorList {
	rolling := fld.Child("rollingUpdate")
	switch s.Type {
	case "":
		return field.ErrorList{field.Required(fld, "")}
	case appsv1.OnDeleteStatefulSetStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Invalid(rolling, s.RollingUpdate, fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType))}
		}
		return nil
	case appsv1.RollingUpdateStatefulSetStrategyType:
	default:
		return field.ErrorList{field.Invalid(fld, *s, fmt.Sprintf("must be '%s' or '%s'",
			appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType))}
	}
	if s.RollingUpdate == nil {
		return nil
	}
	errs := nonNegative(int64(wanted(s.RollingUpdate.Partition)), rolling.Child("partition"))
	if v := s.RollingUpdate.MaxUnavailable; v != nil {
		p := rolling.Child("maxUnavailable")
		errs = append(errs, intOrPercent(*v, p)...)
		if isZero(*v) {
			errs = append(errs, field.Invalid(p, *v, "cannot be 0"))
		}
		errs = append(errs, atMostAll(*v, p)...)
	}
	return errs
}

func validateRetention(p *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy, fld *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	known := []appsv1.PersistentVolumeClaimRetentionPolicyType{
		appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
	}
	var errs field.ErrorList
	check := func(v appsv1.PersistentVolumeClaimRetentionPolicyType, fld *field.Path) {
		if v != known[0] && v != known[1] {
			errs = append(errs, field.NotSupported(fld, v, known))
		}
	}
	check(p.WhenDeleted, fld.Child("whenDeleted"))
	check(p.WhenScaled, fld.Child("whenScaled"))
	return errs
}

// validateStatefulSetChange lets only the fields change that the controller can
// act on.
func validateStatefulSetChange(spec, old *appsv1.StatefulSetSpec, fld *field.Path) field.ErrorList {
	allowed := old.DeepCopy()
	allowed.Replicas = spec.Replicas
	allowed.Ordinals = spec.Ordinals
	allowed.Template = spec.Template
	allowed.UpdateStrategy = spec.UpdateStrategy
	allowed.RevisionHistoryLimit = spec.RevisionHistoryLimit
	allowed.PersistentVolumeClaimRetentionPolicy = spec.PersistentVolumeClaimRetentionPolicy
	allowed.MinReadySeconds = spec.MinReadySeconds
	if registry.SemanticEqual(allowed, spec) {
		return nil
	}
	return field.ErrorList{field.Forbidden(fld, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "+
		"'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")}
}

func validateStatefulSetStatus(s, old *appsv1.StatefulSetStatus, fld *field.Path) field.ErrorList {
	errs := nonNegativeFields(fld, []counter{
		{"replicas", int64(s.Replicas)},
		{"readyReplicas", int64(s.ReadyReplicas)},
		{"currentReplicas", int64(s.CurrentReplicas)},
		{"updatedReplicas", int64(s.UpdatedReplicas)},
		{"availableReplicas", int64(s.AvailableReplicas)},
		{"observedGeneration", s.ObservedGeneration},
	})
	if s.CollisionCount != nil {
		errs = append(errs, nonNegative(int64(*s.CollisionCount), fld.Child("collisionCount"))...)
	}
	errs = append(errs, atMost("status.replicas", s.Replicas, fld, []counter{
		{"readyReplicas", int64(s.ReadyReplicas)}, {"currentReplicas", int64(s.CurrentReplicas)},
		{"updatedReplicas", int64(s.UpdatedReplicas)}, {"availableReplicas", int64(s.AvailableReplicas)},
	})...)
	errs = append(errs, atMost("status.readyReplicas", s.ReadyReplicas, fld, []counter{{"availableReplicas", int64(s.AvailableReplicas)}})...)
	return append(errs, notDecremented(s.CollisionCount, old.CollisionCount, fld.Child("collisionCount"))...)
}
