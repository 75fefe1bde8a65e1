package endpointslice

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// leaderAnnotation marks Endpoints that old programs use as a lock.
const leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"

func (c *Controller) endpointsAt(key string) (*corev1.Endpoints, error) {
	namespace, name := controller.SplitKey(key)
	e, err := c.endpoints.Endpoints(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read endpoints %s: %w", key, err)
	}
	return e, nil
}

// syncMirror copies Endpoints that were written by hand into slices.
func (c *Controller) syncMirror(ctx context.Context, key string) error {
	svc, err := c.service(key)
	if err != nil {
		return err
	}
	e, err := c.endpointsAt(key)
	if err != nil {
		return err
	}
	existing, err := c.slicesOf(key, managedByMirror)
	if err != nil {
		return err
	}
	mirrorKey := "mirror:" + key
	if !c.written.seen(mirrorKey, existing) {
		c.mirrorLoop.AddAfter(key, trackerPatience)
		return nil
	}
	if svc == nil || e == nil || len(svc.Spec.Selector) > 0 || !mirrored(e) {
		return c.apply(ctx, mirrorKey, plan{remove: existing})
	}
	labels := maps.Clone(e.Labels)
	delete(labels, managedEndpoints)
	owner := *metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))
	template := sliceTemplate(e.Namespace, e.Name, labels, managedByMirror, owner)
	return c.apply(ctx, mirrorKey, decide(template, mirrorGroups(e), existing, nil))
}

func mirrored(e *corev1.Endpoints) bool {
	_, lock := e.Annotations[leaderAnnotation]
	return !lock && e.Labels[discoveryv1.LabelSkipMirror] != "true" && e.Labels[managedEndpoints] != managedEndpointsName
}

// mirrorGroups reads Endpoints as groups.
func mirrorGroups(e *corev1.Endpoints) []group {
	byKey := map[string]*group{}
	for _, s := range e.Subsets {
		ports := slicePorts(s.Ports)
		add := func(a corev1.EndpointAddress, ready bool) {
			g := group{family: familyOf(a.IP), ports: ports}
			key := g.key()
			if byKey[key] == nil {
				byKey[key] = &g
			}
			to := discoveryv1.Endpoint{
				Addresses:  []string{a.IP},
				Conditions: discoveryv1.EndpointConditions{Ready: &ready},
				TargetRef:  a.TargetRef,
				NodeName:   a.NodeName,
			}
			if a.Hostname != "" {
				to.Hostname = &a.Hostname
			}
			byKey[key].endpoints = append(byKey[key].endpoints, to)
		}
		for _, a := range s.Addresses {
			add(a, true)
		}
		for _, a := range s.NotReadyAddresses {
			add(a, false)
		}
	}
	var out []group
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		g := byKey[key]
		slices.SortStableFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(identity(a), identity(b)) })
		g.endpoints = slices.CompactFunc(g.endpoints, func(a, b discoveryv1.Endpoint) bool { return identity(a) == identity(b) })
		out = append(out, *g)
	}
	return out
}

func slicePorts(ports []corev1.EndpointPort) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i := range ports {
		p := &ports[i]
		protocol := cmp.Or(p.Protocol, corev1.ProtocolTCP)
		out = append(out, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &protocol, AppProtocol: p.AppProtocol})
	}
	return out
}
