package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/fsm/store"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // the API library's log
	os.Exit(m.Run())
}

// testServer is a running server in this process, on loopback ports.
type testServer struct {
	*Server
	// client is an administrator through TLS and JSON.
	client kubernetes.Interface
	config *rest.Config
	stop   func()
	ended  <-chan struct{} // closed when Run has returned
}

// onLoopback listens where the test may, whatever port is asked for.
func onLoopback(network, _ string) (net.Listener, error) {
	return net.Listen(network, fmt.Sprintf("127.0.0.1:%d", freePort()))
}

// quickGossip finds deaths fast.
var quickGossip = gossip.Timing{Probe: 100 * time.Millisecond, ProbeWait: 50 * time.Millisecond, Gossip: 20 * time.Millisecond}

// lastPort is the last one that freePort has tried.
var lastPort atomic.Uint32

func init() { lastPort.Store(uint32(os.Getpid()*397) % (endPort - firstPort)) }

// Ports that the kernel gives to nobody who asks for any, see
// net.ipv4.ip_local_port_range.
const firstPort, endPort = 20000, 30000

// freePort is one that nobody has now, for UDP and TCP, and that no other test of
// this process gets: a server finds it free when it is started, also a second time.
func freePort() uint16 {
	for {
		port := uint16(firstPort + lastPort.Add(1)%(endPort-firstPort))
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			panic(err)
		}
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			p.Close()
			return port
		}
	}
}

func testConfig(dir string) Config {
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	return Config{
		Name: "test", DataDir: dir, Version: "test", Listen: onLoopback,
		GossipPort: freePort(), GossipTiming: quickGossip,
		BindAddress: netip.MustParseAddr("127.0.0.1"), AdvertiseAddress: netip.MustParseAddr("127.0.0.1"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
}

// startServer runs a server on dir until the test ends or stop is called.
func startServer(t testing.TB, c Config) *testServer {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, over := make(chan error, 1), make(chan struct{})
	go func() { ended <- s.Run(ctx); close(over) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("server ended with: %v", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("server ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("server is not ready after a minute")
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.KubeconfigPath())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &testServer{Server: s, client: client, config: config, stop: stop, ended: over}
}

// newServer runs a server on a new data dir.
func newServer(t testing.TB) *testServer {
	t.Helper()
	return startServer(t, testConfig(t.TempDir()))
}

func (s *testServer) dynamic(t testing.TB) dynamic.Interface {
	t.Helper()
	d, err := dynamic.NewForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// kubectl runs the stock kubectl with stdin and returns both of its outputs.
func (s *testServer) kubectl(t testing.TB, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed")
	}
	cmd := exec.Command(path, args...)
	home := t.TempDir() // no discovery cache of others
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.KubeconfigPath(), "HOME="+home)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// mustKubectl is kubectl that has to succeed.
func (s *testServer) mustKubectl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, errs, err := s.kubectl(t, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// eventually waits for a condition that has to come true, on a busy machine late.
func eventually(t testing.TB, what string, cond func() (bool, error)) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		ok, err := cond()
		if ok {
			return
		}
		last = err
	}
	t.Fatalf("%s: not within a minute (last error: %v)", what, last)
}

func TestFoundation(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	ctx := t.Context()
	for _, ns := range namespaces {
		if _, err := s.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); err != nil {
			t.Errorf("namespace %s: %v", ns, err)
		}
	}
	for _, want := range []struct{ namespace, name, ip string }{
		{"default", "kubernetes", "10.43.0.1"}, {"kube-system", "kube-dns", "10.43.0.10"},
	} {
		eventually(t, "service "+want.name, func() (bool, error) {
			svc, err := s.client.CoreV1().Services(want.namespace).Get(ctx, want.name, metav1.GetOptions{})
			return err == nil && svc.Spec.ClusterIP == want.ip, err
		})
	}
	eventually(t, "client CA", func() (bool, error) {
		m, err := s.client.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
		return err == nil && strings.Contains(m.Data["client-ca-file"], "BEGIN CERTIFICATE"), err
	})
	eventually(t, "default roles", func() (bool, error) {
		_, err := s.client.RbacV1().ClusterRoles().Get(ctx, "cluster-admin", metav1.GetOptions{})
		return err == nil, err
	})
	for _, key := range []string{"/skiff/trust", settingsKey} {
		if _, ok := s.state.View().Get(key); !ok {
			t.Errorf("%s is not in the replicated state", key)
		}
	}
}

func TestRestartKeepsEverythingAndWritesNothing(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	eventually(t, "quiet", quiet(s))
	id := s.ID()
	c := testConfig(dir)
	c.Port, c.RaftPort, c.GossipPort, c.Listen = s.cfg.Port, s.cfg.RaftPort, s.cfg.GossipPort, net.Listen
	for try := range 3 { // what a first start did not come to, as it can be on a busy machine, is done by the next
		before := s.state.Revision()
		s.stop()
		s = startServer(t, c)
		eventually(t, "quiet", quiet(s))
		if s.ID() != id {
			t.Fatalf("identity changed from %s to %s", id, s.ID())
		}
		after := s.state.Revision()
		if after == before {
			return
		}
		s.state.View().Ascend("", "", func(kv *store.KeyValue) bool {
			if kv.ModRevision > before {
				t.Logf("restart %d wrote %s", try+1, kv.Key)
			}
			return true
		})
	}
	t.Error("each restart changes the state")
}

// quiet says whether nothing was written for a while.
func quiet(s *testServer) func() (bool, error) {
	last, since := int64(0), time.Now()
	return func() (bool, error) {
		if rev := s.state.Revision(); rev != last {
			last, since = rev, time.Now()
		}
		return time.Since(since) > 700*time.Millisecond, nil
	}
}

func TestDataDirIsLocked(t *testing.T) {
	dir := t.TempDir()
	startServer(t, testConfig(dir))
	if _, err := New(testConfig(dir)); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("a second server on the same data dir: %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := testConfig(t.TempDir())
	c.Listen, c.Port = nil, listenPort(taken)
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("port in use: %v", err)
	}
	// Nothing stays open or locked.
	s, err := New(testConfig(c.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestConfigIsValidated(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"Name":             func(c *Config) { c.Name = "" },
		"DataDir":          func(c *Config) { c.DataDir = "" },
		"Logger":           func(c *Config) { c.Logger = nil },
		"AdvertiseAddress": func(c *Config) { c.AdvertiseAddress = netip.Addr{} },
		"overlap":          func(c *Config) { c.ClusterCIDR = netip.MustParsePrefix("10.43.0.0/17") },
		"IPv4":             func(c *Config) { c.ServiceCIDR = netip.MustParsePrefix("fd00::/112") },
	} {
		c := testConfig(t.TempDir())
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
