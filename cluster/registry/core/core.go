// Package core serves the kinds of the core group (v1): defaults, validation,
// printed columns, and for Services the allocation of addresses and ports.
//
// Limits: one IP family (IPv4); ComponentStatus is not served.
package core

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/allocator"
)

// Config is what the group needs beyond registry.Options.
type Config struct {
	// ServiceCIDR is where ClusterIPs come from; IPv4 only.
	ServiceCIDR netip.Prefix
	// NodePorts is where node ports come from. Zero means 30000-32767.
	NodePorts utilnet.PortRange
	// Reservations keeps addresses and ports unique over all servers.
	Reservations allocator.Reservations
	// ServiceAccountToken serves serviceaccounts/token when not nil.
	ServiceAccountToken rest.Storage
	// Pods is for the subresources of pods that reach nodes.
	Pods PodConfig
}

func gvr(resource string) schema.GroupVersionResource {
	return corev1.SchemeGroupVersion.WithResource(resource)
}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	return addPodDefaults(s)
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, cfg Config) (map[string]rest.Storage, error) {
	if cfg.Reservations == nil {
		return nil, fmt.Errorf("storage of the core group: Config.Reservations is missing")
	}
	m := map[string]rest.Storage{}
	if err := podStorage(o, cfg, m); err != nil {
		return nil, err
	}
	return m, nil
}
