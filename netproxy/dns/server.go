package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"k8s.io/client-go/tools/cache"
)

// Config of a Server.
type Config struct {
	Addr netip.Addr
	Port int // default 53

	Domain string
	// Cluster ranges: reverse names there are never forwarded.
	Ranges []netip.Prefix

	// Services and Slices are started by the caller and have the indexes that
	// this package names, and cache.NamespaceIndex.
	Services cache.SharedIndexInformer
	Slices   cache.SharedIndexInformer

	ResolvConf string
	// Listen opens the two sockets of an address; nil opens plain ones.
	Listen func(ctx context.Context, addr string) (net.PacketConn, net.Listener, error)
	Logger *slog.Logger
}

// Stats are counters since the start.
type Stats struct {
	Queries        atomic.Uint64 // all
	Cluster        atomic.Uint64 // answered from the cluster's objects
	Forwarded      atomic.Uint64
	CacheHits      atomic.Uint64
	CacheMisses    atomic.Uint64
	NameErrors     atomic.Uint64
	Failures       atomic.Uint64 // SERVFAIL
	UpstreamErrors atomic.Uint64
	Truncated      atomic.Uint64
}

// Server is a DNS server.
type Server struct {
	cfg   Config
	zone  *zone
	fwd   *forwarder
	ready chan struct{}
	stats Stats
	ctx   atomic.Pointer[context.Context]
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	if !cfg.Addr.Is4() || cfg.Domain == "" || cfg.Services == nil || cfg.Slices == nil {
		return nil, errors.New("netproxy/dns: an IPv4 Addr, Domain, Services and Slices are required")
	}
	if _, ok := dns.IsDomainName(cfg.Domain); !ok {
		return nil, fmt.Errorf("netproxy/dns: Domain %q is no domain name", cfg.Domain)
	}
	for _, name := range []string{ByClusterIP, cache.NamespaceIndex} {
		if _, ok := cfg.Services.GetIndexer().GetIndexers()[name]; !ok {
			return nil, fmt.Errorf("netproxy/dns: Services lacks the index %s", name)
		}
	}
	for _, name := range []string{ByService, ByHeadlessIP} {
		if _, ok := cfg.Slices.GetIndexer().GetIndexers()[name]; !ok {
			return nil, fmt.Errorf("netproxy/dns: Slices lacks the index %s", name)
		}
	}
	if cfg.Port == 0 {
		cfg.Port = 53
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == nil {
		cfg.Listen = listen
	}
	s := &Server{cfg: cfg, ready: make(chan struct{})}
	s.zone = &zone{domain: strings.ToLower(dns.Fqdn(cfg.Domain)), dns: cfg.Addr, serial: uint32(time.Now().Unix()),
		source: source{services: cfg.Services.GetIndexer(), slices: cfg.Slices.GetIndexer()}}
	s.fwd = newForwarder(cfg.ResolvConf, cfg.Addr, &s.stats)
	return s, nil
}

// Ready is closed when the server listens. Names of the cluster are answered
// from then on as far as the caches are filled; until then with SERVFAIL.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Stats returns the counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Run listens until ctx ends. While the port is taken it tries again.
func (s *Server) Run(ctx context.Context) error {
	s.ctx.Store(&ctx)
	addr := net.JoinHostPort(s.cfg.Addr.String(), strconv.Itoa(s.cfg.Port))
	var udp net.PacketConn
	var tcp net.Listener
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		var err error
		if udp, tcp, err = s.cfg.Listen(ctx, addr); err == nil {
			break
		}
		s.cfg.Logger.Error("cluster DNS cannot listen", "address", addr, "error", err, "retryAfter", delay)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
	servers := []*dns.Server{
		{PacketConn: udp, Handler: s, UDPSize: dns.DefaultMsgSize},
		{Listener: tcp, Handler: s, ReadTimeout: 5 * time.Second, IdleTimeout: func() time.Duration { return 10 * time.Second }},
	}
	var wg sync.WaitGroup
	failed := make(chan error, len(servers))
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil {
				failed <- err
			}
		})
		select {
		case <-started:
		case err := <-failed:
			failed <- err
		}
	}
	close(s.ready)
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-failed:
		err = fmt.Errorf("serve cluster DNS: %w", err)
	}
	for _, srv := range servers {
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = srv.ShutdownContext(end)
		cancel()
	}
	udp.Close()
	tcp.Close()
	wg.Wait()
	return err
}

func listen(ctx context.Context, addr string) (net.PacketConn, net.Listener, error) {
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, nil, err
	}
	tcp, err := lc.Listen(ctx, "tcp4", addr)
	if err != nil {
		udp.Close()
		return nil, nil, err
	}
	return udp, tcp, nil
}

