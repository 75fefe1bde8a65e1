package service

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/netproxy/nstest"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

func newTable(t testing.TB) *ruleset.Table {
	t.Helper()
	tab := ruleset.New("skiff", ruleset.Params{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), DNSAddr: self.DNSAddr, HostAddr: netip.MustParseAddr("192.0.2.1")}, slog.Default())
	if _, err := tab.Ensure(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tab.Close() })
	return tab
}

// localRange makes every address of a range one of this host's.
func localRange(t testing.TB, cidr string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR(cidr)
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: 2, Table: 255, Scope: netlink.SCOPE_HOST}); err != nil {
		t.Fatal(err)
	}
}

// serviceRoute lets this host connect to service addresses.
func serviceRoute(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR("10.43.0.0/16")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
}

func counted(n int) []*discovery.EndpointSlice {
	s := eps()[0]
	for i := range n {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", i>>8, i&255)}, NodeName: ptr("n1")})
	}
	return []*discovery.EndpointSlice{s}
}

// Connections spread evenly over any number of endpoints: the deviation from
// equal shares is that of chance (chi-square).
func TestEvenness(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		tab := newTable(t)
		localRange(t, "10.42.0.0/16")
		serviceRoute(t)
		l, err := net.Listen("tcp4", "0.0.0.0:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		chosen := make(chan string, 1)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				chosen <- c.LocalAddr().String()
				c.Close()
			}
		}()
		e, _ := NewEngine(emptyState())
		for _, n := range []int{1, 3, 17, 100, 250} {
			d := e.Set("ns/web", Ranked{"", NewPlan(web(), counted(n), self)})
			if err := tab.Apply([]*ruleset.Unit{d.Unit}); err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			const each = 20
			for range each * n {
				c, err := net.Dial("tcp4", "10.43.0.20:80")
				if err != nil {
					t.Fatal(err)
				}
				got[<-chosen]++
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
			chi := 0.0
			for _, k := range got {
				chi += float64((k-each)*(k-each)) / each
			}
			chi += float64(each * (n - len(got)))
			// For n-1 degrees of freedom: mean n-1, variance 2(n-1). Six
			// standard deviations and a little for small n.
			df := float64(n - 1)
			if limit := df + 8.5*sqrt(df) + 15; chi > limit || len(got) != n {
				t.Errorf("%d endpoints: %d reached, chi-square %.0f > %.0f", n, len(got), chi, limit)
			}
			t.Logf("%d endpoints: chi-square %.0f, expected %.0f", n, chi, df)
		}
	})
}

func sqrt(x float64) float64 {
	r := x
	for range 40 {
		if r == 0 {
			return 0
		}
		r = (r + x/r) / 2
	}
	return r
}

func numbered(i int) (string, Ranked) {
	svc := web(func(s *v1.Service) {
		s.Name, s.Spec.Type = fmt.Sprint("s", i), v1.ServiceTypeClusterIP
		s.Spec.ClusterIP, s.Spec.Ports[0].NodePort = fmt.Sprintf("10.43.%d.%d", 1+i/250, i%250), 0
	})
	return "ns/" + svc.Name, Ranked{"", NewPlan(svc, eps(fmt.Sprintf("%d@n1", i%80), fmt.Sprintf("%d@n1", 80+i%80), fmt.Sprintf("%d@n1", 160+i%80)), self)}
}

func load(b testing.TB, tab *ruleset.Table, services int) *Engine {
	b.Helper()
	plans := map[string]Ranked{}
	for i := range services {
		name, p := numbered(i)
		plans[name] = p
	}
	e, _ := NewEngine(emptyState())
	apply(b, tab, e.SetAll(plans))
	return e
}

func apply(b testing.TB, tab *ruleset.Table, ds []Delta) {
	b.Helper()
	var units []*ruleset.Unit
	for _, d := range ds {
		units = append(units, d.Unit)
	}
	if err := tab.Apply(units); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkLoad10000(b *testing.B) {
	nstest.Isolate(b)
	for b.Loop() {
		b.StopTimer()
		if err := ruleset.Remove("skiff"); err != nil {
			b.Fatal(err)
		}
		tab := newTable(b)
		b.StartTimer()
		load(b, tab, 10000)
	}
}

// Reading the kernel's state and finding nothing to change, as a restart does.
func BenchmarkRestart10000(b *testing.B) {
	nstest.Isolate(b)
	tab := newTable(b)
	load(b, tab, 10000)
	plans := map[string]Ranked{}
	for i := range 10000 {
		name, p := numbered(i)
		plans[name] = p
	}
	for b.Loop() {
		s, err := tab.Load()
		if err != nil {
			b.Fatal(err)
		}
		e, _ := NewEngine(s)
		for _, d := range e.SetAll(plans) {
			if !d.Unit.Empty() {
				b.Fatal("a restart changes elements")
			}
		}
	}
}

func BenchmarkEndpointChangeAt10000(b *testing.B) {
	nstest.Isolate(b)
	tab := newTable(b)
	e := load(b, tab, 10000)
	svc := web(func(s *v1.Service) {
		s.Name, s.Spec.Type = "s77", v1.ServiceTypeClusterIP
		s.Spec.ClusterIP, s.Spec.Ports[0].NodePort = "10.43.1.77", 0
	})
	two, three := eps("1@n1", "2@n1"), eps("1@n1", "2@n1", "3@n1")
	i := 0
	for b.Loop() {
		sl := two
		if i++; i%2 == 0 {
			sl = three
		}
		apply(b, tab, []Delta{e.Set("ns/s77", Ranked{"", NewPlan(svc, sl, self)})})
	}
}

func BenchmarkConnect(b *testing.B) {
	for _, services := range []int{0, 5000, 10000} {
		b.Run(fmt.Sprint("services=", services), func(b *testing.B) {
			nstest.Isolate(b)
			localRange(b, "10.42.0.0/16")
			serviceRoute(b)
			addr := "10.42.0.1:8080"
			if services > 0 {
				tab := newTable(b)
				load(b, tab, services)
				addr = "10.43.7.7:80"
			}
			l, err := net.Listen("tcp4", "0.0.0.0:8080")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Close()
				}
			}()
			for b.Loop() {
				c, err := net.DialTimeout("tcp4", addr, time.Second)
				if err != nil {
					b.Fatal(err)
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		})
	}
}
