package netproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/netproxy/nstest"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodConnectivity(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		for _, c := range []struct {
			name, addr, client string
			from               *nstest.NS
		}{
			{"pod to pod", b.ip + ":8080", a.ip, a.NS},
			{"host to pod", a.ip + ":8080", nodeIP, nil},
		} {
			for _, network := range []string{"tcp4", "udp4"} {
				got, err := nstest.Ask(c.from, network, c.addr)
				if err != nil || got.Client != c.client {
					t.Errorf("%s by %s: %v, %v, want client %s", c.name, network, got, err, c.client)
				}
			}
		}
		// Traffic that leaves the cluster has the node's address.
		nstest.Serve(t, n.outside, outsideIP+":9000", "outside")
		if got, err := nstest.Ask(a.NS, "tcp4", outsideIP+":9000"); err != nil || got.Client != nodeIP {
			t.Errorf("pod to outside: %v, %v", got, err)
		}
		// The host's loopback addresses are not open to pods.
		nstest.Serve(t, nil, "127.0.0.1:9001", "host-only")
		a.Do(func() error {
			c, err := net.DialTimeout("tcp4", "169.254.1.1:9001", 100*time.Millisecond)
			if err == nil {
				c.Close()
				return errors.New("a pod reaches the host by its gateway address")
			}
			return nil
		})
	})
}

func TestClusterIP(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b, c := n.pod("a"), n.pod("b"), n.pod("c")
		n.create(newService("web", "10.43.0.20"))
		n.create(epSlice("web", a, b))
		for _, from := range []*nstest.NS{c.NS, nil} {
			for _, network := range []string{"tcp4", "udp4"} {
				reach(t, from, network, "10.43.0.20:80")
				servers, clients := census(t, from, network, "10.43.0.20:80", 60)
				if len(servers) != 2 || servers["a"] < 10 || servers["b"] < 10 {
					t.Errorf("%s from %v: servers %v", network, from, servers)
				}
				want := nodeIP
				if from != nil {
					want = c.ip
				}
				if err := only(clients, want); err != nil {
					t.Errorf("%s: client addresses: %v", network, err)
				}
			}
		}
		// Outside hosts that route the service range to the node.
		n.outside.Do(func() error { return addRoute("10.43.0.0/16", nodeIP) })
		if _, clients := census(t, n.outside, "tcp4", "10.43.0.20:80", 4); only(clients, nodeIP) != nil {
			t.Errorf("from outside: %v", clients)
		}
	})
}

func TestHairpin(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a := n.pod("a")
		n.create(newService("self", "10.43.0.21", nodePort(30021)))
		n.create(epSlice("self", a))
		for _, network := range []string{"tcp4", "udp4"} {
			for _, addr := range []string{"10.43.0.21:80", nodeIP + ":30021"} {
				reach(t, a.NS, network, addr)
				if _, clients := census(t, a.NS, network, addr, 3); only(clients, nodeIP) != nil {
					t.Errorf("%s %s: client addresses %v", network, addr, clients)
				}
			}
		}
	})
}

func TestNodePort(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		n.create(newService("np", "10.43.0.22", nodePort(30022)))
		n.create(epSlice("np", a))
		for _, c := range []struct {
			name, addr string
			from       *nstest.NS
		}{
			{"outside", nodeIP + ":30022", n.outside},
			{"host by its address", nodeIP + ":30022", nil},
			{"host by loopback", "127.0.0.1:30022", nil},
			{"pod", nodeIP + ":30022", b.NS},
		} {
			for _, network := range []string{"tcp4", "udp4"} {
				reach(t, c.from, network, c.addr)
				servers, clients := census(t, c.from, network, c.addr, 3)
				if err := only(servers, "a"); err != nil {
					t.Errorf("%s %s: %v", c.name, network, err)
				}
				if err := only(clients, nodeIP); err != nil {
					t.Errorf("%s %s: client addresses: %v", c.name, network, err)
				}
			}
		}
	})
}

