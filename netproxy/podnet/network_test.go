package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/nstest"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// testNode is a node whose calls run in one namespace.
type testNode struct {
	*Network
	table *ruleset.Table
	ns    *nstest.NS
	t     *testing.T
}

func (n *testNode) do(fn func() error) {
	n.t.Helper()
	if n.ns != nil {
		n.ns.Do(fn)
	} else if err := fn(); err != nil {
		n.t.Fatal(err)
	}
}

// newTestNode makes a node in ns; nil is the test's own namespace.
func newTestNode(t *testing.T, ns *nstest.NS, ip, cidr string) *testNode {
	t.Helper()
	n := &testNode{ns: ns, t: t}
	n.do(func() error {
		nodeIP, dns := netip.MustParseAddr(ip), netip.MustParseAddr("10.43.0.10")
		services := netip.MustParsePrefix("10.43.0.0/16")
		n.table = ruleset.New("skiff", ruleset.Params{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
			ServiceCIDR: services, DNSAddr: dns, HostAddr: HostAddr(nodeIP)}, slog.Default())
		if _, err := n.table.Ensure(); err != nil {
			return err
		}
		var err error
		n.Network, err = New(Config{NodeIP: nodeIP, ServiceCIDR: services, DNSAddr: dns, Domain: "cluster.local",
			Dir: t.TempDir(), Table: n.table, Logger: slog.Default()})
		if err != nil {
			return err
		}
		if cidr != "" {
			if err := n.SetPodCIDR(netip.MustParsePrefix(cidr)); err != nil {
				return err
			}
		}
		return n.Prepare()
	})
	t.Cleanup(func() { n.Close(); n.table.Close() })
	return n
}

func (n *testNode) pod(uid string) (*nstest.NS, string) {
	n.t.Helper()
	ns := nstest.New(n.t)
	var ip string
	n.do(func() error {
		addrs, err := n.Attach(context.Background(), uid, ns.Path())
		if err == nil {
			ip = addrs[0].String()
		}
		return err
	})
	nstest.Serve(n.t, ns, ip+":8080", uid)
	return ns, ip
}

func TestAttach(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		// A host with nothing but lo.
		n := newTestNode(t, nil, "127.0.0.1", "")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		ns := nstest.New(t)
		if _, err := n.Attach(ctx, "early", ns.Path()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a pod range: %v", err)
		}
		if err := n.SetPodCIDR(netip.MustParsePrefix("10.42.3.0/24")); err != nil {
			t.Fatal(err)
		}
		a, ip := n.pod("a")
		if got, err := nstest.Ask(nil, "tcp4", ip+":8080"); err != nil || got.Client != Gateway.String() {
			t.Errorf("host to pod: %v, %v", got, err)
		}
		// Again: same address, link kept.
		before, err := netlink.LinkByName(LinkName("a"))
		if err != nil {
			t.Fatal(err)
		}
		if before.Attrs().Alias != "pod a" {
			t.Errorf("alias %q", before.Attrs().Alias)
		}
		again, err := n.Attach(t.Context(), "a", a.Path())
		if err != nil || again[0].String() != ip {
			t.Fatalf("second attach: %v, %v", again, err)
		}
		after, err := netlink.LinkByName(LinkName("a"))
		if err != nil || after.Attrs().Index != before.Attrs().Index {
			t.Errorf("link was replaced: %v", err)
		}
		// Repair of what somebody removed inside.
		a.Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(eth0) // loses the routes
		})
		if _, err := n.Attach(t.Context(), "a", a.Path()); err != nil {
			t.Fatal(err)
		}
		if _, err := nstest.Ask(nil, "tcp4", ip+":8080"); err != nil {
			t.Errorf("after repair: %v", err)
		}
		// The pod's sandbox is new: the same address in another namespace.
		fresh := nstest.New(t)
		if again, err = n.Attach(t.Context(), "a", fresh.Path()); err != nil || again[0].String() != ip {
			t.Fatalf("attach of a new sandbox: %v, %v", again, err)
		}
		nstest.Serve(t, fresh, ip+":8080", "fresh")
		if got, err := nstest.Ask(nil, "tcp4", ip+":8080"); err != nil || got.Server != "fresh" {
			t.Errorf("new sandbox: %v, %v", got, err)
		}
		if _, err := n.Attach(t.Context(), "b", "/proc/1/none"); err == nil {
			t.Error("a namespace that does not exist")
		}
		for range 2 {
			if err := n.Detach(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		}
		if _, err := netlink.LinkByName(LinkName("a")); err == nil {
			t.Error("link stays after Detach")
		}
		s, err := n.table.Load()
		if err != nil || len(s.Hairpin) != 0 {
			t.Errorf("ruleset after Detach: %v, %v", s.Hairpin, err)
		}
	})
}

