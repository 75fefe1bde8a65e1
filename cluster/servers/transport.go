package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/pki"
)

// How fast a server that vanished without a word is noticed: a connection on
// which nothing was read for pingAfter is asked for a sign of life, and dropped
// if there is none within pingWait. The kernel drops one that does not
// acknowledge what was sent within sendWait. Servers that were slow to answer
// before are given longer (pace).
const (
	dialWait      = 1500 * time.Millisecond
	handshakeWait = 3 * time.Second
	pingAfter     = 3 * time.Second
	pingWait      = 2 * time.Second
	sendWait      = 5 * time.Second
)

// Environment of client-go, which makes the transports of kubectl, for the same
// times in seconds.
var Environment = map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "3", "HTTP2_PING_TIMEOUT_SECONDS": "2"}

// RemovedHeader is in the answers of a server that was removed from the cluster.
// It has done nothing of what it was asked for, and tells at most what it knows of
// itself.
const RemovedHeader = "Skiff-Removed"

// Dialer notices soon when a server is gone.
func Dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:   dialWait,
		KeepAlive: 5 * time.Second,
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sendWait/time.Millisecond))
			})
			return errors.Join(cerr, err)
		},
	}
}

// Transport speaks HTTP/2 with servers of which every certificate holds
// ServerName. c has roots and the client's certificate; what it is is asked at
// each handshake if c has GetClientCertificate and VerifyConnection.
func Transport(c *tls.Config) *http.Transport { return transport(c, usual) }

func transport(c *tls.Config, times times) *http.Transport {
	c = c.Clone()
	c.ServerName = ServerName
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	connect := &connector{times: times}
	return &http.Transport{
		// For proxies; they pass by what is said above of silent servers.
		DialContext:         Dialer().DialContext,
		TLSClientConfig:     c,
		TLSHandshakeTimeout: times.handshake,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return connect.dial(ctx, network, address, tlsWith(c))
		},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 25,
		IdleConnTimeout:     90 * time.Second,
		// HTTP/2 asks for signs of life, the connection waits for them.
		HTTP2: &http.HTTP2Config{SendPingTimeout: times.pingAfter, PingTimeout: 2 * patienceMax},
	}
}

func tlsWith(c *tls.Config) func(context.Context, net.Conn) (net.Conn, error) {
	return func(ctx context.Context, raw net.Conn) (net.Conn, error) {
		conn := tls.Client(raw, c)
		return conn, conn.HandshakeContext(ctx)
	}
}

// DynamicTransport is Transport for a holder whose certificate and CAs change:
// each connection is made with those of its time, and ends before its
// certificate does.
func DynamicTransport(source pki.CertSource) *http.Transport {
	t := Transport(&tls.Config{MinVersion: tls.VersionTLS12})
	t.TLSClientConfig = nil
	connect := &connector{times: usual}
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return connect.dial(ctx, network, address, func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			dial := func(context.Context, string, string) (net.Conn, error) { return raw, nil }
			return pki.DialTLS(source, pki.TLSOptions{}, dial)(ctx, network, net.JoinHostPort(ServerName, "443"))
		})
	}
	return t
}

// Wrap gives a RoundTripper that sends each request to one of the servers by way
// of base, which must accept ServerName in their certificates. A request that
// cannot have reached its server, and one that reads, goes on to the next server
// when it fails.
// Requests that find no connection wait for one that makes it.
func (b *Balancer) Wrap(base http.RoundTripper) http.RoundTripper {
	return &roundTripper{b: b, base: base}
}

type roundTripper struct {
	b    *Balancer
	base http.RoundTripper
	gate gate
}

// WrappedRoundTripper lets client-go find the transport below.
func (t *roundTripper) WrappedRoundTripper() http.RoundTripper { return t.base }

