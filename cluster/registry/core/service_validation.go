package core

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/check"
)

const (
	onlyLoadBalancer = "may only be used when `type` is 'LoadBalancer'"
	maxAffinitySecs  = 86400
)

// validateService checks everything but metadata. Old is nil on create.
func validateService(s, old *corev1.Service) field.ErrorList {
	spec, path := &s.Spec, field.NewPath("spec")
	var errs field.ErrorList
	if hints, ok := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok {
		if mode, ok := s.Annotations[corev1.AnnotationTopologyMode]; ok && mode != hints {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Key(corev1.AnnotationTopologyMode), mode,
				fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints)))
		}
	}
	if len(spec.Ports) == 0 && !isHeadless(s) && spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path.Child("ports"), ""))
	}
	switch spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if isHeadless(s) {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), spec.ClusterIPs[0],
				fmt.Sprintf("may not be set to 'None' for %s services", spec.Type)))
		}
	case corev1.ServiceTypeExternalName:
		errs = append(errs, validateExternalName(spec, path)...)
	}
	errs = append(errs, validateServicePorts(spec, path.Child("ports"))...)
	if spec.Selector != nil {
		errs = append(errs, metav1validation.ValidateLabels(spec.Selector, path.Child("selector"))...)
	}
	errs = append(errs, validateAffinity(spec, path)...)
	errs = append(errs, validateClusterIPs(s, old)...)
	var oldExternal []string
	if old != nil {
		oldExternal = old.Spec.ExternalIPs
	}
	for i, ip := range spec.ExternalIPs {
		p := path.Child("externalIPs").Index(i)
		if e := validation.IsValidIPForLegacyField(p, ip, true, oldExternal); len(e) > 0 {
			errs = append(errs, e...)
		} else {
			errs = append(errs, check.OrdinaryIP(p, ip)...)
		}
	}
	errs = append(errs, check.OneOf(path.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)...)
	errs = append(errs, validateNodePorts(spec, path.Child("ports"))...)
	errs = append(errs, validateLoadBalancer(s, old)...)
	return append(errs, validateTrafficPolicies(s)...)
}

func validateExternalName(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	const no = "may not be set for ExternalName services"
	var errs field.ErrorList
	if len(spec.ClusterIPs) > 0 || spec.ClusterIP != "" {
		errs = append(errs, field.Forbidden(path.Child("clusterIPs"), no))
	}
	if len(spec.IPFamilies) > 0 {
		errs = append(errs, field.Forbidden(path.Child("ipFamilies"), no))
	}
	if spec.IPFamilyPolicy != nil {
		errs = append(errs, field.Forbidden(path.Child("ipFamilyPolicy"), no))
	}
	// A trailing dot says that the name is fully qualified.
	name := strings.TrimSuffix(spec.ExternalName, ".")
	if name == "" {
		return append(errs, field.Required(path.Child("externalName"), ""))
	}
	return append(errs, check.Subdomain(path.Child("externalName"), name)...)
}

// portKey prints as the API prints the duplicate port of a Service.
type portKey struct {
	Name        string
	Protocol    corev1.Protocol
	AppProtocol *string
	Port        int32
	TargetPort  intstr.IntOrString
	NodePort    int32
}

