package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

func ptr[T any](v T) *T { return &v }

func svc(ns, name, ip string, ports ...v1.ServicePort) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, ClusterIP: ip, Ports: ports}}
}

func port(name string, proto v1.Protocol, n int32) v1.ServicePort {
	return v1.ServicePort{Name: name, Protocol: proto, Port: n}
}

func objects() []runtime.Object {
	external := svc("default", "ext", "")
	external.Spec.Type, external.Spec.ExternalName = v1.ServiceTypeExternalName, "www.example.org"
	inside := svc("default", "inside", "")
	inside.Spec.Type, inside.Spec.ExternalName = v1.ServiceTypeExternalName, "web.default.svc.cluster.local"
	loop := svc("default", "loop", "")
	loop.Spec.Type, loop.Spec.ExternalName = v1.ServiceTypeExternalName, "loop.default.svc.cluster.local"
	headless := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "pg-1",
			Labels: map[string]string{discovery.LabelServiceName: "pg", v1.IsHeadlessService: ""}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: ptr("sql"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(5432))}},
		Endpoints: []discovery.Endpoint{
			{Addresses: []string{"10.42.0.5"}, Hostname: ptr("pg-0"), Conditions: discovery.EndpointConditions{Ready: ptr(true)}},
			{Addresses: []string{"10.42.0.6"}, Hostname: ptr("pg-1")},
			{Addresses: []string{"10.42.0.7"}, Conditions: discovery.EndpointConditions{Ready: ptr(true)}},
			{Addresses: []string{"10.42.0.8"}, Hostname: ptr("pg-3"), Conditions: discovery.EndpointConditions{Ready: ptr(false)}},
		},
	}
	many := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "many-1",
			Labels: map[string]string{discovery.LabelServiceName: "many", v1.IsHeadlessService: ""}},
		AddressType: discovery.AddressTypeIPv4,
	}
	for i := range 200 {
		many.Endpoints = append(many.Endpoints, discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.42.9.%d", i+1)}})
	}
	return []runtime.Object{
		svc("default", "kubernetes", "10.43.0.1", port("https", v1.ProtocolTCP, 443)),
		svc("default", "web", "10.43.0.20", port("http", v1.ProtocolTCP, 80), port("dns", v1.ProtocolUDP, 53)),
		svc("db", "pg", v1.ClusterIPNone, port("sql", v1.ProtocolTCP, 5432)),
		svc("db", "empty", v1.ClusterIPNone, port("sql", v1.ProtocolTCP, 5432)),
		svc("db", "many", v1.ClusterIPNone),
		external, inside, loop, headless, many,
	}
}

