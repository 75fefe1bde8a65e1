package podspec

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	requiredTerms  = "requiredDuringSchedulingIgnoredDuringExecution"
	preferredTerms = "preferredDuringSchedulingIgnoredDuringExecution"
	weightRange    = "must be in the range 1-100"
)

func validateAffinity(a *corev1.Affinity, fld *field.Path) field.ErrorList {
	if a == nil {
		return nil
	}
	var errs field.ErrorList
	if n := a.NodeAffinity; n != nil {
		p := fld.Child("nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			errs = append(errs, ValidateNodeSelector(r, p.Child(requiredTerms))...)
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			t, p := &n.PreferredDuringSchedulingIgnoredDuringExecution[i], p.Child(preferredTerms).Index(i)
			errs = append(errs, weight(t.Weight, p.Child("weight"))...)
			errs = append(errs, nodeSelectorTerm(&t.Preference, p.Child("preference"))...)
		}
	}
	if a := a.PodAffinity; a != nil {
		errs = append(errs, podTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, fld.Child("podAffinity"))...)
	}
	if a := a.PodAntiAffinity; a != nil {
		errs = append(errs, podTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, fld.Child("podAntiAffinity"))...)
	}
	return errs
}

func weight(w int32, fld *field.Path) field.ErrorList {
	if w <= 0 || w > 100 {
		return field.ErrorList{field.Invalid(fld, w, weightRange)}
	}
	return nil
}

// ValidateNodeSelector checks a required node selector; volumes use it too.
func ValidateNodeSelector(s *corev1.NodeSelector, fld *field.Path) field.ErrorList {
	terms := fld.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		return field.ErrorList{field.Required(terms, "must have at least one node selector term")}
	}
	var errs field.ErrorList
	for i := range s.NodeSelectorTerms {
		errs = append(errs, nodeSelectorTerm(&s.NodeSelectorTerms[i], terms.Index(i))...)
	}
	return errs
}

func nodeSelectorTerm(t *corev1.NodeSelectorTerm, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range t.MatchExpressions {
		errs = append(errs, nodeLabelRequirement(&t.MatchExpressions[i], fld.Child("matchExpressions").Index(i))...)
	}
	for i := range t.MatchFields {
		errs = append(errs, nodeFieldRequirement(&t.MatchFields[i], fld.Child("matchFields").Index(i))...)
	}
	return errs
}

func nodeLabelRequirement(r *corev1.NodeSelectorRequirement, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	values := fld.Child("values")
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			errs = append(errs, field.Required(values, "must be specified when `operator` is 'In' or 'NotIn'"))
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			errs = append(errs, field.Forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			errs = append(errs, field.Required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'"))
		}
	default:
		errs = append(errs, field.Invalid(fld.Child("operator"), r.Operator, "not a valid selector operator"))
	}
	errs = append(errs, metavalidation.ValidateLabelName(r.Key, fld.Child("key"))...)
	for i, value := range r.Values {
		errs = append(errs, eachMessage(validation.IsValidLabelValue(value), value, values.Index(i))...)
	}
	return errs
}

func nodeFieldRequirement(r *corev1.NodeSelectorRequirement, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) != 1 {
			errs = append(errs, field.Required(fld.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"))
		}
	default:
		errs = append(errs, field.Invalid(fld.Child("operator"), r.Operator, "not a valid selector operator"))
	}
	if r.Key != metav1.ObjectNameField {
		return append(errs, field.Invalid(fld.Child("key"), r.Key, "not a valid field selector key"))
	}
	for i, value := range r.Values {
		errs = append(errs, eachMessage(apivalidation.NameIsDNSSubdomain(value, false), value, fld.Child("values").Index(i))...)
	}
	return errs
}

func podTerms(need []corev1.PodAffinityTerm, like []corev1.WeightedPodAffinityTerm, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range need {
		errs = append(errs, podTerm(&need[i], fld.Child(requiredTerms).Index(i))...)
	}
	for i := range like {
		p := fld.Child(preferredTerms).Index(i)
		errs = append(errs, weight(like[i].Weight, p.Child("weight"))...)
		errs = append(errs, podTerm(&like[i].PodAffinityTerm, p.Child("podAffinityTerm"))...)
	}
	return errs
}

