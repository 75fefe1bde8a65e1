package podspec

import (
	"math"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	notNegative = "must be greater than or equal to 0"
	positive    = "must be greater than zero"
	// unsupported goes with fields of features that are not on by default.
	unsupported = "this field is not supported by skiff"
)

// validator walks one PodSpec. The walk goes in the order in which the API
// lists its complaints.
type validator struct {
	spec    *corev1.PodSpec
	meta    *metav1.ObjectMeta
	options Options
	// volumes are the volumes that containers may mount; a nil source stands
	// for a claim that is made for the pod later.
	volumes map[string]*corev1.VolumeSource
}

func (v *validator) podSpec(fld *field.Path) field.ErrorList {
	spec := v.spec
	errs := v.refused(fld)
	errs = append(errs, v.volumeList(spec.Volumes, fld.Child("volumes"))...)
	errs = append(errs, v.podResources(fld)...)
	errs = append(errs, v.containers(fld.Child("containers"))...)
	errs = append(errs, v.initContainers(fld.Child("initContainers"))...)
	errs = append(errs, v.ephemeralContainers(fld.Child("ephemeralContainers"))...)
	errs = append(errs, oneOf(spec.RestartPolicy, fld.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(spec.DNSPolicy, fld.Child("dnsPolicy"), corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, metavalidation.ValidateLabels(spec.NodeSelector, fld.Child("nodeSelector"))...)
	errs = append(errs, v.podSecurity(fld)...)
	errs = append(errs, validateAffinity(spec.Affinity, fld.Child("affinity"))...)
	errs = append(errs, validateDNSConfig(spec.DNSConfig, spec.DNSPolicy, fld.Child("dnsConfig"))...)
	errs = append(errs, v.gates(fld)...)
	errs = append(errs, validateSpread(spec.TopologySpreadConstraints, fld.Child("topologySpreadConstraints"))...)
	errs = append(errs, v.names(fld)...)
	if p := spec.ActiveDeadlineSeconds; p != nil && (*p < 1 || *p > math.MaxInt32) {
		errs = append(errs, field.Invalid(fld.Child("activeDeadlineSeconds"), *p, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	errs = append(errs, ValidateTolerations(spec.Tolerations, fld.Child("tolerations"))...)
	errs = append(errs, validateHostAliases(spec.HostAliases, fld.Child("hostAliases"))...)
	if p := spec.PreemptionPolicy; p != nil {
		errs = append(errs, oneOf(*p, fld.Child("preemptionPolicy"), corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	errs = append(errs, v.overhead(fld.Child("overhead"))...)
	errs = append(errs, v.os(fld.Child("os"))...)
	return errs
}

// refused names what no skiff cluster can serve, so that nobody waits for it.
func (v *validator) refused(fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(v.spec.ResourceClaims) > 0 {
		errs = append(errs, field.Forbidden(fld.Child("resourceClaims"), "dynamic resource allocation is not supported by skiff"))
	}
	if v.spec.SchedulingGroup != nil {
		errs = append(errs, field.Forbidden(fld.Child("schedulingGroup"), "pod groups are not supported by skiff"))
	}
	if len(v.spec.EvictionResponders) > 0 {
		errs = append(errs, field.Forbidden(fld.Child("evictionResponders"), "eviction requests are not supported by skiff"))
	}
	return errs
}

func (v *validator) names(fld *field.Path) field.ErrorList {
	spec := v.spec
	errs := named(apivalidation.ValidateServiceAccountName, spec.ServiceAccountName, fld.Child("serviceAccountName"))
	errs = append(errs, named(apivalidation.NameIsDNSSubdomain, spec.NodeName, fld.Child("nodeName"))...)
	errs = append(errs, named(apivalidation.NameIsDNSLabel, spec.Hostname, fld.Child("hostname"))...)
	errs = append(errs, named(apivalidation.NameIsDNSLabel, spec.Subdomain, fld.Child("subdomain"))...)
	if h := spec.HostnameOverride; h != nil {
		errs = append(errs, v.hostnameOverride(*h, fld)...)
	}
	errs = append(errs, named(apivalidation.NameIsDNSSubdomain, spec.PriorityClassName, fld.Child("priorityClassName"))...)
	if spec.RuntimeClassName != nil {
		for _, msg := range apivalidation.NameIsDNSSubdomain(*spec.RuntimeClassName, false) {
			errs = append(errs, field.Invalid(fld.Child("runtimeClassName"), *spec.RuntimeClassName, msg))
		}
	}
	return errs
}

func (v *validator) hostnameOverride(h string, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	p := fld.Child("hostnameOverride")
	for _, msg := range validation.IsDNS1123Subdomain(h) {
		errs = append(errs, field.Invalid(p, h, msg))
	}
	if len(h) > 64 {
		errs = append(errs, field.TooLong(p, h, 64))
	}
	if v.spec.HostNetwork {
		errs = append(errs, field.Forbidden(p, "may not be specified when hostNetwork is true"))
	}
	if f := v.spec.SetHostnameAsFQDN; f != nil && *f {
		errs = append(errs, field.Forbidden(p, "may not be specified when setHostnameAsFQDN is true"))
	}
	return errs
}

func (v *validator) gates(fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, g := range v.spec.ReadinessGates {
		errs = append(errs, qualified(string(g.ConditionType), fld.Child("readinessGates").Index(i).Child("conditionType"))...)
	}
	seen := sets.New[string]()
	for i, g := range v.spec.SchedulingGates {
		p := fld.Child("schedulingGates").Index(i)
		errs = append(errs, qualified(g.Name, p)...)
		if seen.Has(g.Name) {
			errs = append(errs, field.Duplicate(p, g.Name))
		}
		seen.Insert(g.Name)
	}
	return errs
}

func (v *validator) os(fld *field.Path) field.ErrorList {
	if v.spec.OS == nil {
		return nil
	}
	switch name := v.spec.OS.Name; name {
	case "":
		return field.ErrorList{field.Required(fld.Child("name"), "cannot be empty")}
	case corev1.Linux, corev1.Windows: // there is no node for the latter
		return nil
	default:
		return field.ErrorList{field.NotSupported(fld, name, []corev1.OSName{corev1.Linux, corev1.Windows})}
	}
}

// oneOf checks a field that defaulting has filled.
func oneOf[T ~string](value T, fld *field.Path, known ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(fld, "")}
	}
	for _, k := range known {
		if value == k {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(fld, value, known)}
}

// named checks an optional reference to an object by name.
func named(valid apivalidation.ValidateNameFunc, name string, fld *field.Path) field.ErrorList {
	if name == "" {
		return nil
	}
	return eachMessage(valid(name, false), name, fld)
}

func eachMessage(messages []string, value any, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range messages {
		errs = append(errs, field.Invalid(fld, value, msg))
	}
	return errs
}

func qualified(value string, fld *field.Path) field.ErrorList {
	return eachMessage(validation.IsQualifiedName(value), value, fld)
}

func nonNegative(value int64, fld *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(value, fld)
}

func isInt32(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	// "+1" and "01" do not round-trip and are refused as the API does.
	return err == nil && strconv.FormatInt(n, 10) == s
}

func apiEqual(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
