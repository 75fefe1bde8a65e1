package core

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// initFamilies defaults spec.ipFamilyPolicy and spec.ipFamilies as a cluster
// with IPv4 only does, and refuses what such a cluster cannot give. Old is nil
// on create.
func initFamilies(s, old *corev1.Service) field.ErrorList {
	spec, path := &s.Spec, field.NewPath("spec")
	if spec.Type == corev1.ServiceTypeExternalName || unchangedPreferDual(s, old) {
		return nil
	}
	external := spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil {
		switch {
		case old != nil && old.Spec.IPFamilyPolicy != nil:
			spec.IPFamilyPolicy = ptr.To(*old.Spec.IPFamilyPolicy)
		case external:
			spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
		default:
			spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
		}
	}
	if errs := validateClusterIPs(s, old); len(errs) > 0 {
		return errs
	}
	policyPath := path.Child("ipFamilyPolicy")
	single := *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	var errs field.ErrorList
	if old != nil && single && slices.Equal(old.Spec.IPFamilies, spec.IPFamilies) && len(spec.IPFamilies) > 1 {
		spec.IPFamilies = spec.IPFamilies[:1]
	}
	if old != nil && !single && len(old.Spec.IPFamilies) == 2 && len(spec.IPFamilies) == 1 && slices.Equal(old.Spec.IPFamilies[:1], spec.IPFamilies) {
		errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, "must be 'SingleStack' to release the secondary IP family"))
	}
	if single && len(spec.ClusterIPs) == 2 {
		errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"))
	}
	if single && len(spec.IPFamilies) == 2 {
		errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"))
	}
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			break
		}
		if i < len(spec.IPFamilies) {
			continue
		}
		if isIPv6(ip) {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(i), spec.ClusterIPs, "IPv6 is not configured on this cluster"))
		} else {
			spec.IPFamilies = append(spec.IPFamilies, corev1.IPv4Protocol)
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if external {
		// Endpoints come from elsewhere, so they may be of families that the
		// cluster itself does not have.
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}
		if len(spec.IPFamilies) == 1 && !single {
			other := corev1.IPv6Protocol
			if spec.IPFamilies[0] == other {
				other = corev1.IPv4Protocol
			}
			spec.IPFamilies = append(spec.IPFamilies, other)
		}
		return nil
	}
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if f != corev1.IPv4Protocol {
			errs = append(errs, field.Invalid(path.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	return errs
}

// unchangedPreferDual says that an update leaves all family fields of a
// PreferDualStack Service alone.
func unchangedPreferDual(s, old *corev1.Service) bool {
	prefers := func(s *corev1.Service) bool {
		return ptr.Deref(s.Spec.IPFamilyPolicy, "") == corev1.IPFamilyPolicyPreferDualStack
	}
	return old != nil && prefers(s) && prefers(old) && needsClusterIP(old) &&
		slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(s.Spec.IPFamilies, old.Spec.IPFamilies)
}

func isIPv6(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.Is6() && !a.Is4In6()
}

// validateClusterIPs checks spec.clusterIP, clusterIPs, ipFamilies and
// ipFamilyPolicy against each other.
func validateClusterIPs(s, old *corev1.Service) field.ErrorList {
	spec, path := &s.Spec, field.NewPath("spec")
	ipsPath, familiesPath := path.Child("clusterIPs"), path.Child("ipFamilies")
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil // has none of these, which validateService says
	}
	var errs field.ErrorList
	switch {
	case spec.ClusterIP == "" && len(spec.ClusterIPs) > 0:
		errs = append(errs, field.Invalid(ipsPath, spec.ClusterIPs, "must be empty when `clusterIP` is not specified"))
	case spec.ClusterIP != "" && len(spec.ClusterIPs) == 0:
		errs = append(errs, field.Required(ipsPath, ""))
	case spec.ClusterIP != "" && spec.ClusterIPs[0] != spec.ClusterIP:
		errs = append(errs, field.Invalid(ipsPath, spec.ClusterIPs, "first value must match `clusterIP`"))
	}
	for i, f := range spec.IPFamilies {
		errs = append(errs, check.OneOf(familiesPath.Index(i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if slices.Contains(spec.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(familiesPath.Index(i), f))
		}
	}
	if p := spec.IPFamilyPolicy; p != nil {
		errs = append(errs, check.OneOf(path.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicySingleStack,
			corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
	}
	var oldIPs []string
	if old != nil {
		oldIPs = old.Spec.ClusterIPs
	}
	bad := false
	for i, ip := range spec.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(spec.ClusterIPs) > 1 {
				bad = true
				errs = append(errs, field.Invalid(ipsPath, spec.ClusterIPs, "'None' must be the first and only value"))
			}
			continue
		}
		e := validation.IsValidIPForLegacyField(ipsPath.Index(i), ip, true, oldIPs)
		bad = bad || len(e) > 0
		errs = append(errs, e...)
	}
	if len(spec.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(ipsPath, spec.ClusterIPs, "may only hold up to 2 values"))
	}
	if bad {
		return errs // the rest would only repeat it
	}
	if n := len(spec.ClusterIPs); n > 1 && !(n == 2 && isIPv6(spec.ClusterIPs[0]) != isIPv6(spec.ClusterIPs[1])) {
		errs = append(errs, field.Invalid(ipsPath, spec.ClusterIPs, "may specify no more than one IP for each IP family"))
	}
	if isHeadless(s) {
		return errs
	}
	for i, ip := range spec.ClusterIPs[:min(len(spec.ClusterIPs), len(spec.IPFamilies))] {
		if want := spec.IPFamilies[i]; (want == corev1.IPv6Protocol) != isIPv6(ip) {
			errs = append(errs, field.Invalid(ipsPath.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%v]`", want, i)))
		}
	}
	return errs
}

// validateClusterIPChange says what may become of addresses and families once
// they are given.
func validateClusterIPChange(s, old *corev1.Service) field.ErrorList {
	if s.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName || isHeadless(s) && isHeadless(old) {
		return nil
	}
	now, was, path := &s.Spec, &old.Spec, field.NewPath("spec")
	var errs field.ErrorList
	ip0 := path.Child("clusterIPs").Index(0)
	switch {
	case len(now.ClusterIPs) == len(was.ClusterIPs):
		for i, ip := range was.ClusterIPs {
			if ip != now.ClusterIPs[i] {
				errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(i), now.ClusterIPs, "may not change once set"))
			}
		}
	case len(now.ClusterIPs) == 0:
		errs = append(errs, field.Invalid(ip0, now.ClusterIPs, "primary clusterIP can not be unset"))
	case len(was.ClusterIPs) > 0 && now.ClusterIPs[0] != was.ClusterIPs[0]:
		errs = append(errs, field.Invalid(ip0, now.ClusterIPs, "may not change once set"))
	}
	if isHeadless(s) || isHeadless(old) {
		return errs
	}
	family0 := path.Child("ipFamilies").Index(0)
	switch {
	case len(now.IPFamilies) == 0 && len(was.IPFamilies) > 0:
		errs = append(errs, field.Invalid(family0, now.IPFamilies, "primary ipFamily can not be unset"))
	case len(now.IPFamilies) > 0 && len(was.IPFamilies) > 0 && now.IPFamilies[0] != was.IPFamilies[0]:
		errs = append(errs, field.Invalid(family0, now.IPFamilies, "may not change once set"))
	}
	return errs
}
