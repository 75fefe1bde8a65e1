// Package core serves the kinds of the core group (v1): defaults, validation,
// printed columns, and for Services the allocation of addresses and ports.
//
// Limits: one IP family (IPv4); ComponentStatus is not served. LimitRanges are
// enforced by admission, which refuses new ResourceQuotas: nothing enforces them.
package core

import (
	"errors"
	"fmt"
	"log/slog"
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
	// Logger is slog.Default when nil.
	Logger *slog.Logger
}

func gvr(resource string) schema.GroupVersionResource {
	return corev1.SchemeGroupVersion.WithResource(resource)
}

// defaults registers fn for the type T.
func defaults[T any, P interface {
	*T
	runtime.Object
}](s *runtime.Scheme, fn func(P)) {
	s.AddTypeDefaultingFunc(P(new(T)), func(obj any) { fn(obj.(P)) })
}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	defaults(s, setServiceDefaults)
	defaults(s, setNamespaceDefaults)
	defaults(s, setNodeDefaults)
	defaults(s, setEndpointsDefaults)
	defaults(s, setSecretDefaults)
	defaults(s, setLimitRangeDefaults)
	defaults(s, setVolumeDefaults)
	defaults(s, setClaimDefaults)
	return addPodDefaults(s)
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, cfg Config) (map[string]rest.Storage, error) {
	if cfg.Reservations == nil {
		return nil, errors.New("storage of the core group: Config.Reservations is missing")
	}
	if cfg.NodePorts.Size == 0 {
		cfg.NodePorts = utilnet.PortRange{Base: 30000, Size: 2768}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m := map[string]rest.Storage{}
	for _, k := range []registry.Kind{nodeKind, endpointsKind, configMapKind, secretKind, serviceAccountKind, EventKind,
		limitRangeKind, resourceQuotaKind, volumeKind, claimKind} {
		if _, err := k.AddTo(m, o); err != nil {
			return nil, err
		}
	}
	if cfg.ServiceAccountToken != nil {
		m["serviceaccounts/token"] = cfg.ServiceAccountToken
	}
	for _, add := range []func(registry.Options, Config, map[string]rest.Storage) error{namespaceStorage, serviceStorage, podStorage} {
		if err := add(o, cfg, m); err != nil {
			return nil, fmt.Errorf("storage of the core group: %w", err)
		}
	}
	return m, nil
}
