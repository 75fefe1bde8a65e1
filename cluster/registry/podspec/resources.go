package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

var (
	// containerNames are the resources without a domain that containers ask for.
	containerNames = sets.New(corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage)
	// standardNames are all names without a domain that mean something, such as
	// those that quotas count.
	standardNames = containerNames.Union(sets.New(
		corev1.ResourceStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsStorage,
		corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
		corev1.ResourcePods, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceQuotas, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
	))
)

func isHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// isNative tells the API's own resources from extended ones.
func isNative(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

func isExtended(name corev1.ResourceName) bool {
	if isNative(name) || strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

// overcommits tells whether more of it may be promised than there is.
func overcommits(name corev1.ResourceName) bool { return isNative(name) && !isHugePages(name) }

func validateResourceName(name corev1.ResourceName, fld *field.Path) field.ErrorList {
	errs := eachMessage(validation.IsQualifiedName(string(name)), name, fld)
	if len(errs) > 0 {
		return errs
	}
	switch {
	case !strings.Contains(string(name), "/"):
		if !standardNames.Has(name) && !isHugePages(name) && !strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix) {
			errs = append(errs, field.Invalid(fld, name, "must be a standard resource type or fully qualified"))
		}
		if !containerNames.Has(name) && !isHugePages(name) {
			errs = append(errs, field.Invalid(fld, name, "must be a standard resource for containers"))
		}
	case !isNative(name) && !isExtended(name):
		errs = append(errs, field.Invalid(fld, name, "doesn't follow extended resource name standard"))
	}
	return errs
}

func validateQuantity(name corev1.ResourceName, q resource.Quantity, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if q.Sign() < 0 {
		errs = append(errs, field.Invalid(fld, q.String(), notNegative))
	}
	if isExtended(name) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(fld, q, "must be an integer"))
	}
	if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
		page, err := resource.ParseQuantity(size)
		if err != nil || page.Sign() <= 0 {
			errs = append(errs, field.Invalid(fld, q.String(), "could not parse huge page size from resource name"))
		} else if q.Value()%page.Value() != 0 {
			errs = append(errs, field.Invalid(fld, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), size)))
		}
	}
	return errs
}

func sortedNames(list corev1.ResourceList) []corev1.ResourceName {
	return slices.Sorted(maps.Keys(list))
}

func validateResources(r *corev1.ResourceRequirements, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	hugePages, computes := false, false
	note := func(name corev1.ResourceName) {
		hugePages = hugePages || isHugePages(name)
		computes = computes || name == corev1.ResourceCPU || name == corev1.ResourceMemory
	}
	limits, requests := fld.Child("limits"), fld.Child("requests")
	for _, name := range sortedNames(r.Limits) {
		p := limits.Key(string(name))
		errs = append(errs, validateResourceName(name, p)...)
		errs = append(errs, validateQuantity(name, r.Limits[name], p)...)
		note(name)
	}
	for _, name := range sortedNames(r.Requests) {
		p := requests.Key(string(name))
		errs = append(errs, validateResourceName(name, p)...)
		errs = append(errs, validateQuantity(name, r.Requests[name], p)...)
		errs = append(errs, withinLimit(name, r, limits, requests)...)
		note(name)
	}
	if hugePages && !computes {
		errs = append(errs, field.Forbidden(fld, "HugePages require cpu or memory"))
	}
	if len(r.Claims) > 0 {
		errs = append(errs, field.Forbidden(fld.Child("claims"), "dynamic resource allocation is not supported by skiff"))
	}
	return errs
}

func withinLimit(name corev1.ResourceName, r *corev1.ResourceRequirements, limits, requests *field.Path) field.ErrorList {
	request := r.Requests[name]
	limit, limited := r.Limits[name]
	switch {
	case !limited && !overcommits(name):
		return field.ErrorList{field.Required(limits, "Limit must be set for non overcommitable resources")}
	case !limited:
	case request.Cmp(limit) != 0 && !overcommits(name):
		return field.ErrorList{field.Invalid(requests, request.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))}
	case request.Cmp(limit) > 0:
		return field.ErrorList{field.Invalid(requests, request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))}
	}
	return nil
}

// podResources checks what the pod asks for as a whole.
func (v *validator) podResources(spec *field.Path) field.ErrorList {
	r := v.spec.Resources
	if r == nil {
		return nil
	}
	fld := spec.Child("resources")
	errs := validateResources(r, fld)
	for _, part := range []struct {
		list corev1.ResourceList
		path *field.Path
	}{{r.Limits, fld.Child("limits")}, {r.Requests, fld.Child("requests")}} {
		for _, name := range sortedNames(part.list) {
			if !resourcehelper.IsSupportedPodLevelResource(name) {
				errs = append(errs, field.NotSupported(part.path.Key(string(name)), name, sets.List(resourcehelper.SupportedPodLevelResources())))
			}
		}
	}
	sum := resourcehelper.AggregateContainerRequests(&corev1.Pod{Spec: *v.spec}, resourcehelper.PodResourcesOptions{})
	for _, name := range sortedNames(sum) {
		total := sum[name]
		if request, ok := r.Requests[name]; ok && request.Cmp(total) < 0 {
			errs = append(errs, field.Invalid(fld.Child("requests").Key(string(name)), request.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", total.String())))
		}
	}
	for i := range v.spec.Containers {
		for _, name := range sortedNames(v.spec.Containers[i].Resources.Limits) {
			limit := v.spec.Containers[i].Resources.Limits[name]
			if all, ok := r.Limits[name]; ok && limit.Cmp(all) > 0 {
				errs = append(errs, field.Invalid(spec.Child("containers").Index(i).Child("resources", "limits").Key(string(name)), limit.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", all.String())))
			}
		}
	}
	return errs
}

func (v *validator) overhead(fld *field.Path) field.ErrorList {
	return ValidateOverhead(v.spec.Overhead, fld)
}

// ValidateOverhead checks what a pod, or each pod of a runtime class, needs beside
// its containers. Errors name it as the limits that it counts as.
func ValidateOverhead(list corev1.ResourceList, fld *field.Path) field.ErrorList {
	return validateResources(&corev1.ResourceRequirements{Limits: list}, fld)
}
