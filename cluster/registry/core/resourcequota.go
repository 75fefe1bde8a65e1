package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

var resourceQuotaKind = registry.Kind{
	Resource: gvr("resourcequotas"), Singular: "resourcequota",
	Object: &corev1.ResourceQuota{}, List: &corev1.ResourceQuotaList{},
	HasStatus: true, ShortNames: []string{"quota"}, NoGeneration: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateQuota(obj.(*corev1.ResourceQuota))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		q, was := obj.(*corev1.ResourceQuota), old.(*corev1.ResourceQuota)
		errs := validateQuota(q)
		now, before := slices.Clone(q.Spec.Scopes), slices.Clone(was.Spec.Scopes)
		slices.Sort(now)
		slices.Sort(before)
		if !slices.Equal(slices.Compact(now), slices.Compact(before)) {
			errs = append(errs, field.Invalid(field.NewPath("spec").Child("scopes"), q.Spec.Scopes, check.Immutable))
		}
		return errs
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		q := obj.(*corev1.ResourceQuota)
		p := field.NewPath("status")
		return append(validateQuotaList(q.Status.Hard, p.Child("hard")), validateQuotaList(q.Status.Used, p.Child("used"))...)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the quota"),
		registry.Column("Request", "Used and allowed requests and objects"),
		registry.Column("Limit", "Used and allowed limits"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		q := obj.(*corev1.ResourceQuota)
		var requests, limits []string
		for _, name := range slices.Sorted(maps.Keys(q.Status.Hard)) {
			used, hard := q.Status.Used[name], q.Status.Hard[name]
			cell := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
			if strings.HasPrefix(string(name), "limits") {
				limits = append(limits, cell)
			} else {
				requests = append(requests, cell)
			}
		}
		return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), registry.Age(q.CreationTimestamp)}
	},
}

// quotaResources are the unqualified names a quota may limit.
var quotaResources = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	corev1.ResourceRequestsStorage, corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
	corev1.ResourceLimitsEphemeralStorage, corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices,
	corev1.ResourceReplicationControllers, corev1.ResourceSecrets, corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps,
	corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
}

func validateQuotaList(list corev1.ResourceList, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, q := range list {
		n, p := string(name), path.Key(string(name))
		if msgs := validation.IsQualifiedName(n); len(msgs) > 0 {
			errs = append(errs, check.Messages(p, n, msgs)...)
		} else if !strings.Contains(n, "/") && !slices.Contains(quotaResources, name) &&
			!strings.HasPrefix(n, corev1.ResourceHugePagesPrefix) && !strings.HasPrefix(n, corev1.ResourceRequestsHugePagesPrefix) {
			errs = append(errs, field.Invalid(p, n, "must be a standard resource for quota"))
		}
		errs = append(errs, validateQuantity(n, q, p)...)
	}
	return errs
}

var quotaScopes = []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating,
	corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass,
	corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass}

func validateQuota(q *corev1.ResourceQuota) field.ErrorList {
	errs := validateQuotaList(q.Spec.Hard, field.NewPath("spec", "hard"))
	errs = append(errs, validateScopes(q)...)
	return append(errs, validateScopeSelector(q)...)
}

func validateScopes(q *corev1.ResourceQuota) field.ErrorList {
	p := field.NewPath("spec", "scopes")
	var errs field.ErrorList
	for _, s := range q.Spec.Scopes {
		if !slices.Contains(quotaScopes, s) {
			errs = append(errs, field.Invalid(p, q.Spec.Scopes, "unsupported scope"))
		}
		for name := range q.Spec.Hard {
			if !scopeCovers(s, name) {
				errs = append(errs, field.Invalid(p, q.Spec.Scopes, "unsupported scope applied to resource"))
			}
		}
	}
	return append(errs, conflictingScopes(q.Spec.Scopes, p, q.Spec.Scopes)...)
}

func conflictingScopes(scopes []corev1.ResourceQuotaScope, p *field.Path, value any) field.ErrorList {
	both := func(a, b corev1.ResourceQuotaScope) bool {
		return slices.Contains(scopes, a) && slices.Contains(scopes, b)
	}
	if both(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort) ||
		both(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating) {
		return field.ErrorList{field.Invalid(p, value, "conflicting scopes")}
	}
	return nil
}

// scopeCovers says whether a quota on the resource can be narrowed by scope.
func scopeCovers(s corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch s {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		n := string(name)
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage || strings.Contains(n, ".storageclass.storage.k8s.io/")
	}
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceRequestsCPU,
		corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
		corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceHugePagesPrefix)
}

func validateScopeSelector(q *corev1.ResourceQuota) field.ErrorList {
	if q.Spec.ScopeSelector == nil {
		return nil
	}
	p := field.NewPath("spec", "scopeSelector", "matchExpressions")
	var errs field.ErrorList
	var scopes []corev1.ResourceQuotaScope
	for i, r := range q.Spec.ScopeSelector.MatchExpressions {
		at := p.Index(i)
		scopes = append(scopes, r.ScopeName)
		if !slices.Contains(quotaScopes, r.ScopeName) {
			errs = append(errs, field.Invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		for name := range q.Spec.Hard {
			if !scopeCovers(r.ScopeName, name) {
				errs = append(errs, field.Invalid(p, q.Spec.ScopeSelector, "unsupported scope applied to resource"))
			}
		}
		switch r.ScopeName {
		case corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeVolumeAttributesClass:
		default:
			if r.Operator != corev1.ScopeSelectorOpExists {
				errs = append(errs, field.Invalid(at.Child("operator"), r.Operator,
					"must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
			}
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) != 0 {
				errs = append(errs, field.Invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator"))
		}
	}
	return append(errs, conflictingScopes(scopes, p, q.Spec.ScopeSelector)...)
}
