package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

// Self is what decides which endpoints are near.
type Self struct {
	NodeName string
	Zone     string
	// DNSAddr is answered by this node itself; services there get no rules.
	DNSAddr netip.Addr
}

// FrontendSpec is a frontend before its endpoints are counted.
type FrontendSpec struct {
	List ruleset.ListID
	Opts uint32
}

// Plan is what one service needs in the kernel.
type Plan struct {
	Owner     string
	Lists     map[ruleset.ListID][]ruleset.Endpoint // sorted, never empty
	Frontends map[ruleset.Key]FrontendSpec
	External  map[ruleset.Key]FrontendSpec
	Flags     map[string]map[ruleset.Key]bool // by set
	// Sticky lists have client affinity.
	Sticky map[ruleset.ListID]bool
	// Refused says what of the service is not supported.
	Refused []string
}

// ProxyNameLabel marks services that another proxy implements.
const ProxyNameLabel = "service.kubernetes.io/service-proxy-name"

// NewPlan computes the plan of a service from its EndpointSlices.
func NewPlan(svc *v1.Service, epSlices []*discovery.EndpointSlice, self Self) *Plan {
	p := &Plan{
		Owner: svc.Namespace + "/" + svc.Name,
		Lists: map[ruleset.ListID][]ruleset.Endpoint{}, Sticky: map[ruleset.ListID]bool{},
		Frontends: map[ruleset.Key]FrontendSpec{}, External: map[ruleset.Key]FrontendSpec{},
		Flags: map[string]map[ruleset.Key]bool{},
	}
	if svc.Spec.Type == v1.ServiceTypeExternalName || svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == v1.ClusterIPNone {
		return p
	}
	if _, other := svc.Labels[ProxyNameLabel]; other {
		return p
	}
	for i := range svc.Spec.Ports {
		p.addPort(svc, &svc.Spec.Ports[i], epSlices, self)
	}
	return p
}