func podTerm(t *corev1.PodAffinityTerm, fld *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabelSelector(t.LabelSelector, metavalidation.LabelSelectorValidationOptions{}, fld.Child("labelSelector"))
	errs = append(errs, metavalidation.ValidateLabelSelector(t.NamespaceSelector, metavalidation.LabelSelectorValidationOptions{}, fld.Child("namespaceSelector"))...)
	for _, ns := range t.Namespaces {
		errs = append(errs, eachMessage(apivalidation.ValidateNamespaceName(ns, false), ns, fld.Child("namespace"))...)
	}
	if len(t.MatchLabelKeys) > 0 {
		errs = append(errs, labelKeys(t.MatchLabelKeys, t.LabelSelector, fld.Child("matchLabelKeys"))...)
	}
	if len(t.MismatchLabelKeys) > 0 {
		errs = append(errs, labelKeys(t.MismatchLabelKeys, t.LabelSelector, fld.Child("mismatchLabelKeys"))...)
	}
	for i, key := range t.MatchLabelKeys {
		if slices.Contains(t.MismatchLabelKeys, key) {
			errs = append(errs, field.Invalid(fld.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys"))
		}
	}
	return append(errs, topologyKey(t.TopologyKey, fld.Child("topologyKey"))...)
}

func topologyKey(key string, fld *field.Path) field.ErrorList {
	if key == "" {
		return field.ErrorList{field.Required(fld, "can not be empty")}
	}
	return metavalidation.ValidateLabelName(key, fld)
}

// labelKeys checks keys whose values are taken from the pod's own labels.
func labelKeys(keys []string, selector *metav1.LabelSelector, fld *field.Path) field.ErrorList {
	if selector == nil {
		return field.ErrorList{field.Forbidden(fld, "must not be specified when labelSelector is not set")}
	}
	var errs field.ErrorList
	for i, key := range keys {
		errs = append(errs, metavalidation.ValidateLabelName(key, fld.Index(i))...)
	}
	return errs
}

func validateSpread(constraints []corev1.TopologySpreadConstraint, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i := range constraints {
		c, p := &constraints[i], fld.Index(i)
		if c.MaxSkew <= 0 {
			errs = append(errs, field.Invalid(p.Child("maxSkew"), c.MaxSkew, positive))
		}
		errs = append(errs, topologyKey(c.TopologyKey, p.Child("topologyKey"))...)
		actions := []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}
		if !slices.Contains(actions, c.WhenUnsatisfiable) {
			errs = append(errs, field.NotSupported(p.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, actions))
		}
		pair := fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)
		if seen.Has(pair) {
			errs = append(errs, field.Duplicate(p.Child("{topologyKey, whenUnsatisfiable}"), pair))
		}
		seen.Insert(pair)
		if n := c.MinDomains; n != nil {
			if *n <= 0 {
				errs = append(errs, field.Invalid(p.Child("minDomains"), *n, positive))
			} else if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				errs = append(errs, field.Invalid(p.Child("minDomains"), *n,
					fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable)))
			}
		}
		for _, policy := range []struct {
			name  string
			value *corev1.NodeInclusionPolicy
		}{{"nodeAffinityPolicy", c.NodeAffinityPolicy}, {"nodeTaintsPolicy", c.NodeTaintsPolicy}} {
			if policy.value != nil {
				errs = append(errs, oneOf(*policy.value, p.Child(policy.name), corev1.NodeInclusionPolicyIgnore, corev1.NodeInclusionPolicyHonor)...)
			}
		}
		errs = append(errs, spreadKeys(c, p.Child("matchLabelKeys"))...)
		errs = append(errs, metavalidation.ValidateLabelSelector(c.LabelSelector, metavalidation.LabelSelectorValidationOptions{}, p.Child("labelSelector"))...)
	}
	return errs
}

func spreadKeys(c *corev1.TopologySpreadConstraint, fld *field.Path) field.ErrorList {
	if len(c.MatchLabelKeys) == 0 {
		return nil
	}
	errs := labelKeys(c.MatchLabelKeys, c.LabelSelector, fld)
	if c.LabelSelector == nil {
		return errs
	}
	for i, key := range c.MatchLabelKeys {
		_, selected := c.LabelSelector.MatchLabels[key]
		selected = selected || slices.ContainsFunc(c.LabelSelector.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return r.Key == key })
		if selected {
			errs = append(errs, field.Invalid(fld.Index(i), key, "exists in both matchLabelKeys and labelSelector"))
		}
	}
	return errs
}

// ValidateTolerations checks the tolerations of a pod.
func ValidateTolerations(tolerations []corev1.Toleration, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range tolerations {
		t, p := &tolerations[i], fld.Index(i)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, p.Child("key"))...)
		}
		if t.Key == "" && t.Operator != corev1.TolerationOpExists {
			errs = append(errs, field.Invalid(p.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			errs = append(errs, field.Invalid(p.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			errs = append(errs, eachMessage(validation.IsValidLabelValue(t.Value), t.Value, p.Child("operator"))...)
		case corev1.TolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(p.Child("operator"), t, "value must be empty when `operator` is 'Exists'"))
			}
		default:
			errs = append(errs, field.NotSupported(p.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
		}
		if t.Effect != "" {
			errs = append(errs, oneOf(t.Effect, p.Child("effect"), corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		}
	}
	return errs
}