// newServer makes a server on a free port of 127.0.0.1; upstreams are written
// to its resolv.conf.
func newServer(t testing.TB, upstreams ...string) *Server {
	t.Helper()
	f := informers.NewSharedInformerFactory(fake.NewClientset(objects()...), 0)
	services, slices := f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer()
	if err := errors.Join(
		services.AddIndexers(cache.Indexers{ByClusterIP: IndexByClusterIP}),
		slices.AddIndexers(cache.Indexers{ByService: byService, ByHeadlessIP: IndexByHeadlessIP}),
	); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	text := ""
	for _, u := range upstreams {
		text += "nameserver " + u + "\n"
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	udp, tcp := sockets(t)
	s, err := New(Config{
		Addr: netip.MustParseAddr("127.0.0.1"), Port: tcp.Addr().(*net.TCPAddr).Port, Domain: "cluster.local", ResolvConf: conf,
		Listen:   func(context.Context, string) (net.PacketConn, net.Listener, error) { return udp, tcp, nil },
		Ranges:   []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
		Services: services, Slices: slices,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.zone.dns = netip.MustParseAddr("10.43.0.10")
	ctx, cancel := context.WithCancel(context.Background())
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		f.Shutdown()
	})
	select {
	case <-s.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	return s
}

func byService(obj any) ([]string, error) {
	s := obj.(*discovery.EndpointSlice)
	return []string{s.Namespace + "/" + s.Labels[discovery.LabelServiceName]}, nil
}

// sockets opens a port of 127.0.0.1 for both protocols. It stays open, as another
// process may take a port that is free.
func sockets(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if u, err := net.ListenPacket("udp4", l.Addr().String()); err == nil {
			return u, l
		}
		l.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

func (s *Server) addr() string { return fmt.Sprintf("127.0.0.1:%d", s.cfg.Port) }

func exchange(t testing.TB, s *Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	r, _, err := (&dns.Client{Net: network, Timeout: 6 * time.Second}).Exchange(m, s.addr())
	if err != nil {
		t.Fatalf("%s: %v", m.Question[0].String(), err)
	}
	return r
}

// short writes an answer as one line: code, then sorted records.
func short(m *dns.Msg) string {
	one := func(rrs []dns.RR) string {
		var out []string
		for _, rr := range rrs {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			f := strings.Fields(rr.String())
			out = append(out, strings.Join(append([]string{f[0]}, f[3:]...), " "))
		}
		slices.Sort(out)
		return strings.Join(out, "; ")
	}
	s := dns.RcodeToString[m.Rcode]
	if len(m.Answer) > 0 {
		s += " | " + one(m.Answer)
	}
	if len(m.Ns) > 0 {
		s += " | SOA"
	}
	if e := one(m.Extra); e != "" {
		s += " | extra " + e
	}
	return s
}

func TestClusterNames(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct{ name, qtype, want string }{
		{"web.default.svc.cluster.local.", "A", "NOERROR | web.default.svc.cluster.local. A 10.43.0.20"},
		{"kubernetes.default.svc.cluster.local.", "A", "NOERROR | kubernetes.default.svc.cluster.local. A 10.43.0.1"},
		{"WEB.default.SVC.cluster.LOCAL.", "A", "NOERROR | WEB.default.SVC.cluster.LOCAL. A 10.43.0.20"},
		{"web.default.svc.cluster.local.", "AAAA", "NOERROR | SOA"},
		{"web.default.svc.cluster.local.", "MX", "NOERROR | SOA"},
		{"nope.default.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"nope.default.svc.cluster.local.", "AAAA", "NXDOMAIN | SOA"},
		{"web.other.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"default.svc.cluster.local.", "A", "NOERROR | SOA"},
		{"other.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"svc.cluster.local.", "A", "NOERROR | SOA"},
		{"www.example.com.default.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"example.com.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"example.com.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"x.web.default.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"cluster.local.", "A", "NOERROR | SOA"},
		{"cluster.local.", "NS", "NOERROR | cluster.local. NS ns.dns.cluster.local. | extra ns.dns.cluster.local. A 10.43.0.10"},
		{"ns.dns.cluster.local.", "A", "NOERROR | ns.dns.cluster.local. A 10.43.0.10"},
		{"dns-version.cluster.local.", "TXT", `NOERROR | dns-version.cluster.local. TXT "1.1.0"`},
		{"dns-version.cluster.local.", "A", "NOERROR | SOA"},
		// headless
		{"pg.db.svc.cluster.local.", "A", "NOERROR | pg.db.svc.cluster.local. A 10.42.0.5; pg.db.svc.cluster.local. A 10.42.0.6; pg.db.svc.cluster.local. A 10.42.0.7"},
		{"pg.db.svc.cluster.local.", "AAAA", "NOERROR | SOA"},
		{"empty.db.svc.cluster.local.", "A", "NOERROR | SOA"},
		{"pg-0.pg.db.svc.cluster.local.", "A", "NOERROR | pg-0.pg.db.svc.cluster.local. A 10.42.0.5"},
		{"pg-0.pg.db.svc.cluster.local.", "AAAA", "NOERROR | SOA"},
		{"10-42-0-7.pg.db.svc.cluster.local.", "A", "NOERROR | 10-42-0-7.pg.db.svc.cluster.local. A 10.42.0.7"},
		{"pg-3.pg.db.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		// SRV
		{"_http._tcp.web.default.svc.cluster.local.", "SRV", "NOERROR | _http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local. | extra web.default.svc.cluster.local. A 10.43.0.20"},
		{"_dns._udp.web.default.svc.cluster.local.", "SRV", "NOERROR | _dns._udp.web.default.svc.cluster.local. SRV 0 100 53 web.default.svc.cluster.local. | extra web.default.svc.cluster.local. A 10.43.0.20"},
		{"_http._udp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN | SOA"},
		{"_http._tcp.web.default.svc.cluster.local.", "A", "NOERROR | SOA"},
		{"_tcp.web.default.svc.cluster.local.", "A", "NOERROR | SOA"},
		{"_sctp.web.default.svc.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"_sql._tcp.pg.db.svc.cluster.local.", "SRV", "NOERROR | " +
			"_sql._tcp.pg.db.svc.cluster.local. SRV 0 33 5432 10-42-0-7.pg.db.svc.cluster.local.; " +
			"_sql._tcp.pg.db.svc.cluster.local. SRV 0 33 5432 pg-0.pg.db.svc.cluster.local.; " +
			"_sql._tcp.pg.db.svc.cluster.local. SRV 0 33 5432 pg-1.pg.db.svc.cluster.local. | extra " +
			"10-42-0-7.pg.db.svc.cluster.local. A 10.42.0.7; pg-0.pg.db.svc.cluster.local. A 10.42.0.5; pg-1.pg.db.svc.cluster.local. A 10.42.0.6"},
		{"_sql._tcp.empty.db.svc.cluster.local.", "SRV", "NOERROR | SOA"},
		// pods
		{"10-42-0-5.default.pod.cluster.local.", "A", "NOERROR | 10-42-0-5.default.pod.cluster.local. A 10.42.0.5"},
		{"10-42-0-5.default.pod.cluster.local.", "AAAA", "NOERROR | SOA"},
		{"10-42-0.default.pod.cluster.local.", "A", "NXDOMAIN | SOA"},
		{"pod.cluster.local.", "A", "NOERROR | SOA"},
		// reverse
		{"20.0.43.10.in-addr.arpa.", "PTR", "NOERROR | 20.0.43.10.in-addr.arpa. PTR web.default.svc.cluster.local."},
		{"5.0.42.10.in-addr.arpa.", "PTR", "NOERROR | 5.0.42.10.in-addr.arpa. PTR pg-0.pg.db.svc.cluster.local."},
		{"99.0.43.10.in-addr.arpa.", "PTR", "NXDOMAIN | SOA"},
		{"20.0.43.10.in-addr.arpa.", "A", "NOERROR | SOA"},
		// aliases
		{"inside.default.svc.cluster.local.", "A", "NOERROR | inside.default.svc.cluster.local. CNAME web.default.svc.cluster.local.; web.default.svc.cluster.local. A 10.43.0.20"},
		{"inside.default.svc.cluster.local.", "CNAME", "NOERROR | inside.default.svc.cluster.local. CNAME web.default.svc.cluster.local."},
		{"loop.default.svc.cluster.local.", "A", "SERVFAIL"},
		// no upstream
		{"www.example.org.", "A", "SERVFAIL"},
		{"8.8.8.8.in-addr.arpa.", "PTR", "SERVFAIL"},
	} {
		m := new(dns.Msg).SetQuestion(c.name, dns.StringToType[c.qtype])
		for _, network := range []string{"udp", "tcp"} {
			start := time.Now()
			r := exchange(t, s, network, m)
			if got := short(r); got != c.want {
				t.Errorf("%s %s by %s:\n got %s\nwant %s", c.name, c.qtype, network, got, c.want)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s %s: answered after %v", c.name, c.qtype, d)
			}
			if len(r.Question) != 1 || r.Question[0].Name != c.name || r.Id != m.Id {
				t.Errorf("%s: question %v", c.name, r.Question)
			}
			for _, rr := range append(slices.Clone(r.Answer), r.Ns...) {
				if rr.Header().Ttl > ttl {
					t.Errorf("%s: TTL %d", c.name, rr.Header().Ttl)
				}
			}
		}
	}
}

func TestProtocolDetails(t *testing.T) {
	s := newServer(t)
	ask := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("many.db.svc.cluster.local.", dns.TypeA)
		change(m)
		return exchange(t, s, "udp", m)
	}
	if r := ask(func(*dns.Msg) {}); !r.Truncated || len(r.Answer) > 31 {
		t.Errorf("200 addresses without EDNS: truncated %v, %d answers", r.Truncated, len(r.Answer))
	}
	r := ask(func(m *dns.Msg) { m.SetEdns0(4096, true) })
	r.Compress = true // as it came
	if !r.Truncated || r.Len() > 1232 || len(r.Answer) < 60 {
		t.Errorf("with EDNS: truncated %v, %d bytes", r.Truncated, r.Len())
	}
	if o := r.IsEdns0(); o == nil || !o.Do() {
		t.Error("EDNS is not answered")
	}
	full := exchange(t, s, "tcp", new(dns.Msg).SetQuestion("many.db.svc.cluster.local.", dns.TypeA))
	if full.Truncated || len(full.Answer) != 200 {
		t.Errorf("by TCP: truncated %v, %d answers", full.Truncated, len(full.Answer))
	}
	if r := ask(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }); r.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %s", dns.RcodeToString[r.Rcode])
	}
	if r := ask(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }); r.Rcode != dns.RcodeRefused {
		t.Errorf("class CH: %s", dns.RcodeToString[r.Rcode])
	}
	if r := ask(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }); r.Rcode != dns.RcodeNotImplemented {
		t.Errorf("update: %s", dns.RcodeToString[r.Rcode])
	}
	first := map[string]bool{}
	for range 50 {
		m := new(dns.Msg).SetQuestion("pg.db.svc.cluster.local.", dns.TypeA)
		first[exchange(t, s, "udp", m).Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 3 {
		t.Errorf("addresses of a headless service are not shuffled: first ones %v", first)
	}
}

// upstreamServer answers on 127.0.0.x:53-like addresses chosen by the test.
type upstreamServer struct {
	asked atomic.Int64
	addr  string
}

func startUpstream(t *testing.T, handler func(w dns.ResponseWriter, r *dns.Msg, n int64)) *upstreamServer {
	t.Helper()
	u := &upstreamServer{}
	udp, tcp := sockets(t)
	u.addr = tcp.Addr().String()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { handler(w, r, u.asked.Add(1)) })
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		done := make(chan error)
		go func() { done <- srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	}
	return u
}

// setUpstreams replaces what resolv.conf would say: its servers all have one
// port, the tests' do not.
func (s *Server) setUpstreams(addrs ...string) {
	s.fwd.mu.Lock()
	defer s.fwd.mu.Unlock()
	s.fwd.checked = time.Now().Add(time.Hour)
	s.fwd.ups = nil
	for _, a := range addrs {
		s.fwd.ups = append(s.fwd.ups, &upstream{addr: a})
	}
}

func answerA(w dns.ResponseWriter, r *dns.Msg, ttl uint32) {
	m := new(dns.Msg).SetReply(r)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(192, 0, 2, 1)}}
	_ = w.WriteMsg(m)
}

func TestForward(t *testing.T) {
	silent := startUpstream(t, func(dns.ResponseWriter, *dns.Msg, int64) {})
	good := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg, _ int64) {
		switch {
		case strings.HasPrefix(r.Question[0].Name, "missing."):
			m := new(dns.Msg).SetRcode(r, dns.RcodeNameError)
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "a.", Mbox: "b.", Minttl: 60}}
			_ = w.WriteMsg(m)
		case strings.HasPrefix(r.Question[0].Name, "big.") && w.RemoteAddr().Network() == "udp":
			m := new(dns.Msg).SetReply(r)
			m.Truncated = true
			_ = w.WriteMsg(m)
		default:
			answerA(w, r, 100)
		}
	})
	broken := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg, _ int64) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
	})
	s := newServer(t)
	s.setUpstreams(silent.addr, broken.addr, good.addr)
	ask := func(name string) *dns.Msg {
		return exchange(t, s, "udp", new(dns.Msg).SetQuestion(name, dns.TypeA))
	}
	if r := ask("www.example.org."); short(r) != "NOERROR | www.example.org. A 192.0.2.1" || silent.asked.Load() != 1 {
		t.Errorf("failover: %s, the silent resolver was asked %d times", short(r), silent.asked.Load())
	}
	asked := good.asked.Load()
	if r := ask("WWW.example.org."); r.Rcode != 0 || good.asked.Load() != asked {
		t.Errorf("from the cache: %s, upstream asked %d more", short(r), good.asked.Load()-asked)
	}
	if r := ask("other.example.org."); r.Rcode != 0 || silent.asked.Load() != 1 {
		t.Errorf("the silent resolver is asked first again: %s", short(r))
	}
	for range 2 {
		if r := ask("missing.example.org."); r.Rcode != dns.RcodeNameError {
			t.Errorf("missing name: %s", short(r))
		}
	}
	if r := ask("big.example.org."); r.Rcode != 0 || len(r.Answer) != 1 {
		t.Errorf("truncated upstream answer: %s", short(r))
	}
	if r := ask("ext.default.svc.cluster.local."); short(r) != "NOERROR | ext.default.svc.cluster.local. CNAME www.example.org.; www.example.org. A 192.0.2.1" {
		t.Errorf("external name: %s", short(r))
	}
	if s.stats.CacheHits.Load() < 2 || s.stats.UpstreamErrors.Load() < 2 {
		t.Errorf("counters: %d hits, %d upstream errors", s.stats.CacheHits.Load(), s.stats.UpstreamErrors.Load())
	}
}

