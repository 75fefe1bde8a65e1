package dns

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
)

// ttl of names of the cluster, in seconds.
const ttl = 5

// specVersion of the Kubernetes DNS specification that this package follows.
const specVersion = "1.1.0"

// zone answers names of the cluster.
type zone struct {
	domain string // lower case, with the final dot
	dns    netip.Addr
	serial uint32
	source source
}

// result of a lookup. An existing name without records of the asked type has
// no answer and is not missing.
type result struct {
	answer, extra []dns.RR
	missing       bool   // the name does not exist
	alias         string // ExternalName: go on with this name
}

func (z *zone) contains(name string) bool { return dns.IsSubDomain(z.domain, name) }

// lookup answers a question about a name inside the zone. owner is the name as
// the client spelled it.
func (z *zone) lookup(owner string, qtype uint16) result {
	name := strings.ToLower(owner)
	rel := strings.TrimSuffix(strings.TrimSuffix(name, z.domain), ".")
	if rel == "" {
		return z.apex(owner, qtype)
	}
	labels := strings.Split(rel, ".")
	n := len(labels)
	switch {
	case rel == "dns-version":
		if qtype == dns.TypeTXT {
			return result{answer: []dns.RR{&dns.TXT{Hdr: header(owner, dns.TypeTXT), Txt: []string{specVersion}}}}
		}
		return result{}
	case rel == "ns.dns":
		return z.addresses(owner, qtype, []netip.Addr{z.dns})
	case rel == "dns":
		return result{}
	case labels[n-1] == "svc":
		return z.inServices(owner, qtype, labels[:n-1])
	case labels[n-1] == "pod":
		return z.inPods(owner, qtype, labels[:n-1])
	}
	return result{missing: true}
}

func header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func (z *zone) soa() dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: z.domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain, Serial: z.serial,
		Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}

func (z *zone) apex(owner string, qtype uint16) result {
	switch qtype {
	case dns.TypeSOA:
		return result{answer: []dns.RR{z.soa()}}
	case dns.TypeNS:
		ns := "ns.dns." + z.domain
		return result{answer: []dns.RR{&dns.NS{Hdr: header(owner, dns.TypeNS), Ns: ns}},
			extra: z.addresses(ns, dns.TypeA, []netip.Addr{z.dns}).answer}
	}
	return result{}
}

func (z *zone) addresses(owner string, qtype uint16, addrs []netip.Addr) (r result) {
	if qtype != dns.TypeA {
		return result{}
	}
	for _, a := range addrs {
		r.answer = append(r.answer, &dns.A{Hdr: header(owner, dns.TypeA), A: net.IP(a.AsSlice())})
	}
	return r
}

// inServices answers names below svc; labels are those left of it.
func (z *zone) inServices(owner string, qtype uint16, labels []string) result {
	n := len(labels)
	if n == 0 {
		return result{}
	}
	ns := labels[n-1]
	if n == 1 {
		return result{missing: !z.source.hasNamespace(ns)}
	}
	name := labels[n-2]
	svc := z.source.service(ns, name)
	if svc == nil {
		return result{missing: true}
	}
	base := name + "." + ns + ".svc." + z.domain
	switch n {
	case 2:
		return z.service(owner, qtype, svc, base)
	case 3:
		if l := labels[0]; l == "_tcp" || l == "_udp" || l == "_sctp" {
			return result{missing: !z.hasProtocol(svc, l)}
		}
		return z.endpoint(owner, qtype, svc, labels[0])
	case 4:
		port, portOK := strings.CutPrefix(labels[0], "_")
		proto, protoOK := strings.CutPrefix(labels[1], "_")
		if portOK && protoOK {
			return z.srv(owner, qtype, svc, base, port, proto)
		}
	}
	return result{missing: true}
}

func (z *zone) hasProtocol(svc *v1.Service, label string) bool {
	for _, p := range svc.Spec.Ports {
		if p.Name != "" && "_"+strings.ToLower(string(p.Protocol)) == label {
			return true
		}
	}
	return false
}

func (z *zone) service(owner string, qtype uint16, svc *v1.Service, base string) result {
	if svc.Spec.Type == v1.ServiceTypeExternalName {
		target := dns.Fqdn(svc.Spec.ExternalName)
		r := result{answer: []dns.RR{&dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: target}}}
		if qtype != dns.TypeCNAME {
			r.alias = target
		}
		return r
	}
	if qtype == dns.TypeSRV {
		r := z.srv(owner, qtype, svc, base, "", "")
		r.missing = false
		return r
	}
	if !isHeadless(svc) {
		addr, err := netip.ParseAddr(svc.Spec.ClusterIP)
		if err != nil || !addr.Is4() {
			return result{}
		}
		return z.addresses(owner, qtype, []netip.Addr{addr})
	}
	if qtype != dns.TypeA {
		return result{}
	}
	r := z.addresses(owner, qtype, distinct(z.source.endpoints(svc.Namespace, svc.Name)))
	// Clients take the first.
	rand.Shuffle(len(r.answer), func(i, j int) { r.answer[i], r.answer[j] = r.answer[j], r.answer[i] })
	return r
}

