package endpointslice

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// managedEndpoints marks Endpoints that are made here.
	managedEndpoints     = "endpoints.kubernetes.io/managed-by"
	managedEndpointsName = "endpoint-controller"
	// maxAddresses is how many addresses an Endpoints object holds; more are cut
	// off, and overCapacity says so.
	maxAddresses = 1000
)

// syncEndpoints brings the Endpoints of one Service up to date.
func (c *Controller) syncEndpoints(ctx context.Context, key string) error {
	svc, err := c.service(key)
	if err != nil {
		return err
	}
	if svc == nil {
		return c.removeEndpoints(ctx, key)
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil // written by hand
	}
	pods, err := c.selected(svc)
	if err != nil {
		return err
	}
	want := endpointsFor(svc, pods)
	have, err := c.endpoints.Endpoints(svc.Namespace).Get(svc.Name)
	if apierrors.IsNotFound(err) {
		_, err = c.cfg.Client.CoreV1().Endpoints(svc.Namespace).Create(ctx, want, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil // one that exists comes by the informer
		}
		return fmt.Errorf("create endpoints %s: %w", key, err)
	}
	if err != nil {
		return fmt.Errorf("read endpoints %s: %w", key, err)
	}
	if maps.Equal(have.Labels, want.Labels) && equality.Semantic.DeepEqual(have.Subsets, want.Subsets) &&
		have.Annotations[corev1.EndpointsOverCapacity] == want.Annotations[corev1.EndpointsOverCapacity] {
		return nil
	}
	changed := have.DeepCopy()
	changed.Labels, changed.Subsets = want.Labels, want.Subsets
	delete(changed.Annotations, corev1.EndpointsOverCapacity)
	for k, v := range want.Annotations {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, k, v)
	}
	if _, err := c.cfg.Client.CoreV1().Endpoints(svc.Namespace).Update(ctx, changed, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update endpoints %s: %w", key, err)
	}
	return nil
}

// removeEndpoints deletes what was made for a Service that is gone.
func (c *Controller) removeEndpoints(ctx context.Context, key string) error {
	e, err := c.endpointsAt(key)
	if e == nil || err != nil {
		return err
	}
	if e.Labels[managedEndpoints] != managedEndpointsName {
		return nil
	}
	err = c.cfg.Client.CoreV1().Endpoints(e.Namespace).Delete(ctx, e.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(e.UID))})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete endpoints %s: %w", key, err)
	}
	return nil
}

// endpointsFor computes the Endpoints of a Service.
func endpointsFor(svc *corev1.Service, pods []*corev1.Pod) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: labelsOf(svc)}}
	e.Labels[managedEndpoints] = managedEndpointsName
	family := families(svc)[0]
	left := maxAddresses
	for _, g := range gather(svc, pods, func(string) string { return "" }) {
		if g.family != family || len(g.ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue
		}
		var s corev1.EndpointSubset
		for i := range g.endpoints {
			from := &g.endpoints[i]
			if *from.Conditions.Terminating && !svc.Spec.PublishNotReadyAddresses {
				continue
			}
			if left--; left < 0 {
				metav1.SetMetaDataAnnotation(&e.ObjectMeta, corev1.EndpointsOverCapacity, "truncated")
				break
			}
			a := corev1.EndpointAddress{IP: from.Addresses[0], Hostname: deref(from.Hostname), NodeName: from.NodeName, TargetRef: from.TargetRef}
			if *from.Conditions.Ready {
				s.Addresses = append(s.Addresses, a)
			} else {
				s.NotReadyAddresses = append(s.NotReadyAddresses, a)
			}
		}
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			continue
		}
		s.Ports = corePorts(g.ports)
		e.Subsets = append(e.Subsets, s)
	}
	return e
}

func corePorts(ports []discoveryv1.EndpointPort) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for _, p := range ports {
		out = append(out, corev1.EndpointPort{Name: deref(p.Name), Port: deref(p.Port), Protocol: deref(p.Protocol), AppProtocol: p.AppProtocol})
	}
	slices.SortFunc(out, func(a, b corev1.EndpointPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}