// An upstream that asks us back must end in a failure, not in a storm.
func TestForwardLoop(t *testing.T) {
	s := newServer(t)
	loop := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg, _ int64) {
		m, _, err := (&dns.Client{Timeout: 5 * time.Second}).Exchange(r, s.addr())
		if err == nil {
			m.Id = r.Id
			_ = w.WriteMsg(m)
		}
	})
	s.setUpstreams(loop.addr)
	if r := exchange(t, s, "udp", new(dns.Msg).SetQuestion("loop.example.org.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("loop: %s", short(r))
	}
	if n := loop.asked.Load(); n > 5 {
		t.Errorf("the loop went round %d times", n)
	}
}

func TestReadResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	self := netip.MustParseAddr("10.43.0.10")
	for _, c := range []struct{ text, want string }{
		{"nameserver 1.1.1.1\nnameserver 10.43.0.10\nnameserver 8.8.8.8\n", "1.1.1.1:53,8.8.8.8:53"},
		{"nameserver 10.43.0.10\n", ""},
		{"nameserver fd00::1\n", "[fd00::1]:53"},
		{"# nothing\n", ""},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, _ := readResolvers(path, self); strings.Join(got, ",") != c.want {
			t.Errorf("%q: %v, want %s", c.text, got, c.want)
		}
	}
	if got, _ := readResolvers(filepath.Join(t.TempDir(), "none"), self); got != nil {
		t.Errorf("without a file: %v", got)
	}
}

