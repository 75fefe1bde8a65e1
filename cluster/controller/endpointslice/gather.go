package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// group is a set of endpoints that listen on the same ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint // sorted by address
}

func (g group) key() string { return string(g.family) + portsKey(g.ports) }

// portsKey identifies a set of ports whatever their order.
func portsKey(ports []discoveryv1.EndpointPort) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = fmt.Sprintf("|%s/%s/%d/%s", deref(p.Name), deref(p.Protocol), deref(p.Port), deref(p.AppProtocol))
	}
	slices.Sort(parts)
	return strings.Join(parts, "")
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// gather sorts the pods of a Service into groups, one for each set of ports that
// they resolve to and each address family of the Service.
func gather(svc *corev1.Service, pods []*corev1.Pod, zoneOf func(node string) string) []group {
	byKey := map[string]*group{}
	for _, family := range families(svc) {
		for _, pod := range pods {
			if controller.Finished(pod) {
				continue
			}
			addresses := addressesOf(pod, family)
			if len(addresses) == 0 {
				continue
			}
			g := group{family: family, ports: portsOf(svc, pod)}
			key := g.key()
			if byKey[key] == nil {
				byKey[key] = &g
			}
			byKey[key].endpoints = append(byKey[key].endpoints, endpointOf(svc, pod, addresses, zoneOf))
		}
	}
	var out []group
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		g := byKey[key]
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(identity(a), identity(b)) })
		out = append(out, *g)
	}
	return out
}

// identity tells endpoints apart: the pod, or else the address.
func identity(e discoveryv1.Endpoint) string {
	id := strings.Join(e.Addresses, ",")
	if e.TargetRef != nil {
		id += "/" + string(e.TargetRef.UID) + "/" + e.TargetRef.Name
	}
	return id
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out = append(out, discoveryv1.AddressTypeIPv6)
		} else {
			out = append(out, discoveryv1.AddressTypeIPv4)
		}
	}
	if len(out) > 0 {
		return out
	}
	return []discoveryv1.AddressType{familyOf(svc.Spec.ClusterIP)}
}

// familyOf tells by an address; IPv4 for what is none.
func familyOf(address string) discoveryv1.AddressType {
	if a, err := netip.ParseAddr(address); err == nil && a.Is6() && !a.Is4In6() {
		return discoveryv1.AddressTypeIPv6
	}
	return discoveryv1.AddressTypeIPv4
}

func addressesOf(pod *corev1.Pod, family discoveryv1.AddressType) []string {
	var out []string
	for _, ip := range pod.Status.PodIPs {
		if familyOf(ip.IP) == family {
			out = append(out, ip.IP)
		}
	}
	if len(pod.Status.PodIPs) == 0 && pod.Status.PodIP != "" && familyOf(pod.Status.PodIP) == family {
		out = append(out, pod.Status.PodIP)
	}
	return out
}

func endpointOf(svc *corev1.Service, pod *corev1.Pod, addresses []string, zoneOf func(string) string) discoveryv1.Endpoint {
	serving := controller.Ready(pod)
	terminating := pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  addresses,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if node := pod.Spec.NodeName; node != "" {
		e.NodeName = &node
		if zone := zoneOf(node); zone != "" {
			e.Zone = &zone
		}
	}
	if named(svc, pod) {
		e.Hostname = &pod.Spec.Hostname
	}
	return e
}

// named reports whether a pod has a DNS name of its own below the Service.
func named(svc *corev1.Service, pod *corev1.Pod) bool {
	return pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name && pod.Namespace == svc.Namespace
}

// portsOf are the Service's ports as this pod resolves them. A port that the pod
// has no container port for is left out.
func portsOf(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number, ok := resolve(p, pod)
		if !ok {
			continue
		}
		name, protocol := p.Name, p.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		out = append(out, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &protocol, AppProtocol: p.AppProtocol})
	}
	return out
}

// resolve finds the number behind a target port.
func resolve(p *corev1.ServicePort, pod *corev1.Pod) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port, true
		}
		return p.TargetPort.IntVal, true
	}
	find := func(containers []corev1.Container, sidecarsOnly bool) (int32, bool) {
		for i := range containers {
			c := &containers[i]
			if sidecarsOnly && deref(c.RestartPolicy) != corev1.ContainerRestartPolicyAlways {
				continue
			}
			for _, port := range c.Ports {
				protocol := cmp.Or(port.Protocol, corev1.ProtocolTCP)
				if port.Name == p.TargetPort.StrVal && protocol == cmp.Or(p.Protocol, corev1.ProtocolTCP) {
					return port.ContainerPort, true
				}
			}
		}
		return 0, false
	}
	if n, ok := find(pod.Spec.Containers, false); ok {
		return n, true
	}
	return find(pod.Spec.InitContainers, true)
}
