package netproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/nstest"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func addRoute(dst, gw string) error {
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(gw)})
}

func mappings(port uint16) []podnet.PortMapping {
	return []podnet.PortMapping{
		{HostPort: port, ContainerPort: 8080},
		{HostPort: port, ContainerPort: 8080, Protocol: v1.ProtocolUDP, HostIP: netip.IPv4Unspecified()},
	}
}

func publish(t *testing.T, n *node, p *pod, port uint16) {
	t.Helper()
	if err := n.proxy.Network().HostPorts(t.Context(), "uid-"+p.name, mappings(port)); err != nil {
		t.Fatal(err)
	}
}

// load opens connections to addr until stopped and counts failures.
type load struct {
	ok, failed atomic.Int64
	firstErr   atomic.Pointer[error]
	stop       func()
}

func startLoad(from *nstest.NS, addr string) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := nstest.Ask(from, "tcp4", addr); err != nil {
				l.failed.Add(1)
				l.firstErr.CompareAndSwap(nil, &err)
			} else {
				l.ok.Add(1)
			}
		}
	}()
	l.stop = func() { cancel(); <-done }
	return l
}

// enough is false while there were too few requests to say anything; a busy
// machine makes less than one in 30 ms.
func (l *load) enough() bool { return l.ok.Load()+l.failed.Load() >= 50 }

func (l *load) check(t *testing.T) {
	t.Helper()
	eventually(t, "enough requests", func() error {
		if !l.enough() {
			return fmt.Errorf("only %d answered, %d failed", l.ok.Load(), l.failed.Load())
		}
		return nil
	})
	l.stop()
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", l.failed.Load(), l.failed.Load()+l.ok.Load(), *l.firstErr.Load())
	}
	if l.ok.Load() < 50 {
		t.Errorf("only %d requests", l.ok.Load())
	}
	t.Logf("%d requests, %d failed", l.ok.Load(), l.failed.Load())
}

// A service whose endpoints change all the time loses no request.
func TestEndpointChurnUnderLoad(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		pods := []*pod{n.pod("a"), n.pod("b"), n.pod("c"), n.pod("d")}
		n.create(newService("web", "10.43.0.30", nodePort(30030)))
		n.create(epSlice("web", pods[0]))
		client := n.pod("client")
		reach(t, client.NS, "tcp4", "10.43.0.30:80")
		reach(t, n.outside, "tcp4", nodeIP+":30030")
		a, b := startLoad(client.NS, "10.43.0.30:80"), startLoad(n.outside, nodeIP+":30030")
		begin := time.Now()
		for i := 0; ; i++ {
			took := time.Since(begin)
			if took > 1500*time.Millisecond && a.enough() && b.enough() || took > 30*time.Second {
				break
			}
			k := 1 + i%len(pods)
			var now []*pod
			for j := range k {
				now = append(now, pods[(i+j)%len(pods)])
			}
			next := epSlice("web", now...)
			n.updateSlice(next)
			// The fake API panics when a watch falls 100 changes behind.
			eventually(t, "the change is heard of", func() error {
				obj, ok, err := n.proxy.caches.slices.GetStore().GetByKey("default/" + next.Name)
				if err == nil && (!ok || len(obj.(*discovery.EndpointSlice).Endpoints) != k) {
					err = fmt.Errorf("want %d endpoints, got %v", k, obj)
				}
				return err
			})
		}
		a.check(t)
		b.check(t)
	})
}