func validateServicePorts(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range spec.Ports {
		port, p := &spec.Ports[i], path.Index(i)
		switch {
		case port.Name == "" && len(spec.Ports) > 1:
			errs = append(errs, field.Required(p.Child("name"), ""))
		case port.Name != "":
			errs = append(errs, check.Label(p.Child("name"), port.Name)...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		errs = append(errs, check.Port(p.Child("port"), port.Port)...)
		errs = append(errs, check.OneOf(p.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		errs = append(errs, check.PortOrName(p.Child("targetPort"), port.TargetPort)...)
		if port.AppProtocol != nil {
			errs = append(errs, check.QualifiedName(p.Child("appProtocol"), *port.AppProtocol)...)
		}
	}
	return errs
}

// validateNodePorts checks node ports and duplicates, which the API reports
// after the type.
func validateNodePorts(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, port := range spec.Ports {
			if port.NodePort != 0 {
				errs = append(errs, field.Forbidden(path.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	seen := map[portKey]bool{}
	for i, port := range spec.Ports {
		key := portKey{Protocol: port.Protocol, NodePort: port.NodePort}
		if port.NodePort != 0 && seen[key] {
			errs = append(errs, field.Duplicate(path.Index(i).Child("nodePort"), port.NodePort))
		}
		seen[key] = true
	}
	clear(seen)
	for i, port := range spec.Ports {
		key := portKey{Protocol: port.Protocol, Port: port.Port}
		if seen[key] {
			errs = append(errs, field.Duplicate(path.Index(i), key))
		}
		seen[key] = true
	}
	return errs
}

func validateAffinity(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	errs := check.OneOf(path.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	p := path.Child("sessionAffinityConfig")
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		if spec.SessionAffinityConfig != nil {
			errs = append(errs, field.Forbidden(p, "must not be set when session affinity is None"))
		}
	case corev1.ServiceAffinityClientIP:
		when := fmt.Sprintf("when session affinity is %s", corev1.ServiceAffinityClientIP)
		switch c := spec.SessionAffinityConfig; {
		case c == nil:
			errs = append(errs, field.Required(p, when))
		case c.ClientIP == nil:
			errs = append(errs, field.Required(p.Child("clientIP"), when))
		case c.ClientIP.TimeoutSeconds == nil:
			errs = append(errs, field.Required(p.Child("clientIP").Child("timeoutSeconds"), when))
		case *c.ClientIP.TimeoutSeconds <= 0 || *c.ClientIP.TimeoutSeconds > maxAffinitySecs:
			errs = append(errs, field.Invalid(p.Child("clientIP").Child("timeoutSeconds"), *c.ClientIP.TimeoutSeconds,
				fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySecs)))
		}
	}
	return errs
}

func validateLoadBalancer(s, old *corev1.Service) field.ErrorList {
	spec, path := &s.Spec, field.NewPath("spec")
	var errs field.ErrorList
	cidrs := func(p *field.Path, values, oldValues []string, indexed bool) {
		if !isLoadBalancer(s) {
			errs = append(errs, field.Forbidden(p, onlyLoadBalancer))
		}
		for i, v := range values {
			at := p
			if indexed {
				at = p.Index(i)
			}
			errs = append(errs, validation.IsValidCIDRForLegacyField(at, strings.TrimSpace(v), true, oldValues)...)
		}
	}
	if ranges := spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		var was []string
		if old != nil {
			was = old.Spec.LoadBalancerSourceRanges
		}
		cidrs(path.Child("LoadBalancerSourceRanges"), ranges, was, true)
	} else if v, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; ok {
		var values []string
		if v = strings.TrimSpace(v); v != "" {
			values = strings.Split(v, ",")
		}
		cidrs(field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey), values, nil, false)
	}
	if spec.AllocateLoadBalancerNodePorts != nil && !isLoadBalancer(s) {
		errs = append(errs, field.Forbidden(path.Child("allocateLoadBalancerNodePorts"), onlyLoadBalancer))
	}
	if spec.AllocateLoadBalancerNodePorts == nil && isLoadBalancer(s) {
		errs = append(errs, field.Required(field.NewPath("allocateLoadBalancerNodePorts"), ""))
	}
	class := path.Child("loadBalancerClass")
	switch {
	case spec.LoadBalancerClass == nil:
	case !isLoadBalancer(s):
		errs = append(errs, field.Forbidden(class, onlyLoadBalancer))
	default:
		errs = append(errs, check.QualifiedName(class, *spec.LoadBalancerClass)...)
	}
	return errs
}

func validateTrafficPolicies(s *corev1.Service) field.ErrorList {
	spec, path := &s.Spec, field.NewPath("spec")
	var errs field.ErrorList
	external := path.Child("externalTrafficPolicy")
	switch {
	case externallyAccessible(s):
		errs = append(errs, check.OneOf(external, spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	case spec.ExternalTrafficPolicy != "":
		errs = append(errs, field.Invalid(external, spec.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	health := path.Child("healthCheckNodePort")
	switch n := spec.HealthCheckNodePort; {
	case needsHealthCheckPort(s) && n == 0:
		errs = append(errs, field.Required(health, ""))
	case needsHealthCheckPort(s):
		errs = append(errs, check.Port(health, n)...)
	case n != 0:
		errs = append(errs, field.Invalid(health, n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	}
	internal := path.Child("internalTrafficPolicy")
	if p := spec.InternalTrafficPolicy; p != nil {
		errs = append(errs, check.OneOf(internal, *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	} else if needsClusterIP(s) {
		errs = append(errs, field.Required(internal, ""))
	}
	if d := spec.TrafficDistribution; d != nil {
		errs = append(errs, check.OneOf(path.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

func validateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	errs := validateClusterIPChange(s, old)
	if isLoadBalancer(s) && isLoadBalancer(old) && !ptr.Equal(s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "loadBalancerClass"), s.Spec.LoadBalancerClass, "may not change once set"))
	}
	if needsHealthCheckPort(s) && needsHealthCheckPort(old) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "healthCheckNodePort"), "field is immutable"))
	}
	return append(errs, validateService(s, old)...)
}

func validateServiceStatus(s, old *corev1.Service) field.ErrorList {
	path := field.NewPath("status", "loadBalancer", "ingress")
	ingress := s.Status.LoadBalancer.Ingress
	var errs field.ErrorList
	if !isLoadBalancer(s) && len(ingress) > 0 {
		errs = append(errs, field.Forbidden(path, "may only be used when `spec.type` is LoadBalancer"))
		return errs
	}
	var oldIPs []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		oldIPs = append(oldIPs, in.IP)
	}
	for i, in := range ingress {
		p := path.Index(i)
		if in.IP != "" {
			errs = append(errs, validation.IsValidIPForLegacyField(p.Child("ip"), in.IP, true, oldIPs)...)
		}
		switch {
		case in.IPMode != nil && in.IP == "":
			errs = append(errs, field.Forbidden(p.Child("ipMode"), "may not be specified when `ip` is not set"))
		case in.IPMode == nil && in.IP != "":
			errs = append(errs, field.Required(p.Child("ipMode"), "must be specified when `ip` is set"))
		case in.IPMode != nil:
			errs = append(errs, check.OneOf(p.Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)...)
		}
		if in.Hostname != "" {
			errs = append(errs, check.Subdomain(p.Child("hostname"), in.Hostname)...)
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				errs = append(errs, field.Invalid(p.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}
