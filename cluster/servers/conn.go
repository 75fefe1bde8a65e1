package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// times are the waits of a healthy cluster.
type times struct {
	dial, handshake     time.Duration
	pingAfter, pingWait time.Duration
}

var usual = times{dial: dialWait, handshake: handshakeWait, pingAfter: pingAfter, pingWait: pingWait}

// connector makes connections, with a pace for each server.
type connector struct {
	times times

	mu    sync.Mutex
	paces map[string]*pace // by address
}

func (c *connector) pace(address string) *pace {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paces == nil {
		c.paces = map[string]*pace{}
	}
	if c.paces[address] == nil {
		c.paces[address] = &pace{}
	}
	return c.paces[address]
}

// dial connects to address; secure makes TLS of the bare connection.
func (c *connector) dial(ctx context.Context, network, address string, secure func(context.Context, net.Conn) (net.Conn, error)) (net.Conn, error) {
	p := c.pace(address)
	d := Dialer()
	d.Timeout = p.wait(c.times.dial, dialMax)
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		var e net.Error
		if errors.As(err, &e) && e.Timeout() && ctx.Err() == nil {
			p.failed()
		}
		return nil, err
	}
	begin, wait := time.Now(), p.wait(c.times.handshake, patienceMax)
	hctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	bare := &conn{Conn: raw, times: c.times, pace: p, begin: begin}
	out, err := secure(hctx, bare)
	if err != nil {
		_ = bare.Close()
		if hctx.Err() != nil && ctx.Err() == nil {
			p.failed()
			err = fmt.Errorf("no TLS handshake with %s within %s: %w", address, wait, err)
		}
		return nil, err
	}
	p.answered(time.Since(begin))
	if t, ok := out.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
		bare.watch()
	}
	return out, nil
}

// conn is a connection that ends when its server is silent: HTTP/2 asks for a
// sign of life after pingAfter without one, and what it waits then is the pace's.
type conn struct {
	net.Conn
	times times
	pace  *pace
	begin time.Time

	heard   atomic.Int64 // when something was last read, since begin
	asked   atomic.Int64 // when something was first written after that; 0: nothing was
	watched atomic.Bool
	closed  atomic.Bool
	silent  atomic.Int64 // closed after so long a silence

	mu    sync.Mutex
	timer *time.Timer   // nil: not watched
	due   time.Duration // when timer fires, since begin
}

// silence is the error of a connection that was ended for it: a timeout, after
// which a watch goes on where it was, without a new list.
type silence time.Duration

func (s silence) Error() string {
	return fmt.Sprintf("no sign of life from the server for %s", time.Duration(s).Round(time.Millisecond))
}
func (silence) Timeout() bool   { return true }
func (silence) Temporary() bool { return true }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.watched.Load() {
		now := time.Since(c.begin)
		quiet := now - time.Duration(c.heard.Swap(int64(now)))
		c.asked.Store(0)
		// After more than that, this process was stopped.
		if quiet > c.times.pingAfter && quiet < c.times.pingAfter+patienceMax {
			c.pace.answered(quiet - c.times.pingAfter)
		}
	}
	if s := c.silent.Load(); err != nil && s > 0 {
		return n, silence(s)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if c.watched.Load() {
		c.asked.CompareAndSwap(0, int64(time.Since(c.begin)))
	}
	return c.Conn.Write(b)
}

// watch begins to look for silence.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard.Store(int64(time.Since(c.begin)))
	c.watched.Store(true)
	wait := c.times.pingAfter + c.pace.wait(c.times.pingWait, patienceMax)
	c.due = time.Since(c.begin) + wait
	c.timer = time.AfterFunc(wait, c.look)
}

func (c *conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return
	}
	now := time.Since(c.begin)
	late := now - c.due
	patience := c.pace.wait(c.times.pingWait, patienceMax)
	quiet := now - time.Duration(c.heard.Load())
	again := c.times.pingAfter + patience - quiet
	switch asked := time.Duration(c.asked.Load()); {
	case quiet > c.times.pingAfter+patienceMax:
	case asked == 0: // this process was slow to ask: there is nothing to answer
		again = max(again, patience)
	default:
		again = max(again, patience-(now-asked))
	}
	if again <= 0 {
		if late <= c.times.pingWait/2 && !c.waiting() {
			c.pace.failed()
			c.silent.Store(int64(quiet))
			c.closed.Store(true)
			_ = c.Conn.Close()
			return
		}
		again = patience // it is this process that was slow: stopped, or short of CPU
	}
	c.due = now + again
	c.timer.Reset(again)
}

// waiting tells whether something has come that was not read yet.
func (c *conn) waiting() bool {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); cerr != nil || err != nil {
		return false
	}
	return n > 0
}

func (c *conn) Close() error {
	c.closed.Store(true)
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// usable tells whether c, as a transport sees it, is not known to be closed.
func usable(c net.Conn) bool {
	for c != nil {
		if own, ok := c.(*conn); ok {
			return !own.closed.Load()
		}
		in, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return true
		}
		c = in.NetConn()
	}
	return false
}