// Connections of an endpoint that leaves go on; UDP clients move.
func TestRemovedEndpoint(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b, c := n.pod("a"), n.pod("b"), n.pod("c")
		n.create(newService("web", "10.43.0.31"))
		n.create(epSlice("web", a))
		reach(t, c.NS, "tcp4", "10.43.0.31:80")
		tcp, err := nstest.Dial(c.NS, "tcp4", "10.43.0.31:80")
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		if _, err := nstest.Greeting(tcp); err != nil {
			t.Fatal(err)
		}
		udp, err := nstest.Dial(c.NS, "udp4", "10.43.0.31:80")
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		if got, err := nstest.Greeting(udp); err != nil || got.Server != "a" {
			t.Fatalf("udp before: %v, %v", got, err)
		}
		n.updateSlice(epSlice("web", b))
		eventually(t, "udp moves", func() error {
			got, err := nstest.Greeting(udp)
			if err == nil && got.Server != "b" {
				err = fmt.Errorf("still %s", got.Server)
			}
			return err
		})
		if _, err := tcp.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		_ = tcp.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := tcp.Read(buf); err != nil || buf[0] != 'x' {
			t.Errorf("connection to the removed endpoint: %v", err)
		}
	})
}

// Restart: rules stay, addresses stay, changes made meanwhile are applied, and
// neither connections nor new requests notice.
func TestRestart(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b, c := n.pod("a"), n.pod("b"), n.pod("c")
		n.create(newService("web", "10.43.0.32"))
		n.create(epSlice("web", a))
		n.create(newService("gone", "10.43.0.33", nodePort(30033)))
		n.create(epSlice("gone", a))
		publish(t, n, a, 18081)
		reach(t, c.NS, "tcp4", "10.43.0.32:80")
		reach(t, nil, "tcp4", "10.43.0.33:80")
		conn, err := nstest.Dial(c.NS, "tcp4", "10.43.0.32:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := nstest.Greeting(conn); err != nil {
			t.Fatal(err)
		}
		l := startLoad(c.NS, "10.43.0.32:80")
		n.stop()
		if _, err := nstest.Ask(c.NS, "tcp4", "10.43.0.32:80"); err != nil {
			t.Errorf("while stopped: %v", err)
		}
		if err := n.client.CoreV1().Services("default").Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		n.updateSlice(epSlice("web", a, b))
		before := generation(t)
		n.start()
		if err := n.proxy.Network().Adopt(t.Context(), []string{"uid-a", "uid-b", "uid-c"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "change made while stopped", func() error {
			if servers, _ := census(t, c.NS, "tcp4", "10.43.0.32:80", 20); len(servers) != 2 {
				return fmt.Errorf("servers %v", servers)
			}
			return nil
		})
		if _, err := nstest.Ask(nil, "tcp4", "10.43.0.33:80"); err == nil {
			t.Error("a service that was deleted while stopped still answers")
		}
		if got, err := nstest.Ask(n.outside, "tcp4", nodeIP+":18081"); err != nil || got.Server != "a" {
			t.Errorf("host port after restart: %v, %v", got, err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Read(buf); err != nil {
			t.Errorf("connection over a restart: %v", err)
		}
		l.check(t)
		if after := generation(t); after-before > 6 {
			t.Errorf("a restart took %d transactions", after-before)
		}
		again, err := n.proxy.Network().Attach(t.Context(), "uid-a", a.Path())
		if err != nil || again[0].String() != a.ip {
			t.Errorf("attach after restart: %v, %v, want %s", again, err, a.ip)
		}

		// A pod that died meanwhile is cleaned up.
		if err := n.proxy.Network().Adopt(t.Context(), []string{"uid-a", "uid-c"}); err != nil {
			t.Fatal(err)
		}
		if _, err := netlink.LinkByName(podnet.LinkName("uid-b")); err == nil {
			t.Error("link of a dead pod stays")
		}
		n.stop()
		before = generation(t)
		n.start()
		if after := generation(t); after != before {
			t.Errorf("a restart without changes took %d transactions", after-before)
		}
	})
}

// Somebody flushes the whole ruleset.
func TestFlushedRuleset(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, c := n.pod("a"), n.pod("c")
		n.create(newService("web", "10.43.0.34"))
		n.create(epSlice("web", a))
		publish(t, n, a, 18082)
		reach(t, c.NS, "tcp4", "10.43.0.34:80")
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		conn.FlushRuleset()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := n.proxy.repair(); err != nil {
			t.Fatal(err)
		}
		reach(t, c.NS, "tcp4", "10.43.0.34:80")
		reach(t, a.NS, "tcp4", "10.43.0.34:80") // hairpin
		reach(t, n.outside, "tcp4", nodeIP+":18082")
	})
}

