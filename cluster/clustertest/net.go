package clustertest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// Network connects hosts by streams that live in memory. What is written takes
// its time to arrive, and each direction between two hosts can be cut.
//
// Streams behave like TCP under such faults: bytes that a cut link holds back
// arrive after it has healed, unless one end has given up meanwhile; a lost
// segment makes the ones behind it wait, or ends the connection; connections do
// not wait for each other, so what is sent on two of them arrives in any order.
// Writing never blocks.
type Network struct {
	mu        sync.Mutex // guards everything in the network, conns too
	rand      *rand.Rand
	listeners map[string]*listener
	links     map[link]*state
	conns     map[*conn]struct{}
	dead      map[string]bool // hosts that are switched off
	lives     map[string]int  // how often each was
	sent      map[link]uint64 // segments, ever
	newest    map[link]uint64 // the number of the latest of them that was read
	met       map[string]int  // what went wrong, how often
	changed   chan struct{}   // closed when a link heals
}

// link is one direction.
type link struct{ from, to string }

// state of a link.
type state struct {
	cut    bool
	refuse bool          // a firewall answers requests to connect with a refusal
	delay  time.Duration // at most, of each segment
	loss   float64       // of segments: they come late or end their connection
}

const (
	transit    = 300 * time.Microsecond // at most, without faults
	retransmit = 200 * time.Millisecond // what a lost segment costs at least
)

// NewNetwork returns a network whose hazards come from r.
func NewNetwork(r *rand.Rand) *Network {
	return &Network{rand: r, listeners: map[string]*listener{}, links: map[link]*state{},
		conns: map[*conn]struct{}{}, dead: map[string]bool{}, lives: map[string]int{}, changed: make(chan struct{}),
		sent: map[link]uint64{}, newest: map[link]uint64{}, met: map[string]int{}}
}

// link returns the state of a direction. mu is held.
func (n *Network) link(from, to string) *state {
	l := n.links[link{from, to}]
	if l == nil {
		l = &state{}
		n.links[link{from, to}] = l
	}
	return l
}

// Met says how often what went wrong on the network met something that was on
// its way.
func (n *Network) Met() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.met)
}

// Cut holds back what from sends to to.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).cut = true
}

// Refuse lets a firewall refuse what from asks of to, and ends their connections.
// To from it looks as if nobody listened.
func (n *Network) Refuse(from, to string) {
	n.mu.Lock()
	n.link(from, to).refuse = true
	n.mu.Unlock()
	n.Break(from, to, 1)
}

// Hazard makes segments from one host to another take up to delay, and loses a
// part of them.
func (n *Network) Hazard(from, to string, delay time.Duration, loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	l.delay, l.loss = delay, loss
}

// Heal ends all faults of links. What was held back arrives.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	close(n.changed)
	n.changed = make(chan struct{})
}

// Break ends a part of the connections between two hosts, at both ends.
func (n *Network) Break(a, b string, part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if (c.local == a && c.remote == b || c.local == b && c.remote == a) && n.rand.Float64() < part {
			c.reset()
			c.peer.reset()
			n.met["connection broken"]++
		}
	}
}

// SwitchOff ends all that a host does on the network. The others are told if
// it was only its process that died; of a host without power they hear nothing
// until it is back.
func (n *Network) SwitchOff(host string, told bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead[host] = !told // else its kernel refuses connections
	n.lives[host]++
	for c := range n.conns {
		if c.local != host {
			continue
		}
		c.mute = true
		c.reset()
		if told {
			c.peer.reset()
		} else {
			c.peer.orphan = true
		}
	}
	if l := n.listeners[host]; l != nil {
		l.close()
		delete(n.listeners, host)
	}
}

// SwitchOn lets the host speak again. Connections of before its end are reset
// by the first answer.
func (n *Network) SwitchOn(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.dead, host)
	for c := range n.conns {
		if c.orphan && c.remote == host {
			c.reset()
		}
	}
}

// address of a host.
func address(host string) string { return host + ":6444" }

// Listen opens the port of a host.
func (n *Network) Listen(host string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[host] != nil {
		return nil, fmt.Errorf("listen on %s: %w", host, syscall.EADDRINUSE)
	}
	l := &listener{n: n, host: host, backlog: make(chan *conn, 64), done: make(chan struct{})}
	n.listeners[host] = l
	return l, nil
}

// Dialer returns the function by which a host connects to others, until it is
// switched off.
func (n *Network) Dialer(host string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	life := n.lives[host]
	n.mu.Unlock()
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		to, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		for {
			n.mu.Lock()
			if n.lives[host] != life {
				n.mu.Unlock()
				return nil, fmt.Errorf("dial %s: %w", to, syscall.ENETDOWN)
			}
			if n.link(host, to).refuse {
				n.met["refused by a firewall"]++
				n.mu.Unlock()
				time.Sleep(transit)
				return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
			}
			// A request to connect or its answer gets lost.
			open := !n.link(host, to).cut && !n.link(to, host).cut && !n.dead[to]
			wait := time.Duration(n.rand.Int64N(int64(transit + n.link(host, to).delay)))
			if open && n.rand.Float64() < n.link(host, to).loss {
				open, wait = false, 1*time.Second // as TCP tries again
				n.met["request to connect lost"]++
			} else if !open {
				n.met["request to connect unanswered"]++
			}
			l := n.listeners[to]
			changed := n.changed
			n.mu.Unlock()
			if !open {
				select {
				case <-ctx.Done():
					return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
				case <-changed:
				case <-time.After(max(wait, time.Second)):
				}
				continue
			}
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
			case <-time.After(wait):
			}
			if l == nil {
				return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
			}
			return n.connect(host, life, l)
		}
	}
}

func (n *Network) connect(from string, life int, l *listener) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lives[from] != life || n.listeners[l.host] != l {
		return nil, fmt.Errorf("dial %s: %w", l.host, syscall.ECONNREFUSED)
	}
	near := &conn{n: n, local: from, remote: l.host, wake: make(chan struct{})}
	far := &conn{n: n, local: l.host, remote: from, wake: make(chan struct{})}
	near.peer, far.peer = far, near
	select {
	case l.backlog <- far:
	default:
		return nil, fmt.Errorf("dial %s: %w", l.host, syscall.ECONNREFUSED)
	}
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	return near, nil
}

type listener struct {
	n       *Network
	host    string
	backlog chan *conn
	done    chan struct{}
	closed  bool
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// close is called with the network locked.
func (l *listener) close() {
	if !l.closed {
		l.closed = true
		close(l.done)
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.close()
	if l.n.listeners[l.host] == l {
		delete(l.n.listeners, l.host)
	}
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return name(address(l.host)) }

// name is an address on a Network.
type name string

func (name) Network() string  { return "tcp" }
func (a name) String() string { return string(a) }
