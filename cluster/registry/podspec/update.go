package podspec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// updatable is what a pod update may change, in the words of the refusal.
const updatable = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`," +
	"`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// ValidatePodUpdate checks that an update changes only what may change in a pod
// that is, or is about to be, on a node.
func ValidatePodUpdate(pod, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	errs := ValidatePod(pod)
	errs = append(errs, annotationsKept(pod, old, field.NewPath("metadata", "annotations"))...)
	more, stop := sameContainers(pod.Spec.Containers, old.Spec.Containers, spec.Child("containers"))
	errs = append(errs, more...)
	if stop {
		return errs
	}
	more, stop = sameContainers(pod.Spec.InitContainers, old.Spec.InitContainers, spec.Child("initContainers"))
	errs = append(errs, more...)
	if stop {
		return errs
	}
	errs = append(errs, validateDeadlineUpdate(pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds, spec.Child("activeDeadlineSeconds"))...)
	errs = append(errs, gatesOnlyRemoved(pod.Spec.SchedulingGates, old.Spec.SchedulingGates, spec.Child("schedulingGates"))...)
	errs = append(errs, tolerationsOnlyAdded(pod.Spec.Tolerations, old.Spec.Tolerations, spec.Child("tolerations"))...)

	// Put back what was allowed to change; what still differs is forbidden.
	rest := pod.Spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	rest.SchedulingGates = old.Spec.SchedulingGates
	rest.Tolerations = old.Spec.Tolerations
	if a, b := rest.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds; a != nil && b != nil && *a == 1 && *b < 0 {
		rest.TerminationGracePeriodSeconds = b
	}
	if len(old.Spec.SchedulingGates) > 0 {
		errs = append(errs, narrowedOnly(&pod.Spec, rest, &old.Spec, spec)...)
	}
	if !apiEqual(rest, &old.Spec) {
		errs = append(errs, field.Forbidden(spec, fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatable, cmp.Diff(old.Spec, *rest))))
	}
	return errs
}

func annotationsKept(pod, old *corev1.Pod, fld *field.Path) field.ErrorList {
	const mirror, appArmor = corev1.MirrorPodAnnotationKey, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix
	var errs field.ErrorList
	for k, before := range old.Annotations {
		if now, ok := pod.Annotations[k]; ok && now == before {
			continue
		}
		switch {
		case strings.HasPrefix(k, appArmor):
			errs = append(errs, field.Forbidden(fld.Key(k), "may not remove or update AppArmor annotations"))
		case k == mirror:
			errs = append(errs, field.Forbidden(fld.Key(k), "may not remove or update mirror pod annotation"))
		}
	}
	for k := range pod.Annotations {
		if _, ok := old.Annotations[k]; ok {
			continue
		}
		switch {
		case strings.HasPrefix(k, appArmor):
			errs = append(errs, field.Forbidden(fld.Key(k), "may not add AppArmor annotations"))
		case k == mirror:
			errs = append(errs, field.Forbidden(fld.Key(k), "may not add mirror pod annotation"))
		}
	}
	return errs
}

// sameContainers tells with stop that the two lists cannot be compared further.
func sameContainers(now, before []corev1.Container, fld *field.Path) (errs field.ErrorList, stop bool) {
	if len(now) != len(before) {
		return field.ErrorList{field.Forbidden(fld, "pod updates may not add or remove containers")}, true
	}
	return nil, false
}

func validateDeadlineUpdate(now, before *int64, fld *field.Path) field.ErrorList {
	switch {
	case now == nil && before != nil:
		return field.ErrorList{field.Invalid(fld, now, "must not update from a positive integer to nil value")}
	case now == nil:
		return nil
	case *now < 0 || *now > math.MaxInt32:
		return field.ErrorList{field.Invalid(fld, *now, validation.InclusiveRangeError(0, math.MaxInt32))}
	case before != nil && *before < *now:
		return field.ErrorList{field.Invalid(fld, *now, "must be less than or equal to previous value")}
	}
	return nil
}

