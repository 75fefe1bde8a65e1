package discovery

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// Limits of one slice.
const (
	maxEndpoints = 1000
	maxPorts     = 20000
	maxAddresses = 100
	maxTopology  = 16
	maxHints     = 8
)

func validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validateSlice(obj.(*discoveryv1.EndpointSlice), nil)
}

func validateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	s, was := obj.(*discoveryv1.EndpointSlice), old.(*discoveryv1.EndpointSlice)
	return append(validateSlice(s, was), check.Unchanged(field.NewPath("addressType"), s.AddressType, was.AddressType)...)
}

func validateSlice(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := check.OneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	var oldIPs []string
	if old != nil {
		for _, e := range old.Endpoints {
			oldIPs = append(oldIPs, e.Addresses...)
		}
	}
	endpoints := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		return append(errs, field.TooMany(endpoints, len(s.Endpoints), maxEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, validateEndpoint(&s.Endpoints[i], s.AddressType, oldIPs, endpoints.Index(i))...)
	}
	return append(errs, validatePorts(s.Ports, field.NewPath("ports"))...)
}

func validateEndpoint(e *discoveryv1.Endpoint, t discoveryv1.AddressType, oldIPs []string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	addresses := p.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
	case n > maxAddresses:
		errs = append(errs, field.TooMany(addresses, n, maxAddresses))
	}
	for i, a := range e.Addresses {
		errs = append(errs, validateAddress(a, t, oldIPs, addresses.Index(i))...)
	}
	if e.NodeName != nil {
		errs = append(errs, check.Messages(p.Child("nodeName"), *e.NodeName, apivalidation.NameIsDNSSubdomain(*e.NodeName, false))...)
	}
	topology := p.Child("deprecatedTopology")
	if n := len(e.DeprecatedTopology); n > maxTopology {
		errs = append(errs, field.TooMany(topology, n, maxTopology))
	}
	if len(e.DeprecatedTopology) > 0 {
		errs = append(errs, metav1validation.ValidateLabels(e.DeprecatedTopology, topology)...)
	}
	if e.Hostname != nil {
		errs = append(errs, check.Label(p.Child("hostname"), *e.Hostname)...)
	}
	if h := e.Hints; h != nil {
		zones := p.Child("hints").Child("forZones")
		if n := len(h.ForZones); n > maxHints {
			errs = append(errs, field.TooMany(zones, n, maxHints))
		}
		seen := map[string]bool{}
		for i, z := range h.ForZones {
			at := zones.Index(i).Child("name")
			if seen[z.Name] {
				errs = append(errs, field.Duplicate(at, z.Name))
			}
			seen[z.Name] = true
			errs = append(errs, check.Messages(at, z.Name, validation.IsValidLabelValue(z.Name))...)
		}
	}
	return errs
}

func validateAddress(a string, t discoveryv1.AddressType, oldIPs []string, p *field.Path) field.ErrorList {
	if t == discoveryv1.AddressTypeFQDN {
		return validation.IsFullyQualifiedDomainName(p, a)
	}
	if errs := validation.IsValidIPForLegacyField(p, a, true, oldIPs); len(errs) > 0 {
		return errs
	}
	ip, err := netip.ParseAddr(a)
	if err != nil {
		return nil // an old, odd form that was accepted before
	}
	var errs field.ErrorList
	switch {
	case t == discoveryv1.AddressTypeIPv4 && !ip.Is4():
		errs = append(errs, field.Invalid(p, a, "must be an IPv4 address"))
	case t == discoveryv1.AddressTypeIPv6 && !ip.Is6():
		errs = append(errs, field.Invalid(p, a, "must be an IPv6 address"))
	}
	return append(errs, check.OrdinaryIP(p, a)...)
}

func validatePorts(ports []discoveryv1.EndpointPort, path *field.Path) field.ErrorList {
	if len(ports) > maxPorts {
		return field.ErrorList{field.TooMany(path, len(ports), maxPorts)}
	}
	var errs field.ErrorList
	names := map[string]bool{}
	for i, port := range ports {
		p := path.Index(i)
		if port.Name != nil {
			if *port.Name != "" {
				errs = append(errs, check.Label(p.Child("name"), *port.Name)...)
			}
			if names[*port.Name] {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			}
			names[*port.Name] = true
		}
		if port.Protocol == nil {
			errs = append(errs, field.Required(p.Child("protocol"), ""))
		} else {
			errs = append(errs, check.OneOf(p.Child("protocol"), *port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
		if port.Port != nil {
			errs = append(errs, check.Port(p.Child("port"), *port.Port)...)
		}
		if port.AppProtocol != nil {
			errs = append(errs, check.QualifiedName(p.Child("appProtocol"), *port.AppProtocol)...)
		}
	}
	return errs
}