func TestExternalAddresses(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a := n.pod("a")
		n.create(newService("ext", "10.43.0.23", func(s *v1.Service) {
			s.Spec.Type = v1.ServiceTypeLoadBalancer
			s.Spec.ExternalIPs = []string{"172.30.0.1"}
			s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "172.30.0.2"}}
		}))
		n.create(epSlice("ext", a))
		n.outside.Do(func() error { return addRoute("172.30.0.0/24", nodeIP) })
		for _, addr := range []string{"172.30.0.1:80", "172.30.0.2:80"} {
			for _, from := range []*nstest.NS{n.outside, a.NS} {
				reach(t, from, "tcp4", addr)
			}
		}
	})
}

func TestExternalTrafficPolicyLocal(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a := n.pod("a")
		local := func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal }
		n.create(newService("here", "10.43.0.24", nodePort(30024), local))
		n.create(epSlice("here", a))
		n.create(newService("there", "10.43.0.25", nodePort(30025), local))
		elsewhere := epSlice("there", a)
		elsewhere.Endpoints[0].NodeName = ptr("n2")
		n.create(elsewhere)

		reach(t, n.outside, "tcp4", nodeIP+":30024")
		if _, clients := census(t, n.outside, "tcp4", nodeIP+":30024", 3); only(clients, outsideIP) != nil {
			t.Errorf("client addresses %v, want the outside host's", clients)
		}
		// Pods and the host reach endpoints of other nodes; outside hosts get
		// no answer, so that a load balancer looks elsewhere.
		reach(t, nil, "tcp4", nodeIP+":30025")
		reach(t, a.NS, "tcp4", nodeIP+":30025")
		n.outside.Do(func() error {
			c, err := net.DialTimeout("tcp4", nodeIP+":30025", 200*time.Millisecond)
			var timeout net.Error
			if err == nil {
				c.Close()
			} else if errors.As(err, &timeout) && timeout.Timeout() {
				return nil
			}
			return fmt.Errorf("outside host without local endpoint: %v, want a timeout", err)
		})
	})
}

func TestNoEndpoints(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a := n.pod("a")
		n.create(newService("none", "10.43.0.26", nodePort(30026)))
		refused := func(from *nstest.NS, network, addr string) func() error {
			return func() error {
				start := time.Now()
				_, err := nstest.Ask(from, network, addr)
				// The host's own UDP packets do not even leave: EPERM.
				local := from == nil && network == "udp4" && errors.Is(err, syscall.EPERM)
				if !errors.Is(err, syscall.ECONNREFUSED) && !local {
					return fmt.Errorf("%s %s: %v, want refusal", network, addr, err)
				}
				if d := time.Since(start); d > time.Second {
					return fmt.Errorf("%s %s: refused only after %v", network, addr, d)
				}
				return nil
			}
		}
		for _, network := range []string{"tcp4", "udp4"} {
			eventually(t, "pod", refused(a.NS, network, "10.43.0.26:80"))
			eventually(t, "host", refused(nil, network, "10.43.0.26:80"))
			eventually(t, "pod to node port", refused(a.NS, network, nodeIP+":30026"))
			eventually(t, "outside", refused(n.outside, network, nodeIP+":30026"))
			// An address without a service, and a port without one.
			eventually(t, "unknown address", refused(a.NS, network, "10.43.9.9:80"))
			eventually(t, "unknown address from host", refused(nil, network, "10.43.9.9:80"))
			eventually(t, "unknown port", refused(a.NS, network, "10.43.0.26:81"))
		}
		n.create(epSlice("none", a))
		reach(t, a.NS, "tcp4", "10.43.0.26:80")
		reach(t, n.outside, "udp4", nodeIP+":30026")
	})
}