// ServeDNS answers one question.
func (s *Server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	s.stats.Queries.Add(1)
	ctx := context.Background()
	if p := s.ctx.Load(); p != nil {
		ctx = *p
	}
	m := s.respond(ctx, r)
	if m == nil {
		return
	}
	switch m.Rcode {
	case dns.RcodeNameError:
		s.stats.NameErrors.Add(1)
	case dns.RcodeServerFailure:
		s.stats.Failures.Add(1)
	}
	size := dns.MinMsgSize
	if o := r.IsEdns0(); o != nil {
		if m.IsEdns0() == nil {
			m.SetEdns0(forwardUDP, o.Do())
		}
		size = min(max(size, int(o.UDPSize())), forwardUDP)
	}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		size = dns.MaxMsgSize
	}
	m.Compress = len(m.Answer)+len(m.Extra) > 2
	if m.Truncate(size); m.Truncated {
		s.stats.Truncated.Add(1)
	}
	_ = w.WriteMsg(m)
}

// respond returns the answer; nil means none is sent.
func (s *Server) respond(ctx context.Context, r *dns.Msg) *dns.Msg {
	switch {
	case r.Response:
		return nil
	case r.Opcode != dns.OpcodeQuery:
		return new(dns.Msg).SetRcode(r, dns.RcodeNotImplemented)
	case len(r.Question) != 1:
		return new(dns.Msg).SetRcode(r, dns.RcodeFormatError)
	case r.Question[0].Qclass != dns.ClassINET:
		return new(dns.Msg).SetRcode(r, dns.RcodeRefused)
	}
	if o := r.IsEdns0(); o != nil && o.Version() != 0 {
		return new(dns.Msg).SetRcode(r, dns.RcodeBadVers)
	}
	q := r.Question[0]
	if s.zone.contains(strings.ToLower(q.Name)) {
		return s.local(ctx, r, func() result { return s.zone.lookup(q.Name, q.Qtype) })
	}
	if addr, ok := reverseAddr(q.Name); ok {
		inside := false
		for _, p := range s.cfg.Ranges {
			inside = inside || p.Contains(addr)
		}
		res, known := s.zone.reverse(q.Name, q.Qtype, addr)
		if known || inside {
			res.missing = !known
			return s.local(ctx, r, func() result { return res })
		}
	}
	return s.forward(ctx, r)
}

func (s *Server) local(ctx context.Context, r *dns.Msg, lookup func() result) *dns.Msg {
	s.stats.Cluster.Add(1)
	if !s.cfg.Services.HasSynced() || !s.cfg.Slices.HasSynced() {
		return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
	}
	m := new(dns.Msg).SetReply(r)
	m.Authoritative, m.RecursionAvailable = true, true
	res := lookup()
	m.Answer, m.Extra = res.answer, res.extra
	qtype := r.Question[0].Qtype
	for depth := 0; res.alias != ""; depth++ {
		if depth == 8 {
			return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
		}
		if !s.zone.contains(strings.ToLower(res.alias)) {
			return s.follow(ctx, m, res.alias, qtype)
		}
		res = s.zone.lookup(res.alias, qtype)
		m.Answer = append(m.Answer, res.answer...)
	}
	if res.missing {
		m.Rcode = dns.RcodeNameError
	}
	if len(res.answer) == 0 {
		m.Ns = []dns.RR{s.zone.soa()}
	}
	return m
}

// follow completes an answer that ends in an alias outside of the cluster.
func (s *Server) follow(ctx context.Context, m *dns.Msg, alias string, qtype uint16) *dns.Msg {
	q := new(dns.Msg).SetQuestion(alias, qtype)
	s.stats.Forwarded.Add(1)
	sub, err := s.fwd.ask(ctx, q)
	if err != nil {
		s.cfg.Logger.Debug("external name is not resolved", "name", alias, "error", err)
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	m.Answer = append(m.Answer, sub.Answer...)
	m.Rcode, m.Authoritative = sub.Rcode, false
	for _, rr := range m.Answer {
		rr.Header().Ttl = min(rr.Header().Ttl, ttl)
	}
	return m
}

func (s *Server) forward(ctx context.Context, r *dns.Msg) *dns.Msg {
	s.stats.Forwarded.Add(1)
	m, err := s.fwd.ask(ctx, r)
	if err != nil {
		s.cfg.Logger.Debug("name is not resolved", "name", r.Question[0].Name, "error", err)
		m = new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
		m.RecursionAvailable = true
	}
	return m
}
