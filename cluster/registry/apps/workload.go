package apps

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

type podTemplate = corev1.PodTemplateSpec

var templatePath = field.NewPath("spec", "template")

// validateSelector checks a selector that has to be there and to select.
func validateSelector(s *metav1.LabelSelector, kind string, fld *field.Path) field.ErrorList {
	if s == nil {
		return field.ErrorList{field.Required(fld, "")}
	}
	errs := metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, fld)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(fld, s, "empty selector is invalid for "+kind))
	}
	return errs
}

// validateTemplate checks a template whose pods run for ever and are found by
// selector. An empty selector is complained about elsewhere.
func validateTemplate(t, old *podTemplate, selector labels.Selector, kind string, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(fld.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, podspec.ValidateTemplate(t, old, fld, podspec.Options{})...)
	return append(errs, runsForever(t, kind, fld)...)
}

func runsForever(t *podTemplate, kind string, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(fld.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(fld.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

func immutable(a, b any, fld *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(a, b, fld)
}

func nonNegative(v int64, fld *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(v, fld)
}

type counter struct {
	name  string
	value int64
}

func nonNegativeFields(fld *field.Path, counters []counter) field.ErrorList {
	var errs field.ErrorList
	for _, c := range counters {
		errs = append(errs, nonNegative(c.value, fld.Child(c.name))...)
	}
	return errs
}

// atMost complains about each counter above limit, the value of the field name.
func atMost(name string, limit int32, fld *field.Path, counters []counter) field.ErrorList {
	var errs field.ErrorList
	for _, c := range counters {
		if c.value > int64(limit) {
			errs = append(errs, field.Invalid(fld.Child(c.name), int32(c.value), "cannot be greater than "+name))
		}
	}
	return errs
}

func notDecremented(now, before *int32, fld *field.Path) field.ErrorList {
	if before == nil || wanted(now) >= *before && now != nil {
		return nil
	}
	return field.ErrorList{field.Invalid(fld, wanted(now), "cannot be decremented")}
}

// wanted reads an optional count; what is absent is 0.
func wanted(p *int32) int32 {
	if p == nil {
		return 0
	}
	return *p
}

func orZero(v *intstr.IntOrString) intstr.IntOrString {
	if v == nil {
		return intstr.IntOrString{}
	}
	return *v
}

func intOrPercent(v intstr.IntOrString, fld *field.Path) field.ErrorList {
	switch v.Type {
	case intstr.String:
		var errs field.ErrorList
		for _, msg := range validation.IsValidPercent(v.StrVal) {
			errs = append(errs, field.Invalid(fld, v, msg))
		}
		return errs
	case intstr.Int:
		return nonNegative(int64(v.IntValue()), fld)
	default:
		return field.ErrorList{field.Invalid(fld, v, "must be an integer or percentage (e.g '5%%')")}
	}
}

// percent reads "N%"; ok is false for anything else.
func percent(v intstr.IntOrString) (n int, ok bool) {
	if v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	_, err := fmt.Sscanf(v.StrVal, "%d%%", &n)
	return n, err == nil
}

// isZero tells whether v is 0 or 0%; a value that is neither number nor percent
// counts as 0, having its own error.
func isZero(v intstr.IntOrString) bool {
	if n, ok := percent(v); ok {
		return n == 0
	}
	return v.IntValue() == 0
}

func atMostAll(v intstr.IntOrString, fld *field.Path) field.ErrorList {
	if n, ok := percent(v); ok && n > 100 {
		return field.ErrorList{field.Invalid(fld, v, "must not be greater than 100%")}
	}
	return nil
}

// selectorString gives a selector as in a query; one that selects nothing gives
// the empty string.
func selectorString(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return selector.String()
}

func nameWarnings(name string) []string {
	if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
		return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)}
	}
	return nil
}
