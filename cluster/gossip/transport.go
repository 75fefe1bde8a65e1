package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// receiveBuffer is what the kernel may hold for us: a burst of news of a large
// cluster while this process waits for a CPU.
const receiveBuffer = 1 << 20

// transport carries memberlist's packets and streams. Unlike the one that comes
// with the library it copies each packet to a slice of its size (the library's
// makes 64 KiB of garbage for each), ends every connection and goroutine at
// Shutdown, and can lose things for tests.
type transport struct {
	advertise netip.Addr
	bind      netip.Addr // invalid: any
	udp       *net.UDPConn
	tcp       *net.TCPListener
	port      uint16
	lose      func(netip.AddrPort) bool

	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context // ends with the transport
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{} // nil when closed; guarded by mu
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens both sockets. Nothing is read before start.
func listen(cfg *Config) (*transport, error) {
	bind := cfg.Bind
	if !bind.IsValid() {
		bind = netip.IPv6Unspecified()
	}
	var tcp *net.TCPListener
	var udp *net.UDPConn
	var err error
	for range 10 { // a port that is free for TCP may be taken for UDP
		tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, cfg.Port)))
		if err != nil {
			return nil, fmt.Errorf("gossip: listen: %w", err)
		}
		port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(bind, port)))
		if err == nil || cfg.Port != 0 {
			break
		}
		tcp.Close()
	}
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("gossip: listen: %w", err)
	}
	_ = udp.SetReadBuffer(receiveBuffer) // the kernel's limit may be lower: then that
	t := &transport{advertise: cfg.Advertise, udp: udp, tcp: tcp, port: tcp.Addr().(*net.TCPAddr).AddrPort().Port(), lose: cfg.Lose,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), conns: map[*conn]struct{}{}}
	if !bind.IsUnspecified() {
		t.bind = bind
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

func (t *transport) start() {
	t.wg.Go(t.readPackets)
	t.wg.Go(t.accept)
}

func (t *transport) readPackets() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // the kernel may report here what became of packets sent earlier
			case <-time.After(time.Millisecond):
			case <-t.ctx.Done():
			}
			continue
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append(make([]byte, 0, n), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) accept() {
	for {
		c, err := t.tcp.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of file descriptors, mostly
			select {
			case <-time.After(100 * time.Millisecond):
			case <-t.ctx.Done():
				return
			}
			continue
		}
		kept, err := t.keep(c)
		if err != nil {
			return
		}
		select {
		case t.streams <- kept:
		case <-t.ctx.Done():
			kept.Close()
			return
		}
	}
}

// conn is a connection that Shutdown closes.
type conn struct {
	net.Conn
	t *transport
}

func (t *transport) keep(c net.Conn) (net.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		c.Close()
		return nil, net.ErrClosed
	}
	k := &conn{c, t}
	t.conns[k] = struct{}{}
	return k, nil
}

func (c *conn) Close() error {
	c.t.mu.Lock()
	delete(c.t.conns, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(t.advertise.AsSlice()), int(t.port), nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	if t.lose != nil && t.lose(to) {
		return time.Now(), nil
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return t.dial(ctx, to)
}

// dial ends when ctx does.
func (t *transport) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if t.lose != nil && t.lose(to) {
		<-ctx.Done()
		return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
	}
	var d net.Dialer
	if t.bind.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.bind, 0))
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return t.keep(c)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// Shutdown closes everything and returns after the last goroutine. It is safe
// twice.
func (t *transport) Shutdown() error {
	t.cancel()
	t.udp.Close()
	t.tcp.Close()
	t.mu.Lock()
	open := t.conns
	t.conns = nil
	t.mu.Unlock()
	for c := range open {
		c.Conn.Close()
	}
	t.wg.Wait()
	return nil
}
