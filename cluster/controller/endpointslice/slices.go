package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// syncSlices brings the slices of one Service up to date. Those of a deleted
// Service go by their owner reference.
func (c *Controller) syncSlices(ctx context.Context, key string) error {
	svc, err := c.service(key)
	if err != nil {
		return err
	}
	if svc == nil {
		c.written.forget(key)
		return nil
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return nil
	}
	existing, err := c.slicesOf(key, managedBySlices)
	if err != nil {
		return err
	}
	if !c.written.seen(key, existing) {
		c.sliceLoop.AddAfter(key, trackerPatience) // the event of what was written comes sooner
		return nil
	}
	pods, err := c.selected(svc)
	if err != nil {
		return err
	}
	owner := *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))
	template := sliceTemplate(svc.Namespace, svc.Name, labelsOf(svc), managedBySlices, owner)
	return c.apply(ctx, key, decide(template, gather(svc, pods, c.zone), existing, families(svc)))
}

func (c *Controller) zone(node string) string {
	n, err := c.nodes.Get(node)
	if err != nil {
		return ""
	}
	return n.Labels[corev1.LabelTopologyZone]
}

// labelsOf are the labels that a Service hands down.
func labelsOf(svc *corev1.Service) map[string]string {
	out := map[string]string{}
	for k, v := range svc.Labels {
		switch k {
		case corev1.IsHeadlessService, discoveryv1.LabelManagedBy, discoveryv1.LabelServiceName:
		default:
			out[k] = v
		}
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out[corev1.IsHeadlessService] = ""
	}
	return out
}

func sliceTemplate(namespace, service string, labels map[string]string, manager string, owner metav1.OwnerReference) *discoveryv1.EndpointSlice {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[discoveryv1.LabelServiceName] = service
	labels[discoveryv1.LabelManagedBy] = manager
	prefix := service + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) > 0 {
		prefix = service
	}
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		GenerateName: prefix, Namespace: namespace, Labels: labels,
		OwnerReferences: []metav1.OwnerReference{owner},
	}}
}

// apply writes a plan. New places come before old ones go, so that no reader
// sees an endpoint missing that only moves.
func (c *Controller) apply(ctx context.Context, key string, p plan) error {
	var errs []error
	for _, s := range p.create {
		made, err := c.cfg.Client.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, s, metav1.CreateOptions{})
		switch {
		case err == nil:
			c.written.wrote(key, made)
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return nil
		default:
			errs = append(errs, fmt.Errorf("create slice of %s: %w", key, err))
		}
	}
	for _, s := range p.update {
		saved, err := c.cfg.Client.DiscoveryV1().EndpointSlices(s.Namespace).Update(ctx, s, metav1.UpdateOptions{})
		switch {
		case err == nil:
			c.written.wrote(key, saved)
		case !apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("update slice %s of %s: %w", s.Name, key, err))
		}
	}
	for _, s := range p.remove {
		err := c.cfg.Client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete slice %s of %s: %w", s.Name, key, err))
			continue
		}
		c.written.removed(key, s)
	}
	return errors.Join(errs...)
}
