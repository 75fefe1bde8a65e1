package servers

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
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// authority makes certificates for test servers.
type authority struct {
	cert tls.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{ServerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool: x509.NewCertPool()}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) client() *tls.Config { return &tls.Config{RootCAs: a.pool} }

// backend is an API server that says its name; its link can be cut without a
// word.
type backend struct {
	*httptest.Server
	link     *link
	requests atomic.Int32
	status   atomic.Int32
	removed  atomic.Bool
}

func (b *backend) address() string { return b.link.Addr().String() }

func (a *authority) serve(t *testing.T, name string) *backend {
	t.Helper()
	b := &backend{}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.requests.Add(1)
		if b.removed.Load() {
			w.Header().Set(RemovedHeader, "true")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if code := b.status.Load(); code != 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(int(code))
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", name, r.Proto, body)
	}))
	b.TLS = &tls.Config{Certificates: []tls.Certificate{a.cert}}
	b.EnableHTTP2 = true
	b.StartTLS()
	b.link = newLink(t, b.Listener.Addr().String())
	t.Cleanup(b.Close)
	return b
}

// link passes connections on until it is cut: then bytes and answers to new
// connections vanish, as behind a cable that was pulled.
type link struct {
	net.Listener
	cut atomic.Bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { near.Close() })
			if k.cut.Load() {
				continue // it hears nothing
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			t.Cleanup(func() { far.Close() })
			go k.pass(near, far)
			go k.pass(far, near)
		}
	}()
	return k
}

func (k *link) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if k.cut.Load() {
			continue
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			from.Close()
			return
		}
	}
}

func client(t *testing.T, a *authority, b *Balancer) *http.Client {
	t.Helper()
	tr := Transport(a.client())
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: b.Wrap(tr)}
}

func ask(t *testing.T, c *http.Client, method, body string) string {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, Host+"/x", r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "error: " + err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "error: " + err.Error()
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return string(b)
}

// closedPort is an address that refuses connections; nobody else gets it before the
// test ends.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// still makes a Balancer whose time stands still, so that no hold ends.
func still(list ...Server) *Balancer {
	b := New("", list...)
	now := time.Now()
	b.now = func() time.Time { return now }
	return b
}

func list(addresses ...string) []Server {
	var out []Server
	for _, a := range addresses {
		out = append(out, Server{Address: a})
	}
	return out
}

func TestStaysWithOneServerAndSpeaksHTTP2(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	c := client(t, a, New("", list(one.address(), two.address())...))
	for range 5 {
		if got := ask(t, c, http.MethodPost, "hello"); got != "one HTTP/2.0 hello" {
			t.Fatal(got)
		}
	}
	if two.requests.Load() != 0 {
		t.Error("requests went to both")
	}
}

func TestGoesToTheNextWhenRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	two := a.serve(t, "two")
	b := New("", list(closedPort(t), two.address())...)
	c := client(t, a, b)
	// Nothing was sent to the first, so that writes are safe too.
	if got := ask(t, c, http.MethodPost, "hello"); got != "two HTTP/2.0 hello" {
		t.Fatal(got)
	}
	if first := b.order()[0]; first != two.address() {
		t.Errorf("next request would begin with %s", first)
	}
}

func TestServerThatDiesUnderRequests(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	c := client(t, a, New("", list(one.address(), two.address())...))
	if got := ask(t, c, http.MethodGet, ""); !strings.HasPrefix(got, "one") {
		t.Fatal(got)
	}
	one.CloseClientConnections()
	one.link.Close()
	one.Close()
	if got := ask(t, c, http.MethodGet, ""); !strings.HasPrefix(got, "two") {
		t.Fatal(got)
	}
	if got := ask(t, c, http.MethodPut, "hello"); got != "two HTTP/2.0 hello" {
		t.Fatal(got)
	}
}

// TestSilentServer cuts the link of a server with a request on its way and with
// a connection that is idle.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	b := New("", list(one.address(), two.address())...)
	c := client(t, a, b)
	if got := ask(t, c, http.MethodGet, ""); !strings.HasPrefix(got, "one") {
		t.Fatal(got)
	}
	one.link.cut.Store(true)
	began := time.Now()
	if got := ask(t, c, http.MethodGet, ""); !strings.HasPrefix(got, "two") {
		t.Fatal(got)
	}
	t.Logf("the read went on after %v", time.Since(began))
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("noticed only after %v", d)
	}
	if got := ask(t, c, http.MethodPost, "hello"); got != "two HTTP/2.0 hello" {
		t.Fatal(got)
	}
}

func TestWriteThatMayHaveArrivedIsNotRepeated(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	c := client(t, a, New("", list(one.address(), two.address())...))
	if got := ask(t, c, http.MethodGet, ""); !strings.HasPrefix(got, "one") {
		t.Fatal(got)
	}
	one.link.cut.Store(true)
	if got := ask(t, c, http.MethodPost, "hello"); !strings.HasPrefix(got, "error: ") {
		t.Fatalf("a write without an answer ended with %q", got)
	}
	if two.requests.Load() != 0 {
		t.Error("it was sent a second time")
	}
}