func TestSessionAffinity(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b, c, d := n.pod("a"), n.pod("b"), n.pod("c"), n.pod("d")
		sticky := newService("sticky", "10.43.0.27", func(s *v1.Service) {
			s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr(int32(3600))}}
		})
		n.create(sticky)
		n.create(epSlice("sticky", a, b, c))
		byName := map[string]*pod{"a": a, "b": b, "c": c}
		for _, network := range []string{"tcp4", "udp4"} {
			reach(t, d.NS, network, "10.43.0.27:80")
			servers, _ := census(t, d.NS, network, "10.43.0.27:80", 20)
			if len(servers) != 1 {
				t.Fatalf("%s: one client on several servers: %v", network, servers)
			}
		}
		first, err := nstest.Ask(d.NS, "tcp4", "10.43.0.27:80")
		if err != nil {
			t.Fatal(err)
		}
		// Its endpoint goes away: the client moves, and then stays.
		var left []*pod
		for name, p := range byName {
			if name != first.Server {
				left = append(left, p)
			}
		}
		n.updateSlice(epSlice("sticky", left...))
		eventually(t, "client moves", func() error {
			got, err := nstest.Ask(d.NS, "tcp4", "10.43.0.27:80")
			if err == nil && got.Server == first.Server {
				err = errors.New("still on the removed endpoint")
			}
			return err
		})
		if servers, _ := census(t, d.NS, "tcp4", "10.43.0.27:80", 20); len(servers) != 1 {
			t.Errorf("after the move: %v", servers)
		}
		// After the timeout the choice is free again. It is short only now: a slow
		// machine may pause for a second between two questions.
		sticky = sticky.DeepCopy()
		sticky.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = ptr(int32(1))
		if _, err := n.client.CoreV1().Services("default").Update(t.Context(), sticky, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		n.updateSlice(epSlice("sticky", a, b, c))
		seen := map[string]bool{}
		eventually(t, "affinity is forgotten", func() error {
			time.Sleep(1100 * time.Millisecond)
			got, err := nstest.Ask(d.NS, "tcp4", "10.43.0.27:80")
			seen[got.Server] = true
			if err == nil && len(seen) < 2 {
				err = fmt.Errorf("only ever %v", seen)
			}
			return err
		})
	})
}

func TestHostPortsOnOneAddress(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		for p, addr := range map[*pod]string{a: "127.0.0.1", b: nodeIP} {
			m := []podnet.PortMapping{{HostIP: netip.MustParseAddr(addr), HostPort: 18080, ContainerPort: 8080}}
			if err := n.proxy.Network().HostPorts(t.Context(), "uid-"+p.name, m); err != nil {
				t.Fatal(err)
			}
		}
		for addr, want := range map[string]string{"127.0.0.1": "a", nodeIP: "b"} {
			if got, err := nstest.Ask(nil, "tcp4", addr+":18080"); err != nil || got.Server != want {
				t.Errorf("%s: %v, %v", addr, got, err)
			}
		}
		if got, err := nstest.Ask(n.outside, "tcp4", nodeIP+":18080"); err != nil || got.Server != "b" {
			t.Errorf("from outside: %v, %v", got, err)
		}
	})
}

func TestHostPorts(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		publish(t, n, a, 18080)
		for _, from := range []*nstest.NS{n.outside, nil, a.NS, b.NS} {
			for _, network := range []string{"tcp4", "udp4"} {
				got, err := nstest.Ask(from, network, nodeIP+":18080")
				if err != nil || got.Server != "a" {
					t.Errorf("%s from %v: %v, %v", network, from, got, err)
				}
			}
		}
		if got, err := nstest.Ask(nil, "tcp4", "127.0.0.1:18080"); err != nil || got.Server != "a" {
			t.Errorf("by loopback: %v, %v", got, err)
		}
		if got, err := nstest.Ask(n.outside, "tcp4", nodeIP+":18080"); err != nil || got.Client != outsideIP {
			t.Errorf("client address: %v, %v", got, err)
		}
		if err := n.proxy.Network().HostPorts(t.Context(), "uid-b", mappings(18080)); err == nil {
			t.Error("two pods with one host port")
		}
		if err := n.proxy.Network().Detach(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		publish(t, n, b, 18080)
		if got, err := nstest.Ask(n.outside, "tcp4", nodeIP+":18080"); err != nil || got.Server != "b" {
			t.Errorf("after the first pod left: %v, %v", got, err)
		}
	})
}
