package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// ensureServices makes the services of the API and of DNS (which has no
// endpoints: every node answers its address itself) and brings the API's
// endpoints up to date.
func (s *Server) ensureServices(ctx context.Context, client kubernetes.Interface) error {
	api := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default",
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: s.cfg.serviceAddress(1).String(), Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(int32(s.cfg.Port))}},
		},
	}
	dns := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: "kube-system",
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: s.cfg.serviceAddress(10).String(), Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
	for _, svc := range []*corev1.Service{api, dns} {
		if err := ensure(ctx, client.CoreV1().Services(svc.Namespace), svc); err != nil {
			return fmt.Errorf("service %s/%s: %w", svc.Namespace, svc.Name, err)
		}
	}
	if err := s.reconcileEndpoints(ctx, client); err != nil {
		return fmt.Errorf("endpoints of the API: %w", err)
	}
	return nil
}

// serverAddresses are those of all voters: each serves the API on the same port.
func (s *Server) serverAddresses() []string {
	var out []string
	for _, v := range s.node.Stats().Voters {
		if v.ID == s.id {
			continue
		}
		if host, _, err := net.SplitHostPort(v.Addr); err == nil {
			out = append(out, host)
		}
	}
	out = append(out, s.cfg.AdvertiseAddress.String())
	slices.Sort(out)
	return slices.Compact(out)
}

// reconcileEndpoints writes Endpoints and EndpointSlice of the service
// "kubernetes" if they differ from what they should be.
func (s *Server) reconcileEndpoints(ctx context.Context, client kubernetes.Interface) error {
	if s.cfg.AdvertiseAddress.IsLoopback() {
		return nil // the API refuses loopback addresses in endpoints: no pod could reach them
	}
	addresses := s.serverAddresses()
	endpoints := &corev1.Endpoints{ //nolint:staticcheck // clients still read it
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default",
			Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Name: "https", Port: int32(s.cfg.Port), Protocol: corev1.ProtocolTCP}}}},
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default",
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(int32(s.cfg.Port)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	if s.cfg.AdvertiseAddress.Is6() {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, a := range addresses {
		endpoints.Subsets[0].Addresses = append(endpoints.Subsets[0].Addresses, corev1.EndpointAddress{IP: a})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
	}
	if err := apply(ctx, client.CoreV1().Endpoints("default"), endpoints, func(have *corev1.Endpoints) bool {
		if equality.Semantic.DeepEqual(have.Subsets, endpoints.Subsets) {
			return false
		}
		have.Subsets = endpoints.Subsets
		return true
	}); err != nil {
		return err
	}
	return apply(ctx, client.DiscoveryV1().EndpointSlices("default"), slice, func(have *discoveryv1.EndpointSlice) bool {
		if equality.Semantic.DeepEqual(have.Ports, slice.Ports) && equality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) {
			return false
		}
		have.Ports, have.Endpoints = slice.Ports, slice.Endpoints
		return true
	})
}

type updater[T any] interface {
	creator[T]
	Update(ctx context.Context, obj T, o metav1.UpdateOptions) (T, error)
}

// apply creates want, or updates what there is if change says it has changed it.
func apply[T metav1.Object](ctx context.Context, c updater[T], want T, change func(have T) bool) error {
	have, err := c.Get(ctx, want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = c.Create(ctx, want, metav1.CreateOptions{})
		return err
	}
	if err != nil || !change(have) {
		return err
	}
	_, err = c.Update(ctx, have, metav1.UpdateOptions{})
	return err
}
