package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowServer streams to those who ask for /watch, and counts handshakes, which
// it may delay.
type slowServer struct {
	*httptest.Server
	handshakes atomic.Int32
	delay      atomic.Int64
}

func (a *authority) slow(t *testing.T) *slowServer {
	t.Helper()
	s := &slowServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/watch" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.cert}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.handshakes.Add(1)
		time.Sleep(time.Duration(s.delay.Load()))
		return nil, nil
	}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s
}

func (s *slowServer) address() string { return s.Listener.Addr().String() }

// watchAll begins n watches together and returns their bodies.
func watchAll(t *testing.T, c *http.Client, n int) []io.ReadCloser {
	t.Helper()
	var wg sync.WaitGroup
	out := make([]io.ReadCloser, n)
	for i := range n {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, Host+"/watch", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("watch %d: %v", i, err)
				return
			}
			out[i] = resp.Body
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return out
}

// TestOneHandshakeForAll: when a server is lost, a client with many watches makes
// one connection to the next, not one for each.
func TestOneHandshakeForAll(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, two := a.slow(t), a.slow(t)
	one.delay.Store(int64(50 * time.Millisecond))
	two.delay.Store(int64(50 * time.Millisecond))
	c := client(t, a, New("", list(one.address(), two.address())...))
	bodies := watchAll(t, c, 40)
	if n := one.handshakes.Load(); n != 1 {
		t.Errorf("%d handshakes for 40 watches", n)
	}
	one.Listener.Close()
	one.CloseClientConnections()
	for _, b := range bodies {
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Fatal("a watch goes on without its server")
		}
	}
	bodies = watchAll(t, c, 40)
	if n := two.handshakes.Load(); n != 1 {
		t.Errorf("%d handshakes with the second server for 40 watches", n)
	}
	for _, b := range bodies {
		b.Close()
	}
}

// TestFailureIsShared: those who wait for a connection fail with the one that
// tries, and all go to the next server.
func TestFailureIsShared(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	deaf, two := a.serve(t, "deaf"), a.slow(t)
	deaf.link.cut.Store(true)
	tr := transport(a.client(), usual) // the second server has as long as that
	t.Cleanup(tr.CloseIdleConnections)
	began := time.Now()
	for _, b := range watchAll(t, &http.Client{Transport: New("", list(deaf.address(), two.address())...).Wrap(tr)}, 20) {
		b.Close()
	}
	if n := two.handshakes.Load(); n != 1 {
		t.Errorf("%d handshakes with the second server", n)
	}
	if d := time.Since(began); d > 20*usual.handshake/2 {
		t.Errorf("20 requests took %v: each waited for itself", d)
	}
}

// TestRequestGivenUpWhileConnecting: another one connects then.
func TestRequestGivenUpWhileConnecting(t *testing.T) {
	t.Parallel()
	var g gate
	ctx := t.Context()
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	leave, err := g.enter(first, "a")
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		leave, err := g.enter(ctx, "a")
		if err == nil {
			leave(nil, nil)
		}
		second <- err
	}()
	if _, err := g.enter(ctx, "b"); err != nil { // another server is another matter
		t.Fatal(err)
	}
	select {
	case err := <-second:
		t.Fatalf("two connect at a time: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	leave(nil, first.Err())
	if err := <-second; err != nil {
		t.Errorf("the second one: %v", err)
	}
	leave, err = g.enter(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := g.enter(ctx, "a")
		second <- err
	}()
	time.Sleep(20 * time.Millisecond) // most of the time it waits by now; if not, it is the next to try
	broken := errors.New("broken")
	leave(nil, broken)
	if err := <-second; err != nil && !errors.Is(err, broken) {
		t.Errorf("who waited for a failure: %v", err)
	}
}

// TestPatienceGrows: a server whose handshakes take longer than a client waits at
// first is reached after a few attempts, and waited for from then on.
func TestPatienceGrows(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s := a.slow(t)
	s.delay.Store(int64(300 * time.Millisecond))
	connect := &connector{times: times{dial: time.Second, handshake: 50 * time.Millisecond, pingAfter: pingAfter, pingWait: pingWait}}
	tr := transport(a.client(), connect.times)
	secure := tlsWith(tr.TLSClientConfig)
	attempt := func() error {
		c, err := connect.dial(t.Context(), "tcp", s.address(), secure)
		if err == nil {
			c.Close()
		}
		return err
	}
	failures := 0
	for attempt() != nil {
		if failures++; failures > 9 {
			t.Fatal("a slow server is never reached")
		}
	}
	if failures == 0 {
		t.Fatal("the server was not slow")
	}
	// For far longer than it takes, however slow this machine is meanwhile.
	if wait := connect.pace(s.address()).wait(connect.times.handshake, patienceMax); wait < time.Duration(s.delay.Load()) {
		t.Errorf("patience after a success is %v", wait)
	}
	if wait := connect.pace("other").wait(time.Second, patienceMax); wait != time.Second {
		t.Errorf("patience with another server is %v", wait)
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	p := &pace{}
	check := func(what string, want time.Duration) {
		t.Helper()
		if got := p.wait(2*time.Second, patienceMax); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("new", 2*time.Second)
	p.failed()
	check("failed", 4*time.Second)
	for range 100 {
		p.failed()
	}
	check("dead for long", patienceMax)
	p.answered(time.Millisecond)
	check("back", 2*time.Second)
	p.answered(time.Second)
	p.answered(time.Millisecond)
	check("was slow just now", slowTimes*time.Second)
	p.failed()
	check("slow and failed", 2*slowTimes*time.Second)
	p.answered(0)
	p.at = p.at.Add(-3*halfLife - time.Second)
	check("was slow long ago", 2*time.Second)
}

// TestSilenceEndsConnection: also of a process that is stopped, which the kernel
// goes on answering for; the error of a watch is one after which it goes on where
// it was.
func TestSilenceEndsConnection(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	k := newLink(t, a.slow(t).address())
	quick := times{dial: time.Second, handshake: 3 * time.Second, pingAfter: 200 * time.Millisecond, pingWait: 300 * time.Millisecond}
	tr := transport(a.client(), quick)
	t.Cleanup(tr.CloseIdleConnections)
	body := watchAll(t, &http.Client{Transport: New("", list(k.Addr().String())...).Wrap(tr)}, 1)[0]
	defer body.Close()
	time.AfterFunc(4*(quick.pingAfter+quick.pingWait), func() { k.cut.Store(true) }) // until then it is idle, but answers
	began := time.Now()
	_, err := body.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("error is %v", err)
	}
	// On a machine that is slow meanwhile its patience grows, to patienceMax.
	if d := time.Since(began); d < 4*(quick.pingAfter+quick.pingWait) || d > 2*patienceMax {
		t.Errorf("the watch ended after %v", d)
	}
}

// TestNoSilenceBeforeAQuestion: a process that could not ask for a sign of life in
// time, because it was stopped, ends no connection for want of an answer.
func TestNoSilenceBeforeAQuestion(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts, and says nothing
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	quick := times{pingAfter: 20 * time.Millisecond, pingWait: 50 * time.Millisecond}
	c := &conn{Conn: raw, times: quick, pace: &pace{}, begin: time.Now()}
	defer c.Close()
	c.watch()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("it ended unasked: %v", err)
	case <-time.After(5 * (quick.pingAfter + quick.pingWait)):
	}
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	var s silence
	if err := <-ended; !errors.As(err, &s) {
		t.Errorf("error is %v", err)
	}
}