func TestAttachConcurrently(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newTestNode(t, nil, "127.0.0.1", "10.42.3.0/24")
		const pods = 40
		spaces := make([]*nstest.NS, pods)
		for i := range spaces {
			spaces[i] = nstest.New(t)
		}
		type result struct {
			addr netip.Addr
			err  error
			took time.Duration
		}
		results := make(chan result, pods)
		for i, ns := range spaces {
			go func() {
				start := time.Now()
				a, err := n.Attach(context.Background(), fmt.Sprint("p", i), ns.Path())
				r := result{err: err, took: time.Since(start)}
				if err == nil {
					r.addr = a[0]
				}
				results <- r
			}()
		}
		seen := map[netip.Addr]bool{}
		for range pods {
			r := <-results
			if r.err != nil {
				t.Fatal(r.err)
			}
			if seen[r.addr] {
				t.Errorf("%s twice", r.addr)
			}
			seen[r.addr] = true
		}
		if err := n.Adopt(t.Context(), []string{"p1", "p2"}); err != nil {
			t.Fatal(err)
		}
		links, err := podLinks(n.host)
		if err != nil || len(links) != 2 {
			t.Errorf("links after Adopt: %v, %v", links, err)
		}

		// Pods that end together are removed together.
		var left []string
		for i := range 20 {
			left = append(left, fmt.Sprint("q", i))
			if _, err := n.Attach(t.Context(), left[i], spaces[10+i].Path()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		detached := make(chan error)
		for _, uid := range left {
			go func() { detached <- n.Detach(context.Background(), uid) }()
		}
		for range left {
			if err := <-detached; err != nil {
				t.Error(err)
			}
		}
		t.Logf("20 pods detached in %v", time.Since(start))
		if links, err = podLinks(n.host); err != nil || len(links) != 2 {
			t.Errorf("links after Detach: %v, %v", links, err)
		}
	})
}

// A pod cannot reach what the host serves on loopback, though such addresses
// are routable on its link, and cannot send with another pod's address.
func TestPodCannotMisuseItsLink(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newTestNode(t, nil, "127.0.0.1", "10.42.3.0/24")
		a, _ := n.pod("a")
		_, ipB := n.pod("b")
		nstest.Serve(t, nil, "127.9.9.9:9001", "host")
		a.Do(func() error {
			for _, s := range []string{"all", "eth0"} {
				if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+s+"/route_localnet", []byte("1"), 0o644); err != nil {
					return err
				}
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(lo, unix.AF_INET) })
			if err != nil {
				return err
			}
			for _, ad := range addrs {
				if err := netlink.AddrDel(lo, &ad); err != nil {
					return err
				}
			}
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			_, dst, _ := net.ParseCIDR("127.9.9.9/32")
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: Gateway.AsSlice()}); err != nil {
				return err
			}
			c, err := net.DialTimeout("tcp4", "127.9.9.9:9001", 300*time.Millisecond)
			if err == nil {
				c.Close()
				return errors.New("a pod reaches the host's loopback")
			}
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				return fmt.Errorf("want a timeout, got %w", err)
			}
			// A foreign source address.
			if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: host32(netip.MustParseAddr("10.42.3.77"))}); err != nil {
				return err
			}
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 42, 3, 77)}, Timeout: 300 * time.Millisecond}
			if c, err := d.Dial("tcp4", ipB+":8080"); err == nil {
				c.Close()
				return errors.New("a pod sends with a foreign address")
			}
			return nil
		})
	})
}

