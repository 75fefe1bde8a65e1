package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// The two protocols of the port, told apart by ALPN.
const (
	protoRaft = "skiff-raft/1"
	protoRPC  = "skiff-rpc/1"
)

const (
	handshakeTimeout = 5 * time.Second
	dialTimeout      = 3 * time.Second
)

// port accepts connections, does their TLS handshake and hands them to Raft or
// to the RPC server. It is Raft's StreamLayer.
type port struct {
	listener net.Listener
	addr     advertised
	server   *tls.Config
	client   *tls.Config
	log      *slog.Logger
	raft     chan net.Conn
	serveRPC func(net.Conn)

	stop   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{} // all that are open
}

// advertised is the address that others use.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

func newPort(c *Config, serveRPC func(net.Conn)) *port {
	p := &port{
		listener: c.Listener, addr: advertised(c.AdvertiseAddr),
		server: c.TLS.Clone(), client: c.TLS.Clone(),
		log: c.Logger, raft: make(chan net.Conn), serveRPC: serveRPC,
		conns: map[net.Conn]struct{}{},
	}
	p.server.NextProtos = []string{protoRaft, protoRPC}
	p.stop, p.cancel = context.WithCancel(context.Background())
	return p
}

// serve accepts until Close, and returns when all connections of its own have
// ended.
func (p *port) serve() {
	defer p.wg.Wait()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if p.stop.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			p.log.Warn("accept on the raft port", "error", err)
			select { // such as too many open files
			case <-time.After(100 * time.Millisecond):
			case <-p.stop.Done():
			}
			continue
		}
		p.wg.Go(func() { p.handle(conn) })
	}
}

func (p *port) handle(raw net.Conn) {
	if !p.track(raw) {
		return
	}
	conn := tls.Server(raw, p.server)
	ctx, cancel := context.WithTimeout(p.stop, handshakeTimeout)
	err := conn.HandshakeContext(ctx)
	cancel()
	if err != nil {
		p.log.Debug("refused a connection to the raft port", "from", raw.RemoteAddr(), "error", err)
		p.untrack(raw)
		return
	}
	switch conn.ConnectionState().NegotiatedProtocol {
	case protoRaft:
		c := &trackedConn{Conn: conn, port: p}
		p.mu.Lock()
		delete(p.conns, raw)
		p.mu.Unlock()
		if !p.track(c) {
			return
		}
		select {
		case p.raft <- c:
		case <-p.stop.Done():
			c.Close()
		}
	case protoRPC:
		p.serveRPC(conn)
		p.untrack(raw)
	default:
		p.untrack(raw)
	}
}

// track remembers a connection that Close has to close.
func (p *port) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop.Err() != nil {
		if t, ok := c.(*trackedConn); ok {
			c = t.Conn
		}
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *port) untrack(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.Close()
}

func (p *port) dial(ctx context.Context, addr, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	config := p.client.Clone()
	config.NextProtos = []string{proto}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		config.ServerName = host
	}
	d := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: 15 * time.Second}, Config: config}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != proto {
		conn.Close()
		return nil, fmt.Errorf("dial %s: it does not speak %s", addr, proto)
	}
	return conn, nil
}

// Dial implements raft.StreamLayer.
func (p *port) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.stop, timeout)
	defer cancel()
	conn, err := p.dial(ctx, string(addr), protoRaft)
	if err != nil {
		return nil, err
	}
	c := &trackedConn{Conn: conn, port: p}
	if !p.track(c) {
		return nil, net.ErrClosed
	}
	return c, nil
}

// trackedConn is one of Raft's connections. Raft's transport leaves some open
// when it is closed.
type trackedConn struct {
	net.Conn
	port *port
}

func (c *trackedConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.conns, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// Accept implements net.Listener for Raft.
func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.raft:
		return c, nil
	case <-p.stop.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It closes all connections, and is safe to call
// twice.
func (p *port) Close() error {
	p.cancel()
	p.mu.Lock()
	open := p.conns
	p.conns = map[net.Conn]struct{}{}
	p.mu.Unlock()
	for c := range open {
		c.Close()
	}
	err := p.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addr implements net.Listener.
func (p *port) Addr() net.Addr { return p.addr }
