// Package policy serves the policy group: PodDisruptionBudgets.
package policy

import (
	"context"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// Config is what the group needs beyond registry.Options.
type Config struct{}

// AddDefaults registers the defaulting functions of the group's kinds: budgets
// have none.
func AddDefaults(*runtime.Scheme) error { return nil }

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	if _, err := budgetKind.AddTo(m, o); err != nil {
		return nil, err
	}
	return m, nil
}

var budgetKind = registry.Kind{
	Resource: policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"), Singular: "poddisruptionbudget",
	Object: &policyv1.PodDisruptionBudget{}, List: &policyv1.PodDisruptionBudgetList{},
	HasStatus: true, ShortNames: []string{"pdb"}, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateSpec(&obj.(*policyv1.PodDisruptionBudget).Spec)
	},
	ValidateUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateSpec(&obj.(*policyv1.PodDisruptionBudget).Spec)
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateStatus(&obj.(*policyv1.PodDisruptionBudget).Status)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the budget"),
		registry.Column("Min Available", "How many pods must stay"),
		registry.Column("Max Unavailable", "How many pods may be missing"),
		registry.IntColumn("Allowed Disruptions", "How many pods may be evicted now"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		b := obj.(*policyv1.PodDisruptionBudget)
		cell := func(v *intstr.IntOrString) string {
			if v == nil {
				return "N/A"
			}
			return v.String()
		}
		return []any{b.Name, cell(b.Spec.MinAvailable), cell(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), registry.Age(b.CreationTimestamp)}
	},
}

func validateSpec(s *policyv1.PodDisruptionBudgetSpec) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(p, *s, "minAvailable and maxUnavailable cannot be both set"))
	}
	for _, f := range []struct {
		name  string
		value *intstr.IntOrString
	}{{"minAvailable", s.MinAvailable}, {"maxUnavailable", s.MaxUnavailable}} {
		if f.value != nil {
			errs = append(errs, validateShare(*f.value, p.Child(f.name))...)
		}
	}
	errs = append(errs, metav1validation.ValidateLabelSelector(s.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	if u := s.UnhealthyPodEvictionPolicy; u != nil {
		errs = append(errs, check.OptionalOneOf(p.Child("unhealthyPodEvictionPolicy"), *u, policyv1.IfHealthyBudget, policyv1.AlwaysAllow)...)
	}
	return errs
}

// validateShare accepts a number of pods or a percentage of them.
func validateShare(v intstr.IntOrString, p *field.Path) field.ErrorList {
	if v.Type == intstr.Int {
		return check.NonNegative(p, int64(v.IntValue()))
	}
	if msgs := validation.IsValidPercent(v.StrVal); len(msgs) > 0 {
		return check.Messages(p, v, msgs)
	}
	if n, err := intstr.GetScaledValueFromIntOrPercent(&v, 100, false); err == nil && n > 100 {
		return field.ErrorList{field.Invalid(p, v, "must not be greater than 100%")}
	}
	return nil
}

func validateStatus(s *policyv1.PodDisruptionBudgetStatus) field.ErrorList {
	p := field.NewPath("status")
	errs := metav1validation.ValidateConditions(s.Conditions, p.Child("conditions"))
	for name, n := range map[string]int32{"disruptionsAllowed": s.DisruptionsAllowed, "currentHealthy": s.CurrentHealthy,
		"desiredHealthy": s.DesiredHealthy, "expectedPods": s.ExpectedPods} {
		errs = append(errs, check.NonNegative(p.Child(name), int64(n))...)
	}
	return errs
}