func (t *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	list := t.b.order()
	if len(list) == 0 {
		closeBody(req.Body)
		return nil, ErrNone
	}
	body := &heldBody{ReadCloser: req.Body}
	defer body.release()
	var last error
	for _, address := range list {
		resp, sent, err := t.try(req, address, body)
		if err == nil && resp.Header.Get(RemovedHeader) != "" && (req.Body == nil || req.Body == http.NoBody) && address != list[len(list)-1] {
			t.b.Bad(address)
			resp.Body.Close()
			continue
		}
		if err == nil {
			t.judge(address, resp)
			return resp, nil
		}
		last = fmt.Errorf("server %s: %w", address, err)
		if req.Context().Err() != nil {
			return nil, last
		}
		t.b.Bad(address)
		reads := req.Method == http.MethodGet || req.Method == http.MethodHead
		if sent && !reads || body.touched.Load() {
			return nil, last
		}
	}
	return nil, last
}

// try sends req to one server; sent tells whether it may have got there.
func (t *roundTripper) try(req *http.Request, address string, body *heldBody) (_ *http.Response, sent bool, err error) {
	leave, err := t.gate.enter(req.Context(), address)
	if err != nil {
		return nil, false, err
	}
	defer func() { leave(nil, err) }()
	var connected atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		connected.Store(true)
		leave(i.Conn, nil)
	}}
	r := req.Clone(httptrace.WithClientTrace(req.Context(), trace))
	r.URL.Host = address
	if r.Host == "" {
		r.Host = req.URL.Host
	}
	if req.Body != nil && req.Body != http.NoBody {
		r.Body = body.hand()
	}
	resp, err := t.base.RoundTrip(r)
	if resp != nil {
		body.end()
		resp.Request = req
	}
	return resp, connected.Load(), err
}

// judge learns from an answer. A server that has lost its cluster says so with
// 503 and Retry-After, one that was removed with RemovedHeader; whoever asks again
// after that time is sent to another.
func (t *roundTripper) judge(address string, resp *http.Response) {
	if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" || resp.Header.Get(RemovedHeader) != "" {
		t.b.Bad(address)
		return
	}
	t.b.Good(address)
}

// heldBody keeps a request's body open from one attempt to the next: transports
// close it when they fail.
type heldBody struct {
	io.ReadCloser
	touched atomic.Bool // something was read, so that it cannot be sent again

	mu       sync.Mutex
	handed   bool // an attempt holds it
	over     bool // no further attempt will follow
	released bool
}

func (h *heldBody) hand() io.ReadCloser {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handed = true
	return &attempt{h: h}
}

// end tells that an attempt has succeeded: the transport closes the body when it
// has sent all of it, which may be after the answer.
func (h *heldBody) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	if h.ReadCloser != nil && !h.handed {
		h.close()
	}
}

// release closes the body unless an attempt that succeeded will.
func (h *heldBody) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.over = true
		h.close()
	}
}

func (h *heldBody) close() {
	if !h.released {
		h.released = true
		closeBody(h.ReadCloser)
	}
}

// attempt is the body as one attempt sees it.
type attempt struct{ h *heldBody }

func (a *attempt) Read(p []byte) (int, error) {
	a.h.touched.Store(true)
	return a.h.ReadCloser.Read(p)
}

func (a *attempt) Close() error {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	a.h.handed = false
	if a.h.over {
		a.h.close()
	}
	return nil
}

func closeBody(b io.ReadCloser) {
	if b != nil {
		_ = b.Close()
	}
}

// Handshake connects to a server and verifies it: a try for Pick. Unlike a bare
// connection it fails with a process that is stopped.
func Handshake(c *tls.Config) func(ctx context.Context, address string) error {
	c = c.Clone()
	c.ServerName = ServerName
	return func(ctx context.Context, address string) error {
		ctx, cancel := context.WithTimeout(ctx, dialWait+handshakeWait)
		defer cancel()
		d := &tls.Dialer{NetDialer: Dialer(), Config: c}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
