package netproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/skiff-sh/skiff/netproxy/nstest"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// resolve asks cluster DNS from a namespace, as a program in a pod does.
func resolve(ns *nstest.NS, network, name string) (addrs []string, err error) {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var c net.Conn
		dial := func() (err error) {
			c, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, "10.43.0.10:53")
			return err
		}
		if ns == nil {
			return c, dial()
		}
		err := ns.Try(dial)
		return c, err
	}}
	addrs, err = r.LookupHost(context.Background(), name)
	slices.Sort(addrs)
	return addrs, err
}

func TestClusterDNS(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		n.create(newService("web", "10.43.0.40"))
		n.create(newService("pair", v1.ClusterIPNone))
		n.create(epSlice("pair", a, b))
		// The Service object that names the DNS address needs no endpoints.
		dns := newService("kube-dns", "10.43.0.10", func(s *v1.Service) { s.Spec.Ports[0].Port, s.Spec.Ports[1].Port = 53, 53 })
		n.create(dns)
		for _, from := range []*nstest.NS{a.NS, nil} {
			for _, network := range []string{"udp4", "tcp4"} {
				eventually(t, "resolve web by "+network, func() error {
					got, err := resolve(from, network, "web.default.svc.cluster.local.")
					if err == nil && !slices.Equal(got, []string{"10.43.0.40"}) {
						err = errors.New(strings.Join(got, " "))
					}
					return err
				})
				want := []string{a.ip, b.ip}
				slices.Sort(want)
				eventually(t, "resolve pair by "+network, func() error { // slices come by another watch
					got, err := resolve(from, network, "pair.default.svc.cluster.local.")
					if err == nil && !slices.Equal(got, want) {
						err = fmt.Errorf("got %v, want %v", got, want)
					}
					return err
				})
			}
		}

		// A restart of skiff costs a resolver a second try, not an error.
		n.stop()
		var udp net.Conn
		a.Do(func() (err error) { udp, err = net.Dial("udp4", "10.43.0.10:53"); return err })
		defer udp.Close()
		for range 3 {
			if _, err := udp.Write([]byte("anything")); err != nil {
				t.Errorf("while DNS is down: %v", err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		n.start()
		if got, err := resolve(a.NS, "udp4", "web.default.svc.cluster.local."); err != nil {
			t.Errorf("after the restart: %v, %v", got, err)
		}
	})
}

func TestDumpAndStatus(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a := n.pod("a")
		n.create(newService("web", "10.43.0.41", nodePort(30041)))
		n.create(epSlice("web", a))
		n.create(newService("none", "10.43.0.42"))
		publish(t, n, a, 18080)
		want := [][]string{
			{"default/web", "10.43.0.41:80/TCP", "all", "-", a.ip + ":8080"},
			{"default/web", "*:30041/UDP", "all", "masquerade", a.ip + ":8080"},
			{"-", "10.43.0.42:80/TCP", "all", "-", "rejected: no endpoint"},
			{"(host port)", "*:18080/TCP", "all", "-", a.ip + ":8080"},
		}
		eventually(t, "dump", func() error {
			var out bytes.Buffer
			if err := Dump(&out, Config{}); err != nil {
				return err
			}
			have := map[string]bool{}
			for _, l := range strings.Split(out.String(), "\n") {
				have[strings.Join(strings.Fields(l), " ")] = true
			}
			for _, w := range want {
				if !have[strings.Join(w, " ")] {
					return errors.New("no line " + strings.Join(w, " ") + " in\n" + out.String())
				}
			}
			return nil
		})
		eventually(t, "status", func() error { // it is told after the kernel
			s := n.proxy.Status()
			if !s.Ready || s.PodCIDR != "10.42.0.0/24" || s.Pods != 1 || s.Services != 2 || s.SyncErrors != 0 {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		reg := prometheus.NewPedanticRegistry()
		if err := reg.Register(n.proxy.Collector()); err != nil {
			t.Fatal(err)
		}
		if m, err := reg.Gather(); err != nil || len(m) < 15 {
			t.Errorf("%d metrics, %v", len(m), err)
		}
		if err := Dump(&bytes.Buffer{}, Config{TableName: "absent"}); err == nil {
			t.Error("dump of a table that does not exist")
		}
	})
}

func TestConfig(t *testing.T) {
	good := Config{Client: fake.NewClientset(), NodeName: "n", NodeIP: netip.MustParseAddr("10.0.0.1"), DataDir: "/x",
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}
	got, err := good.withDefaults()
	if err != nil || got.DNSAddr.String() != "10.43.0.10" || got.TableName != "skiff" || got.ClusterDomain != "cluster.local" {
		t.Errorf("%+v, %v", got, err)
	}
	for field, spoil := range map[string]func(*Config){
		"Client":      func(c *Config) { c.Client = nil },
		"NodeName":    func(c *Config) { c.NodeName = "" },
		"NodeIP":      func(c *Config) { c.NodeIP = netip.MustParseAddr("fd00::1") },
		"ClusterCIDR": func(c *Config) { c.ClusterCIDR = c.ServiceCIDR },
		"ServiceCIDR": func(c *Config) { c.ServiceCIDR = netip.MustParsePrefix("10.43.0.0/30") },
		"DNSAddr":     func(c *Config) { c.DNSAddr = netip.MustParseAddr("10.44.0.10") },
		"DataDir":     func(c *Config) { c.DataDir = "" },
	} {
		c := good
		spoil(&c)
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestViewNodes(t *testing.T) {
	self := peerNode("n1", "10.0.0.1", "10.42.0.0/24")
	self.Labels = map[string]string{v1.LabelTopologyZone: "z1"}
	noRange, noAddr := peerNode("n3", "10.0.0.3", ""), peerNode("n4", "10.0.0.4", "10.42.4.0/24")
	noAddr.Status.Addresses = nil
	v := viewNodes([]*v1.Node{peerNode("n2", "10.0.0.2", "10.42.2.0/24"), noRange, self, noAddr,
		{ObjectMeta: metav1.ObjectMeta{Name: "n0"}, Spec: v1.NodeSpec{PodCIDR: "fd00::/64"}}}, "n1")
	if v.podCIDR.String() != "10.42.0.0/24" || v.zone != "z1" || len(v.peers) != 1 || v.peers[0].Name != "n2" {
		t.Errorf("%+v", v)
	}
}
