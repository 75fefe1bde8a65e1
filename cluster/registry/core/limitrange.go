package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

var limitRangeKind = registry.Kind{
	Resource: gvr("limitranges"), Singular: "limitrange",
	Object: &corev1.LimitRange{}, List: &corev1.LimitRangeList{},
	ShortNames: []string{"limits"}, NoGeneration: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateLimits(obj.(*corev1.LimitRange).Spec.Limits)
	},
	ValidateUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateLimits(obj.(*corev1.LimitRange).Spec.Limits)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the LimitRange"),
		registry.Column("Created At", "When it was created"),
	},
	Row: func(obj runtime.Object) []any {
		l := obj.(*corev1.LimitRange)
		return []any{l.Name, l.CreationTimestamp.UTC().Format(time.RFC3339)}
	},
}

// setLimitRangeDefaults derives what a container gets that asks for nothing:
// the limit from the maximum, the request from the limit or the minimum.
func setLimitRangeDefaults(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		if item.Default == nil {
			item.Default = corev1.ResourceList{}
		}
		if item.DefaultRequest == nil {
			item.DefaultRequest = corev1.ResourceList{}
		}
		fill(item.Default, item.Max)
		fill(item.DefaultRequest, item.Default)
		fill(item.DefaultRequest, item.Min)
	}
}

func fill(dst, src corev1.ResourceList) {
	for k, q := range src {
		if _, ok := dst[k]; !ok {
			dst[k] = q.DeepCopy()
		}
	}
}

func validateLimits(limits []corev1.LimitRangeItem) field.ErrorList {
	var errs field.ErrorList
	seen := map[corev1.LimitType]bool{}
	for i := range limits {
		item, p := &limits[i], field.NewPath("spec", "limits").Index(i)
		errs = append(errs, validateLimitType(item.Type, p.Child("type"))...)
		if seen[item.Type] {
			errs = append(errs, field.Duplicate(p.Child("type"), item.Type))
		}
		seen[item.Type] = true
		errs = append(errs, validateLimit(item, p)...)
	}
	return errs
}

func validateLimitType(t corev1.LimitType, p *field.Path) field.ErrorList {
	if msgs := validation.IsQualifiedName(string(t)); len(msgs) > 0 {
		return check.Messages(p, t, msgs)
	}
	standard := []corev1.LimitType{corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim}
	if !strings.Contains(string(t), "/") && !slices.Contains(standard, t) {
		return field.ErrorList{field.Invalid(p, t, "must be a standard limit type or fully qualified")}
	}
	return nil
}

func validateLimit(item *corev1.LimitRangeItem, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	lists := map[string]corev1.ResourceList{"max": item.Max, "min": item.Min, "default": item.Default,
		"defaultRequest": item.DefaultRequest, "maxLimitRequestRatio": item.MaxLimitRequestRatio}
	isPod := item.Type == corev1.LimitTypePod
	for _, child := range []string{"max", "min", "default", "defaultRequest", "maxLimitRequestRatio"} {
		if isPod && strings.HasPrefix(child, "default") {
			if len(lists[child]) > 0 {
				errs = append(errs, field.Forbidden(p.Child(child), "may not be specified when `type` is 'Pod'"))
			}
			delete(lists, child)
			continue
		}
		for k := range lists[child] {
			errs = append(errs, validateLimitResource(item.Type, string(k), p.Child(child).Key(string(k)))...)
			names[string(k)] = true
		}
	}
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, hasMin := item.Min[corev1.ResourceStorage]
		_, hasMax := item.Max[corev1.ResourceStorage]
		if !hasMin && !hasMax {
			errs = append(errs, field.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		get := func(list string) *resource.Quantity {
			if q, ok := lists[list][corev1.ResourceName(name)]; ok {
				return &q
			}
			return nil
		}
		low, high, def, req, ratio := get("min"), get("max"), get("default"), get("defaultRequest"), get("maxLimitRequestRatio")
		above := func(a, b *resource.Quantity, at string, value *resource.Quantity, format string) {
			if a != nil && b != nil && a.Cmp(*b) > 0 {
				errs = append(errs, field.Invalid(p.Child(at).Key(name), *value, fmt.Sprintf(format, a, b)))
			}
		}
		above(low, high, "min", low, "min value %s is greater than max value %s")
		above(low, req, "defaultRequest", req, "min value %s is greater than default request value %s")
		above(req, high, "defaultRequest", req, "default request value %s is greater than max value %s")
		above(req, def, "defaultRequest", req, "default request value %s is greater than default limit value %s")
		above(low, def, "default", low, "min value %s is greater than default value %s")
		above(def, high, "default", high, "default value %s is greater than max value %s")
		if ratio == nil {
			continue
		}
		at := p.Child("maxLimitRequestRatio").Key(name)
		if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
			errs = append(errs, field.Invalid(at, *ratio, fmt.Sprintf("ratio %s is less than 1", ratio)))
		}
		if low != nil && high != nil && !low.IsZero() {
			if most := high.AsApproximateFloat64() / low.AsApproximateFloat64(); ratio.AsApproximateFloat64() > most {
				errs = append(errs, field.Invalid(at, *ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio, most)))
			}
		}
	}
	return errs
}

// validateLimitResource checks the name of a limited resource.
func validateLimitResource(t corev1.LimitType, name string, p *field.Path) field.ErrorList {
	if msgs := validation.IsQualifiedName(name); len(msgs) > 0 {
		return check.Messages(p, name, msgs)
	}
	if (t == corev1.LimitTypePod || t == corev1.LimitTypeContainer) && !strings.Contains(name, "/") {
		switch corev1.ResourceName(name) {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		default:
			if !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) {
				return field.ErrorList{field.Invalid(p, name, "must be a standard resource for containers")}
			}
		}
	}
	return nil
}
