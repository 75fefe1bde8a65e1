package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

var errCut = errors.New("this server's disk does not answer, or it was removed from the cluster")

// The two protocols of the port, told apart by ALPN.
const (
	protoRaft = "skiff-raft/1"
	protoRPC  = "skiff-rpc/1"
)

const (
	handshakeTimeout = 5 * time.Second
	dialTimeout      = 3 * time.Second // handshake included
	connectTimeout   = time.Second
	lossTimeout      = 3 * time.Second
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
	lost     chan struct{} // of one place: another member has ended a connection of Raft
	serveRPC func(net.Conn)
	id       string // of this member
	epoch    raftdir.Epoch
	connect  func(ctx context.Context, network, addr string) (net.Conn, error)

	stop   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{} // all that are open
	cut    bool                  // no connections for Raft
	shut   bool                  // likewise: this server was not let in yet

	foreign sometimes // complaints about other epochs
}

// advertised is the address that others use.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

func newPort(c *Config, serveRPC func(net.Conn)) *port {
	p := &port{
		listener: c.Listener, addr: advertised(c.AdvertiseAddr),
		server: c.TLS.Clone(), client: c.TLS.Clone(),
		log: c.Logger, raft: make(chan net.Conn), lost: make(chan struct{}, 1), serveRPC: serveRPC,
		conns: map[net.Conn]struct{}{}, connect: c.Dial, id: c.NodeID, epoch: c.Epoch,
	}
	if p.connect == nil {
		p.connect = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
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
	noticeLoss(raw)
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
		if err := p.expectCalled(conn); err != nil {
			level := slog.LevelDebug
			if errors.Is(err, ErrEpoch) && p.foreign.first() {
				level = slog.LevelWarn
			}
			p.log.Log(ctx, level, "refused a connection for raft", "from", raw.RemoteAddr(), "error", err)
			p.untrack(raw)
			return
		}
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
	t, ofRaft := c.(*trackedConn)
	if p.stop.Err() != nil || ofRaft && (p.cut || p.shut) {
		if ofRaft {
			c = t.Conn
		}
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// shutRaft keeps Raft's connections out, or lets them in.
func (p *port) shutRaft(shut bool) {
	p.mu.Lock()
	p.shut = shut
	p.mu.Unlock()
}

// A connection for Raft begins with the ID of the member that is called, after
// one byte for its length. Another server may have the address by now, and must
// neither vote nor acknowledge for it. After the first epoch that of the log
// follows, as it was named by whoever began it.

const epochMark = "#"

// called is how a connection names a member that has the epoch of this one.
func (p *port) called(id string) string {
	if p.epoch.ID == "" {
		return id
	}
	return id + epochMark + p.epoch.ID
}

func callRaft(c net.Conn, called string) error {
	_, err := c.Write(append([]byte{byte(len(called))}, called...))
	return err
}

// expectCalled reads whom a new connection is for.
func (p *port) expectCalled(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	var b [256]byte
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return err
	}
	id := b[1 : 1+int(b[0])]
	if _, err := io.ReadFull(c, id); err != nil {
		return err
	}
	if got := string(id); got != p.called(p.id) {
		if name, _, _ := strings.Cut(got, epochMark); name == p.id {
			return fmt.Errorf("%w: this server has %s", ErrEpoch, p.epoch)
		}
		return fmt.Errorf("it is for %q", got)
	}
	return c.SetReadDeadline(time.Time{})
}

// memberAt is how the transport names a member: by ID and address.
func memberAt(id raft.ServerID, addr string) raft.ServerAddress {
	return raft.ServerAddress(string(id) + "@" + addr)
}

// cutRaft ends all connections of Raft and lets none come about, or lets them
// come about again.
func (p *port) cutRaft(cut bool) {
	p.mu.Lock()
	p.cut = cut
	p.mu.Unlock()
	if cut {
		p.closeRaft(func(*trackedConn) bool { return true })
	}
}

// drop ends the connections that Raft has made to an address.
func (p *port) drop(addr string) {
	p.closeRaft(func(c *trackedConn) bool { return c.target == addr })
}

func (p *port) closeRaft(which func(*trackedConn) bool) {
	var found []net.Conn
	p.mu.Lock()
	for c := range p.conns {
		if t, ok := c.(*trackedConn); ok && which(t) {
			delete(p.conns, c)
			found = append(found, t.Conn)
		}
	}
	p.mu.Unlock()
	for _, c := range found {
		go c.Close() // says goodbye, which can take a while
	}
}

func (p *port) untrack(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.Close()
}

func (p *port) dial(ctx context.Context, addr, proto string) (net.Conn, error) {
	return dialMember(ctx, p.connect, p.client, addr, proto)
}

type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

func dialMember(ctx context.Context, connect dialer, client *tls.Config, addr, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	config := client.Clone()
	config.NextProtos = []string{proto}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		config.ServerName = host
	}
	cctx, stop := context.WithTimeout(ctx, connectTimeout)
	raw, err := connect(cctx, "tcp", addr)
	stop()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	noticeLoss(raw)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != proto {
		conn.Close()
		return nil, fmt.Errorf("dial %s: it does not speak %s", addr, proto)
	}
	return conn, nil
}

// noticeLoss lets a connection fail when the other host does not acknowledge for
// a while what was sent to it. A process that is slow does not count: its kernel
// acknowledges.
func noticeLoss(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lossTimeout.Milliseconds()))
		})
	}
}

// Dial implements raft.StreamLayer.
func (p *port) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.stop, timeout)
	defer cancel()
	p.mu.Lock()
	cut := p.cut
	p.mu.Unlock()
	if cut {
		return nil, errCut
	}
	id, host, ok := strings.Cut(string(addr), "@")
	if !ok {
		return nil, fmt.Errorf("dial %s: no member of the cluster has this address", addr)
	}
	conn, err := p.dial(ctx, host, protoRaft)
	if err != nil {
		return nil, err
	}
	if err := callRaft(conn, p.called(id)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	c := &trackedConn{Conn: conn, port: p, target: host}
	if !p.track(c) {
		return nil, net.ErrClosed
	}
	return c, nil
}

// trackedConn is one of Raft's connections. Raft's transport leaves some open
// when it is closed.
type trackedConn struct {
	net.Conn
	port   *port
	target string // that was dialled; empty of an accepted one
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
