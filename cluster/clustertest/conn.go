package clustertest

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// conn is one end of a stream. The network's lock guards it.
type conn struct {
	n             *Network
	local, remote string
	peer          *conn

	queue    []segment // sent to this end
	eof      bool      // the other end has closed; true once the segments are read
	closed   bool
	broken   bool // reset
	mute     bool // its host is off: what it writes goes nowhere
	orphan   bool // the other end's host went off without a word
	deadline time.Time
	wake     chan struct{} // closed at each change
}

// segment is what one Write sent.
type segment struct {
	data   []byte
	arrive time.Time
	number uint64 // among all between the two hosts
	fin    bool
}

// stir wakes those who wait for this end. The network is locked.
func (c *conn) stir() {
	close(c.wake)
	c.wake = make(chan struct{})
}

// reset ends this end with an error. The network is locked.
func (c *conn) reset() {
	c.broken = true
	delete(c.n.conns, c)
	c.stir()
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		c.n.mu.Lock()
		now := time.Now()
		var until time.Time
		switch {
		case c.closed:
			c.n.mu.Unlock()
			return 0, net.ErrClosed
		case c.broken:
			c.n.mu.Unlock()
			return 0, syscall.ECONNRESET
		case !c.deadline.IsZero() && !now.Before(c.deadline):
			c.n.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case c.eof:
			c.n.mu.Unlock()
			return 0, io.EOF
		case len(c.queue) > 0 && !c.n.link(c.remote, c.local).cut:
			s := &c.queue[0]
			if now.Before(s.arrive) {
				until = s.arrive
				break
			}
			if s.fin {
				c.eof = true
				c.n.mu.Unlock()
				continue
			}
			k := copy(b, s.data)
			if s.data = s.data[k:]; len(s.data) == 0 {
				c.n.read(link{c.remote, c.local}, s.number)
				c.queue = c.queue[1:]
			}
			c.n.mu.Unlock()
			return k, nil
		}
		if !c.deadline.IsZero() && (until.IsZero() || c.deadline.Before(until)) {
			until = c.deadline
		}
		wake, healed := c.wake, c.n.changed
		c.n.mu.Unlock()
		var timer <-chan time.Time
		if !until.IsZero() {
			timer = time.After(until.Sub(now))
		}
		select {
		case <-wake:
		case <-healed:
		case <-timer:
		}
	}
}

// read says that a segment was read. The network is locked.
func (n *Network) read(way link, number uint64) {
	if number < n.newest[way] {
		n.met["overtaken by what was sent later"]++
	}
	n.newest[way] = max(n.newest[way], number)
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	switch {
	case c.mute:
		return len(b), nil
	case c.closed:
		return 0, net.ErrClosed
	case c.broken:
		return 0, syscall.EPIPE
	}
	c.send(segment{data: append([]byte(nil), b...)})
	return len(b), nil
}

// send puts a segment on its way. The network is locked.
func (c *conn) send(s segment) {
	p := c.peer
	if c.orphan || p.closed || p.broken {
		if !c.orphan && p.closed && !s.fin {
			c.reset() // nobody reads it
		}
		return
	}
	l, way := c.n.link(c.local, c.remote), link{c.local, c.remote}
	c.n.sent[way]++
	s.number = c.n.sent[way]
	switch {
	case l.cut && c.n.link(c.remote, c.local).cut:
		c.n.met["held back by a partition"]++
	case l.cut:
		c.n.met["held back by a one-way partition"]++
	case l.delay > 0:
		c.n.met["delayed"]++
	}
	s.arrive = time.Now().Add(time.Duration(c.n.rand.Int64N(int64(transit + l.delay))))
	if c.n.rand.Float64() < l.loss {
		if c.n.rand.IntN(4) == 0 {
			c.n.met["connection ended by loss"]++
			c.reset()
			p.reset()
			return
		}
		c.n.met["lost and sent again"]++
		s.arrive = s.arrive.Add(retransmit << c.n.rand.IntN(3))
	}
	if k := len(p.queue); k > 0 && p.queue[k-1].arrive.After(s.arrive) {
		s.arrive = p.queue[k-1].arrive
	}
	p.queue = append(p.queue, s)
	p.stir()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if !c.mute && !c.broken {
		c.send(segment{fin: true})
	}
	c.closed = true
	delete(c.n.conns, c)
	c.stir()
	return nil
}

// SetDeadline implements net.Conn. Writing never blocks.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.deadline = t
	c.stir()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return name(address(c.local)) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return name(address(c.remote)) }
