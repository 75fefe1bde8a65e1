package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Times of forwarding. Clients give up after five seconds.
const (
	tryTimeout    = 1500 * time.Millisecond
	totalTimeout  = 4 * time.Second
	failurePause  = 10 * time.Second // a silent resolver is asked last for so long
	confCheck     = 5 * time.Second
	maxForwards   = 1000 // under way at once
	forwardUDP    = 1232
	systemdUplink = "/run/systemd/resolve/resolv.conf"
)

var (
	errNoUpstream = errors.New("no upstream resolver")
	errBusy       = errors.New("too many questions under way")
)

// upstream is one resolver.
type upstream struct {
	addr     string
	badUntil atomic.Int64
}

// forwarder asks the host's resolvers.
type forwarder struct {
	path string
	self netip.Addr // our own address: never forwarded to

	mu      sync.Mutex
	checked time.Time
	stamp   string
	ups     []*upstream

	flight  singleflight.Group
	running atomic.Int64
	cache   *answerCache
	stats   *Stats
}

func newForwarder(path string, self netip.Addr, stats *Stats) *forwarder {
	return &forwarder{path: path, self: self, cache: newAnswerCache(4096), stats: stats}
}

// upstreams reads the resolvers, again when the file has changed.
func (f *forwarder) upstreams(now time.Time) []*upstream {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.checked) < confCheck {
		return f.ups
	}
	f.checked = now
	addrs, stamp := readResolvers(f.path, f.self)
	if stamp == f.stamp {
		return f.ups
	}
	f.stamp = stamp
	var ups []*upstream
	for _, a := range addrs {
		i := slices.IndexFunc(f.ups, func(u *upstream) bool { return u.addr == a })
		if i >= 0 {
			ups = append(ups, f.ups[i])
		} else {
			ups = append(ups, &upstream{addr: a})
		}
	}
	f.ups = ups
	return ups
}

// readResolvers returns the nameservers of a resolv.conf, without ourselves. A
// file that names only systemd's local stub is replaced by the one with the
// resolvers behind it.
func readResolvers(path string, self netip.Addr) (addrs []string, stamp string) {
	read := func(path string) (addrs []string, stubs int) {
		conf, err := dns.ClientConfigFromFile(path)
		if err != nil {
			return nil, 0
		}
		for _, s := range conf.Servers {
			ip, err := netip.ParseAddr(s)
			if err != nil || ip.Unmap() == self {
				continue
			}
			if s == "127.0.0.53" {
				stubs++
			}
			addrs = append(addrs, net.JoinHostPort(s, conf.Port))
		}
		return addrs, stubs
	}
	addrs, stubs := read(path)
	if stubs > 0 && stubs == len(addrs) {
		if _, err := os.Stat(systemdUplink); err == nil {
			if better, _ := read(systemdUplink); len(better) > 0 {
				addrs = better
			}
		}
	}
	return addrs, strings.Join(addrs, ",")
}

func questionKey(r *dns.Msg) string {
	q := r.Question[0]
	do := false
	if o := r.IsEdns0(); o != nil {
		do = o.Do()
	}
	return fmt.Sprintf("%s %d %d %t %t", strings.ToLower(q.Name), q.Qtype, q.Qclass, do, r.CheckingDisabled)
}

// ask answers a question by cache or upstream. The answer belongs to the
// caller; its id and question are those of r.
func (f *forwarder) ask(ctx context.Context, r *dns.Msg) (*dns.Msg, error) {
	key := questionKey(r)
	if m := f.cache.get(key, time.Now()); m != nil {
		f.stats.CacheHits.Add(1)
		return adopt(m, r), nil
	}
	f.stats.CacheMisses.Add(1)
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	// One question at a time to the outside. That also ends a loop, should
	// an upstream ask us back: the second question waits for the first.
	ch := f.flight.DoChan(key, func() (any, error) {
		if f.running.Add(1) > maxForwards {
			f.running.Add(-1)
			return nil, errBusy
		}
		defer f.running.Add(-1)
		ctx, cancel := context.WithTimeout(context.Background(), totalTimeout)
		defer cancel()
		m, err := f.exchange(ctx, r.Copy())
		if err == nil {
			f.cache.put(key, m, time.Now())
		}
		return m, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return adopt(res.Val.(*dns.Msg).Copy(), r), nil
	}
}

// adopt makes m the answer to r.
func adopt(m, r *dns.Msg) *dns.Msg {
	m.Id, m.Response, m.Opcode = r.Id, true, r.Opcode
	m.RecursionDesired, m.RecursionAvailable = r.RecursionDesired, true
	m.Question = r.Question
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return m
}

// exchange asks the resolvers in turn, those that failed lately last.
func (f *forwarder) exchange(ctx context.Context, r *dns.Msg) (*dns.Msg, error) {
	now := time.Now()
	ups := slices.Clone(f.upstreams(now))
	if len(ups) == 0 {
		return nil, errNoUpstream
	}
	slices.SortStableFunc(ups, func(a, b *upstream) int {
		bad := func(u *upstream) int {
			if u.badUntil.Load() > now.UnixNano() {
				return 1
			}
			return 0
		}
		return bad(a) - bad(b)
	})
	if len(ups) == 1 {
		ups = append(ups, ups[0]) // a lost packet is no failure yet
	}
	var errs []error
	for _, u := range ups {
		m, err := f.exchangeOne(ctx, u, r)
		if err == nil && m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
			u.badUntil.Store(0)
			return m, nil
		}
		f.stats.UpstreamErrors.Add(1)
		if err == nil {
			err = fmt.Errorf("%s answers %s", u.addr, dns.RcodeToString[m.Rcode])
		} else {
			u.badUntil.Store(time.Now().Add(failurePause).UnixNano())
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (f *forwarder) exchangeOne(ctx context.Context, u *upstream, r *dns.Msg) (*dns.Msg, error) {
	q := r.Copy()
	q.Id = dns.Id()
	q.RecursionDesired = true
	if o := q.IsEdns0(); o != nil {
		do := o.Do()
		q.Extra = slices.DeleteFunc(q.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
		q.SetEdns0(forwardUDP, do)
	} else {
		q.SetEdns0(forwardUDP, false)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	c := &dns.Client{Net: "udp", UDPSize: forwardUDP, Timeout: tryTimeout}
	m, _, err := c.ExchangeContext(ctx, q, u.addr)
	if err == nil && m.Truncated {
		c = &dns.Client{Net: "tcp", Timeout: tryTimeout}
		m, _, err = c.ExchangeContext(ctx, q, u.addr)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", u.addr, err)
	}
	return m, nil
}
