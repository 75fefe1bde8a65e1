package discovery

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func slice(change ...func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}},
		Ports:     []discoveryv1.EndpointPort{{Port: ptr.To(int32(80))}}}
	s.Name, s.Namespace = "x", "default"
	for _, c := range change {
		c(s)
	}
	return s
}

func TestEndpointSlices(t *testing.T) {
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := registrytest.Context("default", discoveryv1.SchemeGroupVersion.WithResource("endpointslices"))
	for _, c := range []struct {
		change func(*discoveryv1.EndpointSlice)
		want   string
	}{
		{func(s *discoveryv1.EndpointSlice) { s.AddressType = "" }, "addressType: Required value"},
		{func(s *discoveryv1.EndpointSlice) { s.AddressType = "X25" }, `addressType: Unsupported value: "X25": supported values: "FQDN", "IPv4", "IPv6"`},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = nil }, "endpoints[0].addresses: Required value: must contain at least 1 address"},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "fd00::1" }, `endpoints[0].addresses[0]: Invalid value: "fd00::1": must be an IPv4 address`},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.0.0" }, `endpoints[0].addresses[0]: Invalid value: "10.0.0": must be a valid IP address`},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "169.254.0.1" }, "may not be in the link-local range"},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints = make([]discoveryv1.Endpoint, 1001) }, "endpoints: Too many: 1001: must have at most 1000 items"},
		{func(s *discoveryv1.EndpointSlice) { s.Ports = append(s.Ports, s.Ports[0]) }, `ports[1].name: Duplicate value: ""`},
		{func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = ptr.To(corev1.Protocol("ICMP")) }, `ports[0].protocol: Unsupported value: "ICMP"`},
		{func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Hostname = ptr.To("a.b") }, "endpoints[0].hostname: Invalid value"},
	} {
		if _, err := env.Create(ctx, m["endpointslices"], slice(c.change)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	obj, err := env.Create(ctx, m["endpointslices"], slice())
	if err != nil {
		t.Fatal(err)
	}
	s := obj.(*discoveryv1.EndpointSlice)
	if *s.Ports[0].Name != "" || *s.Ports[0].Protocol != "TCP" || s.Generation != 1 {
		t.Errorf("created %+v", s)
	}
	more := s.DeepCopy()
	more.Endpoints = append(more.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.2", "10.0.0.3", "10.0.0.4"}})
	if obj, err = env.Update(ctx, m["endpointslices"], more); err != nil || obj.(*discoveryv1.EndpointSlice).Generation != 2 {
		t.Errorf("updated %v, %v", obj, err)
	}
	columns, cells := registrytest.Cells(t, m["endpointslices"], obj)
	if got := strings.Join(columns, "|"); got != "Name|AddressType|Ports|Endpoints|Age" {
		t.Errorf("columns %s", got)
	}
	if got := fmt.Sprint(cells[:4]); got != "[x IPv4 80 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...]" {
		t.Errorf("row %s", got)
	}
	if _, cells := registrytest.Cells(t, m["endpointslices"], &discoveryv1.EndpointSlice{}); cells[2] != "<unset>" || cells[3] != "<unset>" {
		t.Errorf("row of an empty slice %v", cells)
	}
	other := obj.DeepCopyObject().(*discoveryv1.EndpointSlice)
	other.AddressType = discoveryv1.AddressTypeFQDN
	if _, err := env.Update(ctx, m["endpointslices"], other); err == nil || !strings.Contains(err.Error(), `addressType: Invalid value: "FQDN": field is immutable`) {
		t.Errorf("error %v", err)
	}
}
