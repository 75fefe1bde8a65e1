package podspec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/node/util/sysctl"
)

// podSecurity checks what a pod asks of the host: namespaces, users, sysctls.
func (v *validator) podSecurity(spec *field.Path) field.ErrorList {
	s := v.spec.SecurityContext
	if s == nil {
		s = &corev1.PodSecurityContext{}
	}
	fld := spec.Child("securityContext")
	errs := v.hostPorts(spec.Child("containers"))
	errs = append(errs, v.userNamespace(spec)...)
	errs = append(errs, groupID(s.FSGroup, fld.Child("fsGroup"))...)
	errs = append(errs, userID(s.RunAsUser, fld.Child("runAsUser"))...)
	errs = append(errs, groupID(s.RunAsGroup, fld.Child("runAsGroup"))...)
	for i := range s.SupplementalGroups {
		errs = append(errs, groupID(&s.SupplementalGroups[i], fld.Child("supplementalGroups").Index(i))...)
	}
	if share := v.spec.ShareProcessNamespace; share != nil && *share && v.spec.HostPID {
		errs = append(errs, field.Invalid(fld.Child("shareProcessNamespace"), *share, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	errs = append(errs, v.sysctls(s.Sysctls, fld.Child("sysctls"))...)
	if p := s.FSGroupChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, fld.Child("fsGroupChangePolicy"), corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)...)
	}
	if p := s.SupplementalGroupsPolicy; p != nil {
		errs = append(errs, oneOf(*p, fld.Child("supplementalGroupsPolicy"), corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if p := s.SELinuxChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, fld.Child("seLinuxChangePolicy"), corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)...)
	}
	errs = append(errs, seccomp(s.SeccompProfile, fld.Child("seccompProfile"))...)
	return append(errs, appArmor(s.AppArmorProfile, fld.Child("appArmorProfile"))...)
}

func (v *validator) hostPorts(fld *field.Path) field.ErrorList {
	if !v.spec.HostNetwork {
		return nil
	}
	var errs field.ErrorList
	for i := range v.spec.Containers {
		for j, port := range v.spec.Containers[i].Ports {
			// A template leaves host ports to the pods' own defaults.
			if port.HostPort != port.ContainerPort && (v.options.Pod || port.HostPort != 0) {
				errs = append(errs, field.Invalid(fld.Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
		}
	}
	return errs
}

func (v *validator) userNamespace(fld *field.Path) field.ErrorList {
	if v.spec.HostUsers == nil || *v.spec.HostUsers {
		return nil
	}
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{{"hostNetwork", v.spec.HostNetwork}, {"hostPID", v.spec.HostPID}, {"hostIPC", v.spec.HostIPC}} {
		if f.set {
			errs = append(errs, field.Forbidden(fld.Child(f.name), "when `hostUsers` is false"))
		}
	}
	return errs
}

func userID(id *int64, fld *field.Path) field.ErrorList {
	if id == nil {
		return nil
	}
	return eachMessage(validation.IsValidUserID(*id), *id, fld)
}

func groupID(id *int64, fld *field.Path) field.ErrorList {
	if id == nil {
		return nil
	}
	return eachMessage(validation.IsValidGroupID(*id), *id, fld)
}

// sysctlFormat allows both separators that sysctl(8) knows.
const (
	sysctlFormat    = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
	sysctlMaxLength = 253
)

var sysctlPattern = regexp.MustCompile("^" + sysctlFormat + "$")

func (v *validator) sysctls(list []corev1.Sysctl, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, s := range list {
		p := fld.Index(i).Child("name")
		name := sysctl.NormalizeName(s.Name)
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(p, ""))
		case len(s.Name) > sysctlMaxLength || !sysctlPattern.MatchString(s.Name):
			errs = append(errs, field.Invalid(p, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", sysctlMaxLength, sysctlFormat)))
		case seen.Has(name):
			errs = append(errs, field.Duplicate(p, s.Name))
		}
		seen.Insert(name)
		switch ns, _, _ := sysctl.GetNamespace(name); {
		case ns == sysctl.NetNamespace && v.spec.HostNetwork:
			errs = append(errs, field.Invalid(p, s.Name, "may not be specified when 'hostNetwork' is true"))
		case ns == sysctl.IPCNamespace && v.spec.HostIPC:
			errs = append(errs, field.Invalid(p, s.Name, "may not be specified when 'hostIPC' is true"))
		}
	}
	return errs
}

func (v *validator) containerSecurity(s *corev1.SecurityContext, fld *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := userID(s.RunAsUser, fld.Child("runAsUser"))
	errs = append(errs, groupID(s.RunAsGroup, fld.Child("runAsGroup"))...)
	if m := s.ProcMount; m != nil {
		errs = append(errs, oneOf(*m, fld.Child("procMount"), corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if *m == corev1.UnmaskedProcMount && (v.spec.HostUsers == nil || *v.spec.HostUsers) {
			errs = append(errs, field.Invalid(fld.Child("procMount"), *m, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, seccomp(s.SeccompProfile, fld.Child("seccompProfile"))...)
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if s.Privileged != nil && *s.Privileged {
			errs = append(errs, field.Invalid(fld, s, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if s.Capabilities != nil && slices.Contains(s.Capabilities.Add, "CAP_SYS_ADMIN") {
			errs = append(errs, field.Invalid(fld, s, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
		}
	}
	return append(errs, appArmor(s.AppArmorProfile, fld.Child("appArmorProfile"))...)
}

func seccomp(s *corev1.SeccompProfile, fld *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	local := fld.Child("localhostProfile")
	switch s.Type {
	case corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile == nil || *s.LocalhostProfile == "" {
			return field.ErrorList{field.Required(local, "must be set when seccomp type is Localhost")}
		}
		return descending(*s.LocalhostProfile, local)
	case corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined:
		if s.LocalhostProfile != nil {
			return field.ErrorList{field.Invalid(local, s, "can only be set when seccomp type is Localhost")}
		}
		return nil
	case "":
		return field.ErrorList{field.Required(fld.Child("type"), "type is required when seccompProfile is set")}
	default:
		return field.ErrorList{field.NotSupported(fld.Child("type"), s.Type, []corev1.SeccompProfileType{
			corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined,
		})}
	}
}

func appArmor(s *corev1.AppArmorProfile, fld *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	const maxLength = 4095 // PATH_MAX without the final zero
	local := fld.Child("localhostProfile")
	switch s.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		switch {
		case s.LocalhostProfile == nil || strings.TrimSpace(*s.LocalhostProfile) == "":
			return field.ErrorList{field.Required(local, "must be set when AppArmor type is Localhost")}
		case *s.LocalhostProfile != strings.TrimSpace(*s.LocalhostProfile):
			return field.ErrorList{field.Invalid(local, *s.LocalhostProfile, "must not be padded with whitespace")}
		case len(*s.LocalhostProfile) > maxLength:
			return field.ErrorList{field.TooLong(local, *s.LocalhostProfile, maxLength)}
		}
		return nil
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if s.LocalhostProfile != nil {
			return field.ErrorList{field.Invalid(local, *s.LocalhostProfile, "can only be set when AppArmor type is Localhost")}
		}
		return nil
	case "":
		return field.ErrorList{field.Required(fld.Child("type"), "type is required when appArmorProfile is set")}
	default:
		return field.ErrorList{field.NotSupported(fld.Child("type"), s.Type, []corev1.AppArmorProfileType{
			corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined,
		})}
	}
}
