package core

//lint:file-ignore SA1019 Endpoints are deprecated, and still served

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// shownEndpoints is how many addresses the ENDPOINTS cell lists.
const shownEndpoints = 3

var endpointsKind = registry.Kind{
	Resource: gvr("endpoints"), Singular: "endpoints",
	Object: &corev1.Endpoints{}, List: &corev1.EndpointsList{},
	ShortNames: []string{"ep"},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateSubsets(obj.(*corev1.Endpoints).Subsets, nil)
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateSubsets(obj.(*corev1.Endpoints).Subsets, old.(*corev1.Endpoints).Subsets)
	},
	Canonicalize: func(obj runtime.Object) {
		e := obj.(*corev1.Endpoints)
		e.Subsets = repack(e.Subsets)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the Endpoints"),
		registry.Column("Endpoints", "Addresses that are ready"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		e := obj.(*corev1.Endpoints)
		return []any{e.Name, endpointsCell(e), registry.Age(e.CreationTimestamp)}
	},
}

func setEndpointsDefaults(e *corev1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			if p := &e.Subsets[i].Ports[j]; p.Protocol == "" {
				p.Protocol = corev1.ProtocolTCP
			}
		}
	}
}

func endpointsCell(e *corev1.Endpoints) string {
	var shown []string
	count := 0
	add := func(s string) {
		if count++; count <= shownEndpoints {
			shown = append(shown, s)
		}
	}
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				add(a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				add(net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	out := either(strings.Join(shown, ","), "<none>")
	if count > shownEndpoints {
		out = fmt.Sprintf("%s + %d more...", out, count-shownEndpoints)
	}
	return out
}

func validateSubsets(subsets, old []corev1.EndpointSubset) field.ErrorList {
	var oldIPs []string
	for _, s := range old {
		for _, a := range append(append([]corev1.EndpointAddress{}, s.Addresses...), s.NotReadyAddresses...) {
			oldIPs = append(oldIPs, a.IP)
		}
	}
	var errs field.ErrorList
	for i, s := range subsets {
		p := field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(p, "must specify `addresses` or `notReadyAddresses`"))
		}
		for j, a := range s.Addresses {
			errs = append(errs, validateEndpointAddress(&a, oldIPs, p.Child("addresses").Index(j))...)
		}
		for j, a := range s.NotReadyAddresses {
			errs = append(errs, validateEndpointAddress(&a, oldIPs, p.Child("notReadyAddresses").Index(j))...)
		}
		for j := range s.Ports {
			errs = append(errs, validateEndpointPort(&s.Ports[j], len(s.Ports) > 1, p.Child("ports").Index(j))...)
		}
	}
	return errs
}

func validateEndpointAddress(a *corev1.EndpointAddress, oldIPs []string, p *field.Path) field.ErrorList {
	errs := validation.IsValidIPForLegacyField(p.Child("ip"), a.IP, true, oldIPs)
	if len(errs) == 0 {
		errs = check.OrdinaryIP(p.Child("ip"), a.IP)
	}
	if a.Hostname != "" {
		errs = append(errs, check.Label(p.Child("hostname"), a.Hostname)...)
	}
	if a.NodeName != nil {
		errs = append(errs, check.Messages(p.Child("nodeName"), *a.NodeName, apivalidation.NameIsDNSSubdomain(*a.NodeName, false))...)
	}
	return errs
}

func validateEndpointPort(port *corev1.EndpointPort, named bool, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case port.Name != "":
		errs = append(errs, check.Label(p.Child("name"), port.Name)...)
	case named:
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	errs = append(errs, check.Port(p.Child("port"), port.Port)...)
	errs = append(errs, check.OneOf(p.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	if port.AppProtocol != nil {
		errs = append(errs, check.QualifiedName(p.Child("appProtocol"), *port.AppProtocol)...)
	}
	return errs
}