func protoNumber(p v1.Protocol) (uint8, bool) {
	switch p {
	case v1.ProtocolTCP, "":
		return unix.IPPROTO_TCP, true
	case v1.ProtocolUDP:
		return unix.IPPROTO_UDP, true
	case v1.ProtocolSCTP:
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

func (p *Plan) addPort(svc *v1.Service, port *v1.ServicePort, epSlices []*discovery.EndpointSlice, self Self) {
	proto, ok := protoNumber(port.Protocol)
	if !ok {
		p.refuse("port %q: protocol %s", port.Name, port.Protocol)
		return
	}
	eps := portEndpoints(epSlices, port)
	all := choose(eps, nil)
	local := choose(eps, func(e endpoint) bool { return e.node == self.NodeName })
	cluster := choose(byTopology(svc, eps, self), nil)
	if len(cluster) == 0 {
		cluster = all
	}

	sticky := uint32(0)
	if svc.Spec.SessionAffinity == v1.ServiceAffinityClientIP {
		sticky = 10800
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			sticky = uint32(*c.ClientIP.TimeoutSeconds)
		}
	}
	list := func(kind string, members []ruleset.Endpoint) ruleset.ListID {
		id := ruleset.NewListID(svc.Namespace, svc.Name, port.Name, ruleset.ProtoName(proto), kind)
		p.Lists[id] = members
		if sticky != 0 {
			p.Sticky[id] = true
		}
		return id
	}
	// lead points a key at a list, or at the refusal that fits.
	lead := func(key ruleset.Key, kind string, members []ruleset.Endpoint, opts uint32, empty string) {
		if len(members) == 0 {
			if len(all) == 0 {
				empty = ruleset.SetReject
			}
			p.flag(empty, key)
			return
		}
		spec := FrontendSpec{List: list(kind, members), Opts: opts | sticky}
		if opts&ruleset.OptExternal != 0 {
			p.External[key] = spec
		} else {
			p.Frontends[key] = spec
		}
	}

	if addr, ok := ipv4(svc.Spec.ClusterIP); !ok {
		p.refuse("clusterIP %s: not IPv4", svc.Spec.ClusterIP)
	} else if addr != self.DNSAddr {
		key := ruleset.NewKey(addr, proto, uint16(port.Port))
		if t := svc.Spec.InternalTrafficPolicy; t != nil && *t == v1.ServiceInternalTrafficPolicyLocal {
			lead(key, "local", local, 0, ruleset.SetDrop)
		} else {
			lead(key, "cluster", cluster, 0, ruleset.SetReject)
		}
	}

	// Ways in from outside. With externalTrafficPolicy Local, clients outside
	// of the cluster reach local endpoints and are seen by them; pods and the
	// node itself still reach all.
	onlyLocal := svc.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
	outside := func(key ruleset.Key, opts uint32) {
		if !onlyLocal {
			lead(key, "cluster", cluster, opts|ruleset.OptMasquerade, ruleset.SetReject)
			return
		}
		lead(key, "cluster", cluster, opts, ruleset.SetReject)
		lead(key, "local", local, opts|ruleset.OptExternal, ruleset.SetDropExternal)
	}
	for _, addr := range p.externalAddrs(svc) {
		outside(ruleset.NewKey(addr, proto, uint16(port.Port)), 0)
	}
	if port.NodePort != 0 {
		outside(ruleset.NewKey(netip.Addr{}, proto, uint16(port.NodePort)), ruleset.OptNodePort)
		// Connections from 127.0.0.1 cannot leave the host: give them the
		// local endpoints where there are others, too.
		if len(local) > 0 && len(local) < len(cluster) {
			key := ruleset.NewKey(netip.AddrFrom4([4]byte{127, 0, 0, 1}), proto, uint16(port.NodePort))
			lead(key, "local", local, ruleset.OptMasquerade, ruleset.SetReject)
		}
	}
}

// externalAddrs returns externalIPs and load balancer addresses.
func (p *Plan) externalAddrs(svc *v1.Service) []netip.Addr {
	var out []netip.Addr
	add := func(field, s string) {
		addr, ok := ipv4(s)
		if !ok {
			p.refuse("%s %s: not IPv4", field, s)
		} else if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	for _, s := range svc.Spec.ExternalIPs {
		add("externalIPs", s)
	}
	if svc.Spec.Type != v1.ServiceTypeLoadBalancer {
		return out
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		switch {
		case in.IP == "" || in.IPMode != nil && *in.IPMode == v1.LoadBalancerIPModeProxy:
		case len(svc.Spec.LoadBalancerSourceRanges) > 0:
			p.refuse("loadBalancerSourceRanges: the load balancer address %s is not served on nodes", in.IP)
		default:
			add("status.loadBalancer.ingress", in.IP)
		}
	}
	return out
}

func (p *Plan) flag(set string, k ruleset.Key) {
	if p.Flags[set] == nil {
		p.Flags[set] = map[ruleset.Key]bool{}
	}
	p.Flags[set][k] = true
}

func (p *Plan) refuse(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(p.Refused, s) {
		p.Refused = append(p.Refused, s)
	}
}

func ipv4(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Is4()
}

// endpoint is one address of a slice with what decides about its use.
type endpoint struct {
	ruleset.Endpoint
	node               string
	ready              bool
	servingTerminating bool
	hints              *discovery.EndpointHints
}

// notForProxies holds for slices of which only DNS is to know.
func notForProxies(s *discovery.EndpointSlice) bool {
	_, headless := s.Labels[v1.IsHeadlessService]
	return headless
}

// portEndpoints gathers the endpoints of one service port.
func portEndpoints(epSlices []*discovery.EndpointSlice, port *v1.ServicePort) []endpoint {
	var out []endpoint
	for _, s := range epSlices {
		if s.AddressType != discovery.AddressTypeIPv4 || notForProxies(s) {
			continue
		}
		for _, sp := range s.Ports {
			name, proto := "", v1.ProtocolTCP
			if sp.Name != nil {
				name = *sp.Name
			}
			if sp.Protocol != nil {
				proto = *sp.Protocol
			}
			want := cmp.Or(port.Protocol, v1.ProtocolTCP)
			if name != port.Name || proto != want || sp.Port == nil {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if len(e.Addresses) == 0 {
					continue
				}
				addr, ok := ipv4(e.Addresses[0])
				if !ok {
					continue
				}
				ready := isTrue(e.Conditions.Ready, true)
				out = append(out, endpoint{
					Endpoint:           ruleset.Endpoint{Addr: addr.As4(), Port: uint16(*sp.Port)},
					node:               deref(e.NodeName),
					ready:              ready,
					servingTerminating: isTrue(e.Conditions.Serving, ready) && isTrue(e.Conditions.Terminating, false),
					hints:              e.Hints,
				})
			}
		}
	}
	return out
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// choose returns the ready endpoints that pass keep or, if there is none, those
// that still serve while they terminate; sorted and without duplicates.
func choose(eps []endpoint, keep func(endpoint) bool) []ruleset.Endpoint {
	var ready, leaving []ruleset.Endpoint
	for _, e := range eps {
		if keep != nil && !keep(e) {
			continue
		}
		if e.ready {
			ready = append(ready, e.Endpoint)
		} else if e.servingTerminating {
			leaving = append(leaving, e.Endpoint)
		}
	}
	out := ready
	if len(out) == 0 {
		out = leaving
	}
	slices.SortFunc(out, ruleset.Endpoint.Compare)
	return slices.Compact(out)
}

// byTopology narrows the endpoints to those hinted for this node or zone. Hints
// count only when every ready endpoint has one of that kind and one is for us;
// else traffic would miss endpoints that nobody is hinted to.
func byTopology(svc *v1.Service, eps []endpoint, self Self) []endpoint {
	if t := svc.Spec.InternalTrafficPolicy; t != nil && *t == v1.ServiceInternalTrafficPolicyLocal {
		return eps
	}
	narrow := func(hinted func(*discovery.EndpointHints) bool, mine func(*discovery.EndpointHints) bool) []endpoint {
		var out []endpoint
		for _, e := range eps {
			if !e.ready {
				continue
			}
			if e.hints == nil || !hinted(e.hints) {
				return nil
			}
			if mine(e.hints) {
				out = append(out, e)
			}
		}
		return out
	}
	if out := narrow(
		func(h *discovery.EndpointHints) bool { return len(h.ForNodes) > 0 },
		func(h *discovery.EndpointHints) bool {
			return slices.ContainsFunc(h.ForNodes, func(n discovery.ForNode) bool { return n.Name == self.NodeName })
		}); len(out) > 0 {
		return out
	}
	if self.Zone != "" {
		if out := narrow(
			func(h *discovery.EndpointHints) bool { return len(h.ForZones) > 0 },
			func(h *discovery.EndpointHints) bool {
				return slices.ContainsFunc(h.ForZones, func(z discovery.ForZone) bool { return z.Name == self.Zone })
			}); len(out) > 0 {
			return out
		}
	}
	return eps
}