func TestPeers(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		near, router, far := nstest.New(t), nstest.New(t), nstest.New(t)
		nstest.Connect(t, nil, "e0", "192.168.5.1/24", near, "e0", "192.168.5.2/24")
		nstest.Connect(t, nil, "e1", "192.168.6.1/24", router, "e1", "192.168.6.254/24")
		nstest.Connect(t, router, "e2", "192.168.7.254/24", far, "e2", "192.168.7.1/24")
		router.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
		route := func(dst, gw string) func() error {
			return func() error {
				_, d, _ := net.ParseCIDR(dst)
				return netlink.RouteAdd(&netlink.Route{Dst: d, Gw: net.ParseIP(gw)})
			}
		}
		if err := route("192.168.7.0/24", "192.168.6.254")(); err != nil {
			t.Fatal(err)
		}
		far.Do(route("192.168.6.0/24", "192.168.7.254"))

		// The node has two addresses; peers see it by the one on their link.
		a := newTestNode(t, nil, "192.168.6.1", "10.42.1.0/24")
		b := newTestNode(t, near, "192.168.5.2", "10.42.2.0/24")
		c := newTestNode(t, far, "192.168.7.1", "10.42.3.0/24")
		peer := func(name, ip, cidr string) Peer {
			return Peer{Name: name, NodeIP: netip.MustParseAddr(ip), PodCIDR: netip.MustParsePrefix(cidr)}
		}
		pb, pc := peer("b", "192.168.5.2", "10.42.2.0/24"), peer("c", "192.168.7.1", "10.42.3.0/24")
		a.do(func() error { return a.SetPeers([]Peer{pb, pc}) })
		b.do(func() error { return b.SetPeers([]Peer{peer("a", "192.168.5.1", "10.42.1.0/24")}) })
		c.do(func() error { return c.SetPeers([]Peer{peer("a", "192.168.6.1", "10.42.1.0/24")}) })

		podA, ipA := a.pod("pa")
		podB, ipB := b.pod("pb")
		podC, ipC := c.pod("pc")
		for _, x := range []struct {
			from         *nstest.NS
			fromIP, toIP string
		}{{podA, ipA, ipB}, {podA, ipA, ipC}, {podB, ipB, ipA}, {podC, ipC, ipA}} {
			for _, network := range []string{"tcp4", "udp4"} {
				got, err := nstest.Ask(x.from, network, x.toIP+":8080")
				if err != nil || got.Client != x.fromIP {
					t.Errorf("%s %s to %s: %v, %v", network, x.fromIP, x.toIP, got, err)
				}
			}
		}
		// A large transfer through the tunnel: packets of full size.
		conn, err := nstest.Dial(podA, "tcp4", ipC+":8080")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := nstest.Greeting(conn); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		sent := make([]byte, 1<<20)
		go func() { _, _ = conn.Write(sent) }()
		for got := 0; got < len(sent); {
			k, err := conn.Read(make([]byte, 1<<16))
			if err != nil {
				t.Fatalf("after %d of %d bytes: %v", got, len(sent), err)
			}
			got += k
		}
		// The host itself reaches pods behind the tunnel.
		if _, err := nstest.Ask(nil, "tcp4", ipC+":8080"); err != nil {
			t.Errorf("host to a pod behind the tunnel: %v", err)
		}

		kinds := func() (direct, tunneled []string) {
			routes, err := netdump.Whole(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range routes {
				if r.Gw == nil {
					continue
				}
				l, err := netlink.LinkByIndex(r.LinkIndex)
				if err != nil {
					t.Fatal(err)
				}
				if l.Attrs().Name == ruleset.TunnelLink {
					tunneled = append(tunneled, r.Dst.String())
				} else {
					direct = append(direct, r.Dst.String())
				}
			}
			return direct, tunneled
		}
		d, tun := kinds()
		if !slices.Equal(d, []string{"10.42.2.0/24"}) || !slices.Equal(tun, []string{"10.42.3.0/24"}) {
			t.Errorf("direct %v, tunneled %v", d, tun)
		}
		// The next process does not know its peers yet.
		again, err := New(a.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := errors.Join(again.Prepare(), again.Reapply()); err != nil {
			t.Fatal(err)
		}
		if d, tun = kinds(); !slices.Equal(d, []string{"10.42.2.0/24"}) || !slices.Equal(tun, []string{"10.42.3.0/24"}) {
			t.Errorf("before the peers are known: direct %v, tunneled %v", d, tun)
		}
		// Node c leaves: no tunnel is needed any more.
		if err := a.SetPeers([]Peer{pb}); err != nil {
			t.Fatal(err)
		}
		if d, tun = kinds(); !slices.Equal(d, []string{"10.42.2.0/24"}) || len(tun) != 0 {
			t.Errorf("after a node left: direct %v, tunneled %v", d, tun)
		}
		if _, err := netlink.LinkByName(ruleset.TunnelLink); err == nil {
			t.Error("the tunnel stays")
		}
		// It turns out that there is no other node.
		if err := again.SetPeers(nil); err != nil {
			t.Fatal(err)
		}
		if d, tun = kinds(); len(d)+len(tun) != 0 {
			t.Errorf("without other nodes: direct %v, tunneled %v", d, tun)
		}
	})
}
