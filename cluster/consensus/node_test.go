package consensus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// testTLS is a configuration by which all members of a test trust each other.
var testTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"server"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: "server", MinVersion: tls.VersionTLS13,
	}
})

// member is a node that a test can stop and start again.
type member struct {
	*Node
	config Config
	cancel context.CancelFunc
	done   chan error
}

func testLogger(t testing.TB) *slog.Logger {
	level := slog.LevelError
	if os.Getenv("SKIFF_TEST_LOG") != "" {
		level = slog.LevelDebug - 4
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// lastPort is the last one that listen has chosen.
var lastPort atomic.Uint32

func init() { lastPort.Store(uint32(os.Getpid()*397) % (endPort - firstPort)) }

// Ports that the kernel gives to nobody who asks for any, see
// net.ipv4.ip_local_port_range: one of a stopped member is free until that starts
// again, and no other test's member gets what the others still send to it.
const firstPort, endPort = 20000, 30000

// listen with port 0 takes one that no test of this process has had.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	for strings.HasSuffix(addr, ":0") {
		port := firstPort + lastPort.Add(1)%(endPort-firstPort)
		l, err := net.Listen("tcp", strings.TrimSuffix(addr, "0")+fmt.Sprint(port))
		if err == nil {
			return l
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start runs a member until the test ends or stop is called.
func start(t testing.TB, c Config) *member {
	t.Helper()
	if c.Logger == nil {
		c.Logger = testLogger(t)
	}
	if c.TLS == nil {
		c.TLS = testTLS()
	}
	if c.FSM == nil {
		c.FSM = fsm.New(store.New(store.Config{}))
	}
	if c.Listener == nil {
		c.Listener = listen(t, "127.0.0.1:0")
	}
	if c.AdvertiseAddr == "" {
		c.AdvertiseAddr = c.Listener.Addr().String()
	}
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{Node: n, config: c, cancel: cancel, done: make(chan error, 1)}
	go func() { m.done <- n.Run(ctx) }()
	t.Cleanup(func() { m.stop(t) })
	return m
}

func (m *member) stop(t testing.TB) {
	t.Helper()
	m.cancel()
	if m.done == nil {
		return
	}
	select {
	case err := <-m.done:
		if err != nil {
			t.Errorf("Run of %s: %v", m.config.NodeID, err)
		}
	case <-time.After(patience):
		t.Errorf("Run of %s does not return", m.config.NodeID)
	}
	m.done = nil
}

// restart starts the member again on its data and, unless it changes, address.
func (m *member) restart(t testing.TB) *member {
	t.Helper()
	m.stop(t)
	c := m.config
	c.Listener = listen(t, c.AdvertiseAddr)
	c.FSM = nil
	return start(t, c)
}

// single starts a new cluster of one.
func single(t testing.TB, dir string) *member {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	return start(t, Config{
		NodeID: "a", DataDir: dir, Listener: l,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	})
}

func (m *member) awaitReady(t testing.TB) {
	t.Helper()
	select {
	case <-m.Ready():
	case err := <-m.done:
		m.done <- err
		t.Fatalf("%s ended: %v", m.config.NodeID, err)
	case <-time.After(patience):
		t.Fatalf("%s is not ready", m.config.NodeID)
	}
}

// put writes. Without an expectation it writes again when the outcome is
// unknown, as when a busy machine costs a leader its place.
func (m *member) put(t testing.TB, key, value string, expect int64) fsm.Result {
	t.Helper()
	cmd := fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: []byte(value), Expect: expect})
	r, err := m.Propose(t.Context(), cmd)
	for try := 0; try < 3 && expect == fsm.Any && errors.Is(err, ErrUnknownOutcome); try++ {
		r, err = m.Propose(t.Context(), cmd)
	}
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return r
}

func onePut(key, value string) fsm.Command {
	return fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: []byte(value), Expect: fsm.Any})
}

func (m *member) get(key string) string {
	if kv, ok := m.c.FSM.Store().View().Get(key); ok {
		return string(kv.Value)
	}
	return "<none>"
}

// patience is how long a test waits for what has to come.
const patience = time.Minute

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestSingleServer(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	m := single(t, dir)
	m.awaitReady(t)
	t.Logf("ready after %v", time.Since(begin))
	if !m.IsLeader() || m.config.FSM.ClusterID() == "" {
		t.Errorf("ready, but leader %v, cluster id %q", m.IsLeader(), m.config.FSM.ClusterID())
	}
	if led := <-m.LeadershipChanges(); !led {
		t.Error("LeadershipChanges of a leader begins with false")
	}
	r := m.put(t, "/a", "1", 0)
	if r.Err != nil || r.Revision != 2 || r.Current == nil {
		t.Errorf("first put: %+v", r)
	}
	if r := m.put(t, "/a", "2", 0); !errors.Is(r.Err, store.ErrExists) || string(r.Current.Value) != "1" {
		t.Errorf("second create: %+v", r)
	}
	if err := m.ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Barrier(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := m.Propose(t.Context(), fsm.Command{}); !errors.Is(err, fsm.ErrInvalid) {
		t.Errorf("empty command: %v", err)
	}
	before := m.Stats()
	id := m.config.FSM.ClusterID()

	begin = time.Now()
	m = m.restart(t)
	m.awaitReady(t)
	t.Logf("ready again after %v", time.Since(begin))
	if got := m.get("/a"); got != "1" {
		t.Errorf("after restart /a is %q", got)
	}
	after := m.Stats()
	if after.Revision != before.Revision || m.config.FSM.ClusterID() != id || after.Term <= before.Term {
		t.Errorf("before restart %+v, after %+v", before, after)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	m := single(t, dir)
	c := m.config
	_, err := New(c)
	if !errors.Is(err, ErrLocked) || !containsAll(err.Error(), dir, fmt.Sprint(os.Getpid())) {
		t.Errorf("second New on one data dir: %v", err)
	}
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