// The uplink goes down and up: the kernel has forgotten routes.
func TestUplinkFlap(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.create(peerNode("n2", outsideIP, "10.42.1.0/24"))
		route := func() error {
			routes, err := netdump.Whole(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: podnet.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
			})
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Dst.String() == "10.42.1.0/24" {
					return nil
				}
			}
			return fmt.Errorf("no route to the peer among %v", routes)
		}
		eventually(t, "route", route)
		up0, err := netlink.LinkByName("up0")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetDown(up0); err != nil {
			t.Fatal(err)
		}
		if route() == nil {
			t.Fatal("the kernel keeps routes of a link that is down")
		}
		if err := netlink.LinkSetUp(up0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "route after the flap", route)
		// Somebody takes the DNS address.
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 43, 0, 10), Mask: net.CIDRMask(32, 32)}}); err != nil {
			t.Fatal(err)
		}
		a := n.pod("a")
		eventually(t, "DNS address is back", func() error {
			_, err := resolve(a.NS, "udp4", "ns.dns.cluster.local.")
			return err
		})
	})
}

// Reset leaves the host as it was.
func TestReset(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		quiet := goleak.IgnoreCurrent()
		other, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		other.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyIPv4})
		if err := other.Flush(); err != nil {
			t.Fatal(err)
		}
		n := newNode(t)
		if err := addRoute("192.168.99.0/24", outsideIP); err != nil {
			t.Fatal(err)
		}
		a := n.pod("a")
		n.create(newService("web", "10.43.0.35"))
		n.create(epSlice("web", a))
		n.create(peerNode("n2", outsideIP, "10.42.1.0/24"))
		n.create(peerNode("n3", "192.168.99.3", "10.42.2.0/24"))
		reach(t, a.NS, "tcp4", "10.43.0.35:80")
		eventually(t, "routes to peers", func() error {
			got := hostState(t)
			for _, part := range []string{"skiff-vxlan", "10.42.1.0/24", "10.42.2.0/24", "10.43.0.10/32"} {
				if !strings.Contains(got, part) {
					return fmt.Errorf("no %s in\n%s", part, got)
				}
			}
			return nil
		})
		n.stop()
		// Nothing runs on: what is left are the pod's own servers.
		eventually(t, "nothing runs on", func() error {
			return goleak.Find(quiet, goleak.IgnoreAnyFunction("github.com/skiff-sh/skiff/netproxy/nstest.serveTCP"),
				goleak.IgnoreAnyFunction("github.com/skiff-sh/skiff/netproxy/nstest.serveUDP"))
		})
		for range 2 {
			if err := Reset(Config{}); err != nil {
				t.Fatal(err)
			}
		}
		want := "tables: foreign\nlinks: lo up0\nlo: 127.0.0.1/8\nroutes: 192.168.77.0/24 192.168.99.0/24\n"
		if got := hostState(t); got != want {
			t.Errorf("host after reset:\n%swant:\n%s", got, want)
		}
	})
}

// hostState describes what Reset must restore.
func hostState(t *testing.T) string {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	s := "tables:"
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tables {
		s += " " + x.Name
	}
	s += "\nlinks:"
	links, err := netdump.Whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		s += " " + l.Attrs().Name
	}
	s += "\nlo:"
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(lo, unix.AF_INET) })
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		s += " " + a.IPNet.String()
	}
	s += "\nroutes:"
	routes, err := netdump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		s += " " + r.Dst.String()
	}
	return s + "\n"
}
