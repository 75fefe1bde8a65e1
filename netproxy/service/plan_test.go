package service

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var self = Self{NodeName: "n1", Zone: "z1", DNSAddr: netip.MustParseAddr("10.43.0.10")}

func ptr[T any](v T) *T { return &v }

// eps makes one slice of endpoints from words such as "1@n1", "2@n2/not",
// "3@n1/leaving", "4@n1/gone", "5@n1+z1" (zone hint), "6@n1=n1" (node hint).
func headlessSlice(s []*discovery.EndpointSlice) []*discovery.EndpointSlice {
	s[0].Labels = map[string]string{v1.IsHeadlessService: ""}
	return s
}

func eps(words ...string) []*discovery.EndpointSlice {
	s := &discovery.EndpointSlice{AddressType: discovery.AddressTypeIPv4,
		Ports: []discovery.EndpointPort{{Name: ptr("http"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))},
			{Name: ptr("other"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(9999))}}}
	for _, w := range words {
		w, state, _ := strings.Cut(w, "/")
		w, forNode, hasNode := strings.Cut(w, "=")
		w, zone, hasZone := strings.Cut(w, "+")
		num, node, _ := strings.Cut(w, "@")
		e := discovery.Endpoint{Addresses: []string{"10.42.0." + num}, NodeName: &node}
		switch state {
		case "not":
			e.Conditions = discovery.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(false)}
		case "leaving":
			e.Conditions = discovery.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
		case "gone":
			e.Conditions = discovery.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}
		}
		if hasZone {
			e.Hints = &discovery.EndpointHints{ForZones: []discovery.ForZone{{Name: zone}}}
		}
		if hasNode {
			e.Hints = &discovery.EndpointHints{ForNodes: []discovery.ForNode{{Name: forNode}}}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return []*discovery.EndpointSlice{s}
}

func web(change ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: v1.ServiceSpec{
		Type: v1.ServiceTypeNodePort, ClusterIP: "10.43.0.20",
		Ports: []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80, NodePort: 30080}}}}
	for _, c := range change {
		c(s)
	}
	return s
}

// describe writes a plan as lines "set key -> endpoints options".
func describe(p *Plan) []string {
	var out []string
	add := func(set string, m map[ruleset.Key]FrontendSpec) {
		for k, f := range m {
			var nums []string
			for _, ep := range p.Lists[f.List] {
				nums = append(nums, strings.TrimPrefix(strings.TrimSuffix(ep.String(), ":8080"), "10.42.0."))
			}
			line := set + " " + k.String() + " -> " + strings.Join(nums, " ")
			if f.Opts&ruleset.OptMasquerade != 0 {
				line += " masq"
			}
			if p.Sticky[f.List] {
				line += " sticky"
			}
			out = append(out, line)
		}
	}
	add("all", p.Frontends)
	add("outside", p.External)
	for set, keys := range p.Flags {
		for k := range keys {
			out = append(out, strings.TrimSuffix(set, "1")+" "+k.String())
		}
	}
	for _, r := range p.Refused {
		out = append(out, "refused "+r)
	}
	slices.Sort(out)
	return out
}

