package dns

import (
	"fmt"
	"net/netip"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// Names of the indexes that the informers must have.
const (
	ByClusterIP  = "clusterIP"       // Services
	ByService    = "service"         // EndpointSlices by namespace/name
	ByHeadlessIP = "headlessAddress" // EndpointSlices of headless services by address
)

// IndexByClusterIP is the index function of ByClusterIP.
func IndexByClusterIP(obj any) ([]string, error) {
	s, ok := obj.(*v1.Service)
	if !ok {
		return nil, fmt.Errorf("index by cluster IP: %T is no Service", obj)
	}
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone {
		return nil, nil
	}
	return []string{s.Spec.ClusterIP}, nil
}

// IndexByHeadlessIP is the index function of ByHeadlessIP.
func IndexByHeadlessIP(obj any) ([]string, error) {
	s, ok := obj.(*discovery.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("index by address: %T is no EndpointSlice", obj)
	}
	if _, headless := s.Labels[v1.IsHeadlessService]; !headless {
		return nil, nil
	}
	var out []string
	for i := range s.Endpoints {
		out = append(out, s.Endpoints[i].Addresses...)
	}
	return out, nil
}

// source reads the caches.
type source struct {
	services cache.Indexer
	slices   cache.Indexer
}

func (s source) service(ns, name string) *v1.Service {
	obj, ok, err := s.services.GetByKey(ns + "/" + name)
	if err != nil || !ok {
		return nil
	}
	return obj.(*v1.Service)
}

func (s source) hasNamespace(ns string) bool {
	keys, err := s.services.IndexKeys(cache.NamespaceIndex, ns)
	return err == nil && len(keys) > 0
}

func (s source) serviceByIP(ip string) *v1.Service {
	objs, err := s.services.ByIndex(ByClusterIP, ip)
	if err != nil || len(objs) == 0 {
		return nil
	}
	return objs[0].(*v1.Service)
}

func isHeadless(svc *v1.Service) bool { return svc.Spec.ClusterIP == v1.ClusterIPNone }

// endpoint is one address behind a headless service.
type endpoint struct {
	addr  netip.Addr
	host  string // its name below the service
	ports []discovery.EndpointPort
}

// endpoints returns the ready endpoints of a service, each address once per
// slice port list.
func (s source) endpoints(ns, name string) []endpoint {
	objs, err := s.slices.ByIndex(ByService, ns+"/"+name)
	if err != nil {
		return nil
	}
	var out []endpoint
	for _, o := range objs {
		es := o.(*discovery.EndpointSlice)
		if es.AddressType != discovery.AddressTypeIPv4 {
			continue
		}
		for i := range es.Endpoints {
			e := &es.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, a := range e.Addresses {
				if addr, err := netip.ParseAddr(a); err == nil && addr.Is4() {
					out = append(out, endpoint{addr: addr, host: endpointHost(e, addr), ports: es.Ports})
				}
			}
		}
	}
	return out
}

func endpointHost(e *discovery.Endpoint, addr netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return *e.Hostname
	}
	return strings.ReplaceAll(addr.String(), ".", "-")
}

// endpointNames returns the names that an address has below headless services.
func (s source) endpointNames(addr netip.Addr) []string {
	objs, err := s.slices.ByIndex(ByHeadlessIP, addr.String())
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range objs {
		es := o.(*discovery.EndpointSlice)
		for i := range es.Endpoints {
			e := &es.Endpoints[i]
			for _, a := range e.Addresses {
				if a == addr.String() {
					out = append(out, endpointHost(e, addr)+"."+es.Labels[discovery.LabelServiceName]+"."+es.Namespace+".svc.")
				}
			}
		}
	}
	return out
}