func TestServerWithoutItsClusterIsLeft(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	one.status.Store(http.StatusServiceUnavailable)
	c := client(t, a, still(list(one.address(), two.address())...))
	if got := ask(t, c, http.MethodPost, "hello"); !strings.HasPrefix(got, "503") {
		t.Fatal(got)
	}
	if got := ask(t, c, http.MethodPost, "hello"); got != "two HTTP/2.0 hello" {
		t.Fatal(got)
	}
}

// A server that was removed has done nothing: what has no body goes to the next at
// once, the rest from the next request on.
func TestServerThatWasRemovedIsLeft(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	one.removed.Store(true)
	for first, want := range map[string]string{"GET": "two HTTP/2.0 ", "DELETE": "two HTTP/2.0 ", "POST": "503"} {
		c := client(t, a, still(list(one.address(), two.address())...))
		body := ""
		if first == "POST" {
			body = "hello"
		}
		if got := ask(t, c, first, body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", first, got, want)
		}
		if got := ask(t, c, http.MethodPost, "hello"); got != "two HTTP/2.0 hello" {
			t.Errorf("after %s: %q", first, got)
		}
	}
	two.removed.Store(true)
	if got := ask(t, client(t, a, New("", list(one.address(), two.address())...)), http.MethodGet, ""); !strings.HasPrefix(got, "503") {
		t.Errorf("all were removed: %q", got)
	}
}

func TestWrongServerIsRefused(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	one, two := other.serve(t, "one"), a.serve(t, "two")
	b := New("", list(one.address(), two.address())...)
	if got := ask(t, client(t, a, b), http.MethodPost, "hello"); got != "two HTTP/2.0 hello" {
		t.Fatal(got)
	}
	if one.requests.Load() != 0 {
		t.Error("a foreign server got the request")
	}
}

func TestAllServersGone(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	b := New("", list(closedPort(t), closedPort(t))...)
	got := ask(t, client(t, a, b), http.MethodPost, "hello")
	if !strings.Contains(got, "connection refused") || !strings.Contains(got, "server 127.0.0.1:") {
		t.Errorf("error is %q", got)
	}
	b.Set(nil)
	if got := ask(t, client(t, a, b), http.MethodPost, "hello"); !strings.Contains(got, ErrNone.Error()) {
		t.Errorf("error without servers is %q", got)
	}
}

func TestPick(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.serve(t, "one"), a.serve(t, "two")
	one.link.cut.Store(true)
	b := New("", list(one.address(), two.address())...)
	began := time.Now()
	got, err := b.Pick(t.Context(), Handshake(a.client()))
	if err != nil || got != two.address() {
		t.Fatalf("picked %s, %v", got, err)
	}
	t.Logf("picked after %v", time.Since(began))
	// What was slow was not proven to be bad, but the other one is the current.
	if first := b.order()[0]; first != two.address() {
		t.Errorf("requests would begin with %s", first)
	}
	b.Set(list(closedPort(t), closedPort(t)))
	if _, err := b.Pick(t.Context(), Handshake(a.client())); err == nil || strings.Count(err.Error(), "refused") != 2 {
		t.Errorf("without a server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Pick(ctx, Handshake(a.client())); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	b := New("", list("a", "b", "c")...)
	b.now = func() time.Time { return now }
	check := func(what string, want ...string) {
		t.Helper()
		if got := b.order(); !slices.Equal(got, want) {
			t.Errorf("%s: order %v, want %v", what, got, want)
		}
	}
	check("new", "a", "b", "c")
	b.Good("b")
	check("stays with what works", "b", "a", "c")
	b.Bad("b")
	check("leaves what fails", "a", "c", "b")
	b.Bad("b") // at the same moment: counts once
	now = now.Add(pauseFirst)
	check("the hold is over", "a", "b", "c")
	b.Bad("b")
	now = now.Add(pauseFirst)
	check("the second hold is longer", "a", "c", "b")
	now = now.Add(pauseFirst)
	check("but ends too", "a", "b", "c")
	b.Bad("a")
	now = now.Add(time.Millisecond)
	b.Bad("b")
	b.Bad("c")
	check("all fail: who was left alone longest", "a", "c", "b")
	b.Set([]Server{{Address: "a", Dead: true}, {Address: "c"}, {Address: "d"}})
	check("records stay", "d", "a", "c")
	now = now.Add(time.Minute)
	check("the dead come last", "c", "d", "a")
	b.Good("d")
	b.Set(list("a", "c", "d"))
	check("alive again: back to the first", "a", "c", "d")
	for range 40 {
		b.Bad("a")
		now = now.Add(pauseMax)
	}
	check("no hold is longer than pauseMax", "a", "c", "d")
}

// TestSpread: clients share the servers evenly, and the loss of one moves only
// its own.
func TestSpread(t *testing.T) {
	t.Parallel()
	all := []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}
	count := map[string]int{}
	for i := range 300 {
		seed := fmt.Sprintf("agent-%d", i)
		first := New(seed, list(all...)...).order()[0]
		count[first]++
		if again := New(seed, list(all[2], all[0], all[1])...).order()[0]; again != first {
			t.Fatalf("%s prefers %s or %s", seed, first, again)
		}
		if first != all[0] {
			if without := New(seed, list(all[1:]...)...).order()[0]; without != first {
				t.Errorf("%s moved from %s to %s", seed, first, without)
			}
		}
	}
	for _, s := range all {
		if count[s] < 70 || count[s] > 130 {
			t.Errorf("clients per server: %v", count)
		}
	}
}
