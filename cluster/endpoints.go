package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// endpointsCheck is how often the endpoints of the API are looked at without a
// reason: somebody else may have written them.
const endpointsCheck = time.Minute

// keepEndpoints keeps the endpoints of the service "kubernetes" at the servers
// that are alive.
func (s *Server) keepEndpoints(ctx context.Context, client kubernetes.Interface) error {
	if err := s.awaitFoundation(ctx); err != nil {
		return nil // stopped meanwhile
	}
	changes, cancel := s.peersChanged.Changes()
	defer cancel()
	for {
		s.untilDone(ctx, "endpoints of the API", func(ctx context.Context) error { return reconcileEndpoints(ctx, client, s.servingPeers()) })
		select {
		case <-changes:
		case <-time.After(endpointsCheck):
		case <-ctx.Done():
			return nil
		}
	}
}

// servingPeers are the servers that are alive, this one always included.
func (s *Server) servingPeers() []membership.Server {
	out := []membership.Server{s.self()}
	for _, p := range s.peers() {
		if p.Role.Votes() && p.State == membership.Alive && p.ID != s.id && !s.members.Removed(p.ID) {
			out = append(out, p.Server)
		}
	}
	return out
}

// byPort gives the addresses for each port; usually all have the same. Loopback
// addresses are left out: no pod could reach them, and the API refuses them.
func byPort(list []membership.Server) map[int32][]string {
	out := map[int32][]string{}
	for _, m := range list {
		if !m.Address.IsLoopback() {
			out[int32(m.APIPort)] = append(out[int32(m.APIPort)], m.Address.String())
		}
	}
	for port, addresses := range out {
		slices.Sort(addresses)
		out[port] = slices.Compact(addresses)
	}
	return out
}

// reconcileEndpoints writes Endpoints and EndpointSlices of the service
// "kubernetes" if they differ from what they should be.
func reconcileEndpoints(ctx context.Context, client kubernetes.Interface, list []membership.Server) error {
	addresses := byPort(list)
	if len(addresses) == 0 {
		return nil
	}
	ports := slices.Sorted(maps.Keys(addresses))
	endpoints := &corev1.Endpoints{ //nolint:staticcheck // clients still read it
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default",
			Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
	}
	wanted := map[string]bool{}
	for i, port := range ports {
		subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: port, Protocol: corev1.ProtocolTCP}}}
		for _, a := range addresses[port] {
			subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: a})
		}
		endpoints.Subsets = append(endpoints.Subsets, subset)
		slice := apiSlice(port, addresses[port])
		if i > 0 {
			slice.Name = fmt.Sprintf("kubernetes-%d", port)
		}
		wanted[slice.Name] = true
		if err := applySlice(ctx, client, slice); err != nil {
			return err
		}
	}
	// The API orders subsets its own way.
	byFirst := func(a, b corev1.EndpointSubset) int { return cmp.Compare(a.Ports[0].Port, b.Ports[0].Port) }
	if err := apply(ctx, client.CoreV1().Endpoints("default"), endpoints, func(have *corev1.Endpoints) bool {
		got := slices.Clone(have.Subsets)
		if !slices.ContainsFunc(got, func(s corev1.EndpointSubset) bool { return len(s.Ports) == 0 }) {
			slices.SortFunc(got, byFirst)
		}
		if equality.Semantic.DeepEqual(got, endpoints.Subsets) {
			return false
		}
		have.Subsets = endpoints.Subsets
		return true
	}); err != nil {
		return err
	}
	return dropSlices(ctx, client, wanted)
}

func apiSlice(port int32, addresses []string) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default",
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(port), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	if strings.Contains(addresses[0], ":") {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
	}
	return slice
}

func applySlice(ctx context.Context, client kubernetes.Interface, slice *discoveryv1.EndpointSlice) error {
	return apply(ctx, client.DiscoveryV1().EndpointSlices("default"), slice, func(have *discoveryv1.EndpointSlice) bool {
		if equality.Semantic.DeepEqual(have.Ports, slice.Ports) && equality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) {
			return false
		}
		have.Ports, have.Endpoints = slice.Ports, slice.Endpoints
		return true
	})
}

// dropSlices deletes slices of ports that no server has any more.
func dropSlices(ctx context.Context, client kubernetes.Interface, wanted map[string]bool) error {
	slices := client.DiscoveryV1().EndpointSlices("default")
	list, err := slices.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes", ResourceVersion: "0"})
	if err != nil {
		return err
	}
	for _, e := range list.Items {
		if strings.HasPrefix(e.Name, "kubernetes-") && !wanted[e.Name] {
			if err := slices.Delete(ctx, e.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}