func gatesOnlyRemoved(now, before []corev1.PodSchedulingGate, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, g := range now {
		if !slices.Contains(before, g) {
			errs = append(errs, field.Forbidden(fld.Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
		}
	}
	return errs
}

func tolerationsOnlyAdded(now, before []corev1.Toleration, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, t := range before {
		kept := slices.ContainsFunc(now, func(n corev1.Toleration) bool {
			n.TolerationSeconds = t.TolerationSeconds // the one part that may change
			return apiEqual(n, t)
		})
		if !kept {
			return field.ErrorList{field.Forbidden(fld, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return errs
}

// narrowedOnly lets a pod that is not up for scheduling yet be bound to fewer
// nodes: more node selector labels, more requirements in each required term.
func narrowedOnly(now, rest, old *corev1.PodSpec, spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	if !apiEqual(now.NodeSelector, old.NodeSelector) {
		errs = append(errs, selectorOnlyGrown(now.NodeSelector, old.NodeSelector, spec.Child("nodeSelector"))...)
		rest.NodeSelector = old.NodeSelector
	}
	var was, is *corev1.NodeAffinity
	if old.Affinity != nil {
		was = old.Affinity.NodeAffinity
	}
	if now.Affinity != nil {
		is = now.Affinity.NodeAffinity
	}
	if apiEqual(was, is) {
		return errs
	}
	errs = append(errs, affinityOnlyNarrowed(is, was, spec.Child("affinity", "nodeAffinity"))...)
	switch {
	case rest.Affinity == nil && old.Affinity != nil:
		rest.Affinity = &corev1.Affinity{NodeAffinity: was}
	case rest.Affinity != nil:
		rest.Affinity.NodeAffinity = was
		if old.Affinity == nil && apiEqual(rest.Affinity, &corev1.Affinity{}) {
			rest.Affinity = nil
		}
	}
	return errs
}

func selectorOnlyGrown(now, before map[string]string, fld *field.Path) field.ErrorList {
	for k, v := range before {
		if got, ok := now[k]; !ok || got != v {
			return field.ErrorList{field.Invalid(fld, now, apivalidation.FieldImmutableErrorMsg)}
		}
	}
	return nil
}

func affinityOnlyNarrowed(now, before *corev1.NodeAffinity, fld *field.Path) field.ErrorList {
	if before == nil || before.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	required := fld.Child(requiredTerms)
	if now == nil || now.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return field.ErrorList{field.Invalid(required, nil, apivalidation.FieldImmutableErrorMsg)}
	}
	was, is := before.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, now.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	terms := required.Child("nodeSelectorTerms")
	if len(was) > 0 && len(was) != len(is) {
		return field.ErrorList{field.Invalid(terms, is, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")}
	}
	var errs field.ErrorList
	for i := range was {
		// An empty term allows no node: whatever is added to it allows more.
		widened := apiEqual(was[i], corev1.NodeSelectorTerm{}) && !apiEqual(is[i], was[i])
		if widened || !startsWith(is[i].MatchExpressions, was[i].MatchExpressions) || !startsWith(is[i].MatchFields, was[i].MatchFields) {
			errs = append(errs, field.Invalid(terms.Index(i), is[i], "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

func startsWith(list, start []corev1.NodeSelectorRequirement) bool {
	return len(list) >= len(start) && apiEqual(list[:len(start)], start)
}

// ValidateEphemeralContainersUpdate checks an update through the
// ephemeralcontainers subresource: containers are added, never changed.
func ValidateEphemeralContainersUpdate(pod, old *corev1.Pod) field.ErrorList {
	fld := field.NewPath("spec", "ephemeralContainers")
	v := &validator{spec: &pod.Spec, meta: &pod.ObjectMeta, options: Options{Pod: true}, volumes: map[string]*corev1.VolumeSource{}}
	v.volumeList(pod.Spec.Volumes, field.NewPath("spec", "volumes"))
	errs := v.ephemeralContainers(fld)
	for _, before := range old.Spec.EphemeralContainers {
		i := slices.IndexFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == before.Name })
		if i < 0 {
			errs = append(errs, field.Forbidden(fld, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", before.Name)))
			continue
		}
		if now := pod.Spec.EphemeralContainers[i]; !apiEqual(now, before) {
			errs = append(errs, field.Forbidden(fld, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%s", before.Name, cmp.Diff(before, now))))
		}
	}
	return errs
}