func distinct(eps []endpoint) []netip.Addr {
	seen := make(map[netip.Addr]bool, len(eps))
	out := make([]netip.Addr, 0, len(eps))
	for _, e := range eps {
		if !seen[e.addr] {
			seen[e.addr] = true
			out = append(out, e.addr)
		}
	}
	return out
}

// endpoint answers the name of one endpoint of a headless service.
func (z *zone) endpoint(owner string, qtype uint16, svc *v1.Service, host string) result {
	if !isHeadless(svc) {
		return result{missing: true}
	}
	var found []endpoint
	for _, e := range z.source.endpoints(svc.Namespace, svc.Name) {
		if strings.ToLower(e.host) == host {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return result{missing: true}
	}
	return z.addresses(owner, qtype, distinct(found))
}

// srv answers _port._proto names; empty port and proto mean every named port.
func (z *zone) srv(owner string, qtype uint16, svc *v1.Service, base, port, proto string) (r result) {
	match := func(name, p string) bool {
		if port == "" {
			return true
		}
		return name == port && strings.EqualFold(p, proto)
	}
	exists := false
	add := func(target string, addr netip.Addr, number uint16) {
		exists = true
		if qtype != dns.TypeSRV {
			return
		}
		r.answer = append(r.answer, &dns.SRV{Hdr: header(owner, dns.TypeSRV), Weight: 100, Port: number, Target: target})
		for _, have := range r.extra {
			if have.Header().Name == target {
				return
			}
		}
		r.extra = append(r.extra, z.addresses(target, dns.TypeA, []netip.Addr{addr}).answer...)
	}
	if !isHeadless(svc) {
		addr, err := netip.ParseAddr(svc.Spec.ClusterIP)
		for _, p := range svc.Spec.Ports {
			if err == nil && addr.Is4() && match(p.Name, string(p.Protocol)) {
				add(base, addr, uint16(p.Port))
			}
		}
	} else {
		for _, p := range svc.Spec.Ports {
			exists = exists || match(p.Name, string(p.Protocol))
		}
		for _, e := range z.source.endpoints(svc.Namespace, svc.Name) {
			for _, p := range e.ports {
				if p.Port == nil {
					continue
				}
				name, pr := "", "TCP"
				if p.Name != nil {
					name = *p.Name
				}
				if p.Protocol != nil {
					pr = string(*p.Protocol)
				}
				if match(name, pr) {
					add(e.host+"."+base, e.addr, uint16(*p.Port))
				}
			}
		}
	}
	r.missing = !exists
	if n := len(r.answer); n > 1 {
		for _, rr := range r.answer {
			rr.(*dns.SRV).Weight = uint16(max(1, 100/n))
		}
		rand.Shuffle(n, func(i, j int) { r.answer[i], r.answer[j] = r.answer[j], r.answer[i] })
	}
	return r
}

// inPods answers a-b-c-d.namespace.pod.
func (z *zone) inPods(owner string, qtype uint16, labels []string) result {
	switch len(labels) {
	case 0, 1:
		return result{}
	case 2:
		if addr, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ".")); err == nil && addr.Is4() {
			return z.addresses(owner, qtype, []netip.Addr{addr})
		}
	}
	return result{missing: true}
}

// reverse answers PTR questions about addresses of the cluster; known is false
// when the address has no name here.
func (z *zone) reverse(owner string, qtype uint16, addr netip.Addr) (r result, known bool) {
	var names []string
	if svc := z.source.serviceByIP(addr.String()); svc != nil {
		names = append(names, svc.Name+"."+svc.Namespace+".svc.")
	} else if addr == z.dns {
		names = append(names, "ns.dns.")
	} else {
		names = z.source.endpointNames(addr)
	}
	if len(names) == 0 {
		return r, false
	}
	if qtype == dns.TypePTR {
		for _, n := range names {
			r.answer = append(r.answer, &dns.PTR{Hdr: header(owner, dns.TypePTR), Ptr: n + z.domain})
		}
	}
	return r, true
}

// reverseAddr parses d.c.b.a.in-addr.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	rel, ok := strings.CutSuffix(strings.ToLower(name), ".in-addr.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	l := strings.Split(rel, ".")
	if len(l) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
	return addr, err == nil
}
