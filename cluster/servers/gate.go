package servers

import (
	"context"
	"net"
	"sync"
)

// gate lets one request at a time connect to a server to which there is no
// connection. A transport alone makes one for each request that waits, and closes
// all but the first that is ready: when a server dies, each of its clients would
// begin as many handshakes with the next as it has watches.
type gate struct {
	mu    sync.Mutex
	hosts map[string]*host // by address
}

type host struct {
	conn net.Conn // of the last request; nil: none is known
	call *call    // nil: nobody connects
}

// call is a request that connects for all others.
type call struct {
	done chan struct{}
	err  error // why there is no connection; nil also if the request itself was given up
}

// enter waits until there is a connection to address, or this request is the one
// to make it; the error is that of the request that tried. leave must be called
// with the connection when there is one, and, in any case, with nil at the end
// and the error of the request.
func (g *gate) enter(ctx context.Context, address string) (leave func(net.Conn, error), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hosts == nil {
		g.hosts = map[string]*host{}
	}
	h := g.hosts[address]
	if h == nil {
		h = &host{}
		g.hosts[address] = h
	}
	var mine *call
	for mine == nil && (h.conn == nil || !usable(h.conn)) {
		if h.call == nil {
			mine = &call{done: make(chan struct{})}
			h.conn, h.call = nil, mine
			break
		}
		other := h.call
		g.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
		}
		g.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if other.err != nil {
			return nil, other.err
		}
	}
	return func(c net.Conn, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if c != nil {
			h.conn = c
		} else if err != nil {
			h.conn = nil // the next one looks whether it was the connection
		}
		if mine == nil || h.call != mine {
			return
		}
		if h.conn == nil && ctx.Err() == nil {
			mine.err = err
		}
		h.call = nil
		close(mine.done)
	}, nil
}
