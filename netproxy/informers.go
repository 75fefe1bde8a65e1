package netproxy

import (
	"fmt"

	"github.com/skiff-sh/skiff/netproxy/dns"
	"github.com/skiff-sh/skiff/netproxy/service"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// caches are the objects that this node follows.
type caches struct {
	factory  informers.SharedInformerFactory
	services cache.SharedIndexInformer
	slices   cache.SharedIndexInformer
	nodes    cache.SharedIndexInformer
}

func newCaches(client kubernetes.Interface) (*caches, error) {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	c := &caches{
		factory:  f,
		services: f.Core().V1().Services().Informer(),
		slices:   f.Discovery().V1().EndpointSlices().Informer(),
		nodes:    f.Core().V1().Nodes().Informer(),
	}
	if err := c.services.AddIndexers(cache.Indexers{dns.ByClusterIP: dns.IndexByClusterIP}); err != nil {
		return nil, fmt.Errorf("index services: %w", err)
	}
	if err := c.slices.AddIndexers(cache.Indexers{
		service.ByService: service.IndexByService,
		dns.ByHeadlessIP:  dns.IndexByHeadlessIP,
	}); err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	return c, nil
}

// slim drops what this package never reads, before it is kept.
func slim(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
		m.SetOwnerReferences(nil)
		m.SetFinalizers(nil)
	}
	switch o := obj.(type) {
	case *v1.Service:
		o.Spec.Selector = nil
		o.Status.Conditions = nil
	case *discovery.EndpointSlice:
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			e.TargetRef, e.DeprecatedTopology, e.Zone = nil, nil, nil
		}
	case *v1.Node:
		o.Status = v1.NodeStatus{Addresses: o.Status.Addresses}
		o.Spec = v1.NodeSpec{PodCIDR: o.Spec.PodCIDR}
	}
	return obj, nil
}
