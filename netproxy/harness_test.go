package netproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/netproxy/nstest"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// node is the test's own namespace as a cluster node, with a client outside.
type node struct {
	t      *testing.T
	client *fake.Clientset
	cfg    Config
	proxy  *Proxy
	stop   func()
	// outside is another host on the node's link.
	outside *nstest.NS
}

const (
	nodeIP    = "192.168.77.1"
	outsideIP = "192.168.77.2"
)

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, client: fake.NewClientset(), outside: nstest.New(t)}
	nstest.Connect(t, nil, "up0", nodeIP+"/24", n.outside, "up0", outsideIP+"/24")
	level := slog.LevelWarn
	if os.Getenv("SKIFF_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.cfg = Config{
		Client: n.client, NodeName: "n1", NodeIP: netip.MustParseAddr(nodeIP),
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		DataDir: t.TempDir(), UpstreamResolvConf: conf,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	n.create(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: v1.NodeSpec{PodCIDR: "10.42.0.0/24"},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: nodeIP}}}})
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) start() {
	n.t.Helper()
	p, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			n.t.Errorf("Run: %v", err)
		}
	}
	select {
	case <-p.Ready():
	case err := <-done:
		n.t.Fatalf("Run: %v", err)
	case <-time.After(20 * time.Second):
		n.t.Fatal("proxy is not ready")
	}
	n.proxy = p
}

// pod is a namespace attached to the node, with a server on port 8080.
type pod struct {
	*nstest.NS
	name string
	ip   string
}

func (n *node) pod(name string) *pod {
	n.t.Helper()
	p := &pod{NS: nstest.New(n.t), name: name}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := n.proxy.Network().Attach(ctx, "uid-"+name, p.Path())
	if err != nil {
		n.t.Fatal(err)
	}
	p.ip = addrs[0].String()
	nstest.Serve(n.t, p.NS, p.ip+":8080", name)
	return p
}

func (n *node) create(obj any) {
	n.t.Helper()
	ctx := context.Background()
	var err error
	switch o := obj.(type) {
	case *v1.Service:
		_, err = n.client.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	case *discovery.EndpointSlice:
		_, err = n.client.DiscoveryV1().EndpointSlices(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	case *v1.Node:
		_, err = n.client.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) updateSlice(s *discovery.EndpointSlice) {
	n.t.Helper()
	if _, err := n.client.DiscoveryV1().EndpointSlices(s.Namespace).Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// newService makes a Service of TCP and UDP port 80 to 8080.
func newService(name, ip string, change ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, ClusterIP: ip, Ports: []v1.ServicePort{
			{Name: "tcp", Protocol: v1.ProtocolTCP, Port: 80}, {Name: "udp", Protocol: v1.ProtocolUDP, Port: 80}}}}
	for _, c := range change {
		c(s)
	}
	return s
}

func nodePort(port int32) func(*v1.Service) {
	return func(s *v1.Service) {
		s.Spec.Type = v1.ServiceTypeNodePort
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = port
		}
	}
}

func ptr[T any](v T) *T { return &v }

// epSlice makes the EndpointSlice of a service with these pods.
func epSlice(svc string, pods ...*pod) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: svc + "-1", Labels: map[string]string{discovery.LabelServiceName: svc}},
		AddressType: discovery.AddressTypeIPv4,
		Ports: []discovery.EndpointPort{
			{Name: ptr("tcp"), Protocol: ptr(v1.ProtocolTCP), Port: ptr(int32(8080))},
			{Name: ptr("udp"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(8080))}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{p.ip}, NodeName: ptr("n1"),
			Conditions: discovery.EndpointConditions{Ready: ptr(true)}})
	}
	return s
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// reach waits until a service answers at addr.
func reach(t *testing.T, from *nstest.NS, network, addr string) {
	t.Helper()
	eventually(t, "reach "+addr, func() error {
		_, err := nstest.Ask(from, network, addr)
		return err
	})
}

// census asks n times and counts who answered and as whom the client was seen.
func census(t *testing.T, from *nstest.NS, network, addr string, n int) (servers, clients map[string]int) {
	t.Helper()
	servers, clients = map[string]int{}, map[string]int{}
	for i := range n {
		a, err := nstest.Ask(from, network, addr)
		if err != nil {
			t.Fatalf("question %d to %s: %v", i, addr, err)
		}
		servers[a.Server]++
		clients[a.Client]++
	}
	return servers, clients
}

func only(m map[string]int, key string) error {
	if len(m) != 1 || m[key] == 0 {
		return fmt.Errorf("want only %q, got %v", key, m)
	}
	return nil
}
