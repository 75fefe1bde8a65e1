// Package discovery serves the discovery.k8s.io group: EndpointSlices.
package discovery

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// shown is how many entries the PORTS and ENDPOINTS cells list.
const shown = 3

// Config is what the group needs beyond registry.Options.
type Config struct{}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	s.AddTypeDefaultingFunc(&discoveryv1.EndpointSlice{}, func(obj any) { setDefaults(obj.(*discoveryv1.EndpointSlice)) })
	return nil
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	if _, err := sliceKind.AddTo(m, o); err != nil {
		return nil, err
	}
	return m, nil
}

func setDefaults(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil {
			p.Name = ptr.To("")
		}
		if p.Protocol == nil {
			p.Protocol = ptr.To(corev1.ProtocolTCP)
		}
	}
}

var sliceKind = registry.Kind{
	Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), Singular: "endpointslice",
	Object: &discoveryv1.EndpointSlice{}, List: &discoveryv1.EndpointSliceList{},
	PrepareForCreate: func(_ context.Context, obj runtime.Object) { obj.(*discoveryv1.EndpointSlice).Generation = 1 },
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		s, was := obj.(*discoveryv1.EndpointSlice), old.(*discoveryv1.EndpointSlice)
		if !registry.SemanticEqual(s.Endpoints, was.Endpoints) || !registry.SemanticEqual(s.Ports, was.Ports) ||
			!registry.SemanticEqual(s.Labels, was.Labels) || s.AddressType != was.AddressType {
			s.Generation = was.Generation + 1
		}
	},
	Validate:       validate,
	ValidateUpdate: validateUpdate,
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the EndpointSlice"),
		registry.Column("AddressType", "What kind of addresses it has"),
		registry.Column("Ports", "Ports of its endpoints"),
		registry.Column("Endpoints", "Addresses of its endpoints"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		s := obj.(*discoveryv1.EndpointSlice)
		var ports, addresses []string
		for _, p := range s.Ports {
			switch {
			case p.Port != nil:
				ports = append(ports, strconv.Itoa(int(*p.Port)))
			case p.Name != nil:
				ports = append(ports, *p.Name)
			default:
				ports = append(ports, "*")
			}
		}
		for _, e := range s.Endpoints {
			addresses = append(addresses, e.Addresses...)
		}
		return []any{s.Name, string(s.AddressType), short(ports), short(addresses), registry.Age(s.CreationTimestamp)}
	},
}

func short(list []string) string {
	if len(list) > shown {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:shown], ","), len(list)-shown)
	}
	if s := strings.Join(list, ","); s != "" {
		return s
	}
	return "<unset>"
}