func TestPlan(t *testing.T) {
	etpLocal := func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal }
	itpLocal := func(s *v1.Service) { s.Spec.InternalTrafficPolicy = ptr(v1.ServiceInternalTrafficPolicyLocal) }
	clusterIP := func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeClusterIP; s.Spec.Ports[0].NodePort = 0 }
	balancer := func(s *v1.Service) {
		s.Spec.Type = v1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "172.16.0.1"}, {IP: "172.16.0.2", IPMode: ptr(v1.LoadBalancerIPModeProxy)}, {Hostname: "lb"}}
	}
	for _, c := range []struct {
		name string
		svc  *v1.Service
		eps  []*discovery.EndpointSlice
		want []string
	}{
		{"cluster IP and node port", web(), eps("2@n2", "1@n1"), []string{
			"all *:30080/TCP -> 1 2 masq", "all 10.43.0.20:80/TCP -> 1 2", "all 127.0.0.1:30080/TCP -> 1 masq"}},
		{"all endpoints here", web(), eps("1@n1"), []string{
			"all *:30080/TCP -> 1 masq", "all 10.43.0.20:80/TCP -> 1"}},
		{"duplicates in two slices", web(clusterIP), append(eps("1@n1"), eps("1@n1", "2@n1")...), []string{
			"all 10.43.0.20:80/TCP -> 1 2"}},
		{"no endpoints", web(), nil, []string{"reject *:30080/TCP", "reject 10.43.0.20:80/TCP"}},
		{"only unready", web(clusterIP), eps("1@n1/not", "2@n1/gone"), []string{"reject 10.43.0.20:80/TCP"}},
		{"ready before leaving", web(clusterIP), eps("1@n1/leaving", "2@n2"), []string{"all 10.43.0.20:80/TCP -> 2"}},
		{"leaving when none is ready", web(clusterIP), eps("1@n1/leaving", "2@n2/leaving", "3@n1/gone"), []string{"all 10.43.0.20:80/TCP -> 1 2"}},
		{"internal local", web(clusterIP, itpLocal), eps("1@n1", "2@n2"), []string{"all 10.43.0.20:80/TCP -> 1"}},
		{"internal local, none here", web(clusterIP, itpLocal), eps("2@n2"), []string{"drop 10.43.0.20:80/TCP"}},
		{"internal local, none at all", web(clusterIP, itpLocal), nil, []string{"reject 10.43.0.20:80/TCP"}},
		{"external local", web(etpLocal), eps("1@n1", "2@n2"), []string{
			"all *:30080/TCP -> 1 2", "all 10.43.0.20:80/TCP -> 1 2", "all 127.0.0.1:30080/TCP -> 1 masq", "outside *:30080/TCP -> 1"}},
		{"external local, none here", web(etpLocal), eps("2@n2"), []string{
			"all *:30080/TCP -> 2", "all 10.43.0.20:80/TCP -> 2", "drop-external *:30080/TCP"}},
		{"external local, leaving here", web(etpLocal), eps("1@n1/leaving", "2@n2"), []string{
			"all *:30080/TCP -> 2", "all 10.43.0.20:80/TCP -> 2", "outside *:30080/TCP -> 1"}},
		{"external and balancer addresses", web(balancer, func(s *v1.Service) { s.Spec.ExternalIPs = []string{"1.2.3.4", "fd00::1"} }), eps("1@n1"), []string{
			"all *:30080/TCP -> 1 masq", "all 1.2.3.4:80/TCP -> 1 masq", "all 10.43.0.20:80/TCP -> 1", "all 172.16.0.1:80/TCP -> 1 masq",
			"refused externalIPs fd00::1: not IPv4"}},
		{"source ranges are refused", web(balancer, func(s *v1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"} }), eps("1@n1"), []string{
			"all *:30080/TCP -> 1 masq", "all 10.43.0.20:80/TCP -> 1",
			"refused loadBalancerSourceRanges: the load balancer address 172.16.0.1 is not served on nodes"}},
		{"affinity", web(clusterIP, func(s *v1.Service) { s.Spec.SessionAffinity = v1.ServiceAffinityClientIP }), eps("1@n1"), []string{
			"all 10.43.0.20:80/TCP -> 1 sticky"}},
		{"zone hints", web(clusterIP), eps("1@n1+z1", "2@n2+z2"), []string{"all 10.43.0.20:80/TCP -> 1"}},
		{"zone hints, one without", web(clusterIP), eps("1@n1+z1", "2@n2"), []string{"all 10.43.0.20:80/TCP -> 1 2"}},
		{"zone hints, none for us", web(clusterIP), eps("1@n1+z3", "2@n2+z2"), []string{"all 10.43.0.20:80/TCP -> 1 2"}},
		{"node hints", web(clusterIP), eps("1@n1=n1", "2@n2=n2"), []string{"all 10.43.0.20:80/TCP -> 1"}},
		{"headless", web(clusterIP, func(s *v1.Service) { s.Spec.ClusterIP = v1.ClusterIPNone }), eps("1@n1"), nil},
		{"slice for DNS alone", web(clusterIP), headlessSlice(eps("1@n1")), []string{"reject 10.43.0.20:80/TCP"}},
		{"external name", web(clusterIP, func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeExternalName; s.Spec.ClusterIP = "" }), nil, nil},
		{"cluster DNS", web(clusterIP, func(s *v1.Service) { s.Spec.ClusterIP = "10.43.0.10" }), nil, nil},
		{"another proxy's", web(func(s *v1.Service) { s.Labels = map[string]string{ProxyNameLabel: "mesh"} }), eps("1@n1"), nil},
		{"IPv6", web(clusterIP, func(s *v1.Service) { s.Spec.ClusterIP = "fd00::1" }), eps("1@n1"), []string{"refused clusterIP fd00::1: not IPv4"}},
		{"unknown protocol", web(clusterIP, func(s *v1.Service) { s.Spec.Ports[0].Protocol = "QUIC" }), eps("1@n1"), []string{`refused port "http": protocol QUIC`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, describe(NewPlan(c.svc, c.eps, self))); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestPlanAffinityTimeout(t *testing.T) {
	svc := web(func(s *v1.Service) { s.Spec.SessionAffinity = v1.ServiceAffinityClientIP })
	key := ruleset.NewKey(netip.MustParseAddr("10.43.0.20"), 6, 80)
	picker := func() ruleset.Picker {
		return ruleset.Picker{Opts: NewPlan(svc, eps("1@n1"), self).Frontends[key].Opts}
	}
	if got := picker().Affinity(); got != 10800 {
		t.Errorf("default %d", got)
	}
	svc.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr(int32(86400))}}
	if got := picker().Affinity(); got != 86400 {
		t.Errorf("longest %d", got)
	}
}
