package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// syncClusterIPs keeps spec.clusterIP and spec.clusterIPs[0] the same where a
// client that knows only the older field left the other behind. What it can't
// explain so is left for validation. Old is nil on create.
func syncClusterIPs(s, old *corev1.Service) {
	now := &s.Spec
	if old == nil {
		if now.ClusterIP != "" && len(now.ClusterIPs) == 0 {
			now.ClusterIPs = []string{now.ClusterIP}
		}
		return
	}
	was := &old.Spec
	if now.ClusterIP == was.ClusterIP {
		return
	}
	switch {
	case !slices.Equal(now.ClusterIPs, was.ClusterIPs):
		// The client set both.
	case now.ClusterIP == "":
		now.ClusterIPs = nil
	case len(now.ClusterIPs) == 0:
		now.ClusterIPs = []string{now.ClusterIP}
	default:
		now.ClusterIPs = append([]string{now.ClusterIP}, now.ClusterIPs[1:]...)
	}
}

// keepAllocated fills in what the server chose earlier and the client did not
// repeat, so that a manifest can be applied again.
func keepAllocated(s, old *corev1.Service) {
	now, was := &s.Spec, &old.Spec
	if needsClusterIP(s) && needsClusterIP(old) {
		if now.ClusterIP == "" {
			now.ClusterIP = was.ClusterIP
		}
		if len(now.ClusterIPs) == 0 && now.ClusterIP == was.ClusterIP {
			now.ClusterIPs = slices.Clone(was.ClusterIPs)
		}
	}
	if needsNodePort(s) && needsNodePort(old) {
		before := map[string]int32{} // by name of the port
		for _, p := range was.Ports {
			before[p.Name] = p.NodePort
		}
		given := nodePorts(s)
		for i := range now.Ports {
			if p := &now.Ports[i]; p.NodePort == 0 && !slices.Contains(given, before[p.Name]) {
				p.NodePort = before[p.Name]
			}
		}
	}
	if needsHealthCheckPort(s) && needsHealthCheckPort(old) && now.HealthCheckNodePort == 0 {
		now.HealthCheckNodePort = was.HealthCheckNodePort
	}
}

// dropLeftovers clears fields that the new type does not have and the client
// did not touch: whoever changes only the type need not clear the rest.
func dropLeftovers(s, old *corev1.Service) {
	now, was := &s.Spec, &old.Spec
	if needsClusterIP(old) && !needsClusterIP(s) {
		if now.ClusterIP == was.ClusterIP && slices.Equal(now.ClusterIPs, was.ClusterIPs) {
			now.ClusterIP, now.ClusterIPs = "", nil
		}
		if slices.Equal(now.IPFamilies, was.IPFamilies) {
			now.IPFamilies = nil
		}
		if ptr.Equal(now.IPFamilyPolicy, was.IPFamilyPolicy) {
			now.IPFamilyPolicy = nil
		}
	}
	if needsNodePort(old) && !needsNodePort(s) && subset(nodePorts(s), nodePorts(old)) {
		for i := range now.Ports {
			now.Ports[i].NodePort = 0
		}
	}
	if needsHealthCheckPort(old) && !needsHealthCheckPort(s) && now.HealthCheckNodePort == was.HealthCheckNodePort {
		now.HealthCheckNodePort = 0
	}
	if isLoadBalancer(old) && !isLoadBalancer(s) {
		if ptr.Equal(now.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			now.AllocateLoadBalancerNodePorts = nil
		}
		if ptr.Equal(now.LoadBalancerClass, was.LoadBalancerClass) {
			now.LoadBalancerClass = nil
		}
	}
	if externallyAccessible(old) && !externallyAccessible(s) && now.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		now.ExternalTrafficPolicy = ""
	}
}

// nodePorts lists the node ports of the Service's ports that are set.
func nodePorts(s *corev1.Service) []int32 {
	var out []int32
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, p.NodePort)
		}
	}
	return out
}

func subset(a, b []int32) bool {
	for _, n := range a {
		if !slices.Contains(b, n) {
			return false
		}
	}
	return true
}