func TestCache(t *testing.T) {
	c := newAnswerCache(2)
	now := time.Unix(1000, 0)
	msg := func(ttl uint32) *dns.Msg {
		m := new(dns.Msg).SetQuestion("a.", dns.TypeA)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA, Ttl: ttl}, A: net.IPv4(1, 2, 3, 4)}}
		return m
	}
	c.put("a", msg(10), now)
	if m := c.get("a", now.Add(4*time.Second)); m == nil || m.Answer[0].Header().Ttl != 6 {
		t.Errorf("after 4 s: %v", m)
	}
	if m := c.get("a", now.Add(10*time.Second)); m != nil {
		t.Error("served after its life")
	}
	c.put("zero", msg(0), now)
	if c.get("zero", now) != nil {
		t.Error("TTL 0 is kept")
	}
	for i := range 5 {
		c.put(fmt.Sprint(i), msg(10), now)
	}
	if len(c.entries) > 2 {
		t.Errorf("%d entries", len(c.entries))
	}
	failed := msg(10)
	failed.Rcode = dns.RcodeServerFailure
	if lifetime(failed) != 0 {
		t.Error("failures are kept")
	}
}

func TestNotSynced(t *testing.T) {
	f := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	services, slices := f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer()
	_ = services.AddIndexers(cache.Indexers{ByClusterIP: IndexByClusterIP})
	_ = slices.AddIndexers(cache.Indexers{ByService: byService, ByHeadlessIP: IndexByHeadlessIP})
	s, err := New(Config{Addr: netip.MustParseAddr("127.0.0.1"), Domain: "cluster.local", Services: services, Slices: slices})
	if err != nil {
		t.Fatal(err)
	}
	m := s.respond(context.Background(), new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA))
	if m.Rcode != dns.RcodeServerFailure {
		t.Errorf("before the caches are filled: %s", short(m))
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func BenchmarkRespond(b *testing.B) {
	s := newServer(b)
	for _, name := range []string{"web.default.svc.cluster.local.", "www.google.com.default.svc.cluster.local.", "pg.db.svc.cluster.local."} {
		b.Run(name, func(b *testing.B) {
			m := new(dns.Msg).SetQuestion(name, dns.TypeA)
			b.ReportAllocs()
			for b.Loop() {
				s.respond(context.Background(), m)
			}
		})
	}
}

func BenchmarkUDP(b *testing.B) {
	s := newServer(b)
	b.RunParallel(func(pb *testing.PB) {
		c := &dns.Client{}
		conn, err := c.Dial(s.addr())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		for pb.Next() {
			m.Id = dns.Id()
			if _, _, err := c.ExchangeWithConn(m, conn); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
