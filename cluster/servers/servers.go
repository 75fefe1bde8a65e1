// Package servers is the client's side of a cluster with several API servers: a
// Balancer sends each request to one that works, and to another at once when it
// does not.
//
// A client stays with one server while that one works: its watches and writes
// then see one history, and connections are few. Many clients spread by rendezvous
// hashing of their seed, so that the loss of a server moves only its own clients.
//
// Limits: a request that was sent and got no answer is repeated only if it reads.
// Upgraded connections (exec, attach, port-forward) are made by their libraries
// past any RoundTripper: let Pick choose their server before they begin.
package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"sync"
	"time"
)

// ServerName is in the certificate of every API server: connections are verified
// by it, whatever address they go to.
const ServerName = "kubernetes"

// Host is the host of a client's URLs; the Balancer replaces it.
const Host = "https://" + ServerName

const (
	pauseFirst = 500 * time.Millisecond
	pauseMax   = 15 * time.Second
	// pickStep is how long Pick waits for one server before it asks the next as
	// well.
	pickStep = 300 * time.Millisecond
)

// ErrNone means that the Balancer knows no server.
var ErrNone = errors.New("no API server is known")

// Server is one API server.
type Server struct {
	Address string // host:port
	// Dead says that others (gossip) count it as dead: it is tried last.
	Dead bool
}

// Balancer chooses servers. Safe for concurrent use.
type Balancer struct {
	seed string
	now  func() time.Time

	mu      sync.Mutex
	servers []*server // in the order of preference; guarded by mu, and so is what is below
	current *server
}

type server struct {
	Server
	failures int       // in a row
	until    time.Time // no request before, if another server is to be had
}

// New makes a Balancer for servers. With a seed the order of preference follows
// from it; without one it is the order given.
func New(seed string, list ...Server) *Balancer {
	b := &Balancer{seed: seed, now: time.Now}
	b.Set(list)
	return b
}

// Set replaces the servers. Known ones keep their record, unless they are said to
// be alive again after they were dead. The client goes back to the one it
// prefers if that works.
func (b *Balancer) Set(list []Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var next []*server
	for _, s := range list {
		if s.Address == "" || slices.ContainsFunc(next, func(o *server) bool { return o.Address == s.Address }) {
			continue
		}
		entry := &server{Server: s}
		if i := slices.IndexFunc(b.servers, func(o *server) bool { return o.Address == s.Address }); i >= 0 {
			if old := b.servers[i]; !old.Dead || s.Dead {
				entry.failures, entry.until = old.failures, old.until
			}
		}
		next = append(next, entry)
	}
	if b.seed != "" {
		slices.SortStableFunc(next, func(x, y *server) int {
			return cmp.Compare(weight(b.seed, y.Address), weight(b.seed, x.Address))
		})
	}
	b.servers, b.current = next, nil
}

// weight is what client seed gives for a server (rendezvous hashing).
func weight(seed, address string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed + "\x00" + address))
	// FNV's high bits differ little for names that differ at the end.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Addresses are all servers in the order of preference.
func (b *Balancer) Addresses() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]string, len(b.servers))
	for i, s := range b.servers {
		out[i] = s.Address
	}
	return out
}

// First is the server that the next request begins with; "" if none is known.
func (b *Balancer) First() string {
	if list := b.order(); len(list) > 0 {
		return list[0]
	}
	return ""
}

// order gives the servers as a request should try them: the current one, those
// that are not on hold, then the rest, the one whose hold ends first before
// others.
func (b *Balancer) order() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	rank := func(s *server) int {
		switch {
		case now.Before(s.until):
			return 3
		case s.Dead:
			return 2
		case s == b.current:
			return 0
		}
		return 1
	}
	list := slices.Clone(b.servers)
	slices.SortStableFunc(list, func(x, y *server) int {
		if c := cmp.Compare(rank(x), rank(y)); c != 0 || rank(x) != 3 {
			return c
		}
		return x.until.Compare(y.until)
	})
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.Address
	}
	return out
}

// Good tells that a server has answered.
func (b *Balancer) Good(address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.find(address); s != nil {
		s.failures, s.until = 0, time.Time{}
		b.current = s
	}
}

// Bad tells that a server does not answer, or not as it should. It is left alone
// for a while that grows with the number of failures in a row, as long as there
// are others.
func (b *Balancer) Bad(address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.find(address)
	if s == nil {
		return
	}
	now := b.now()
	if now.Before(s.until) {
		return // requests that were under way together count once
	}
	s.until = now.Add(min(pauseFirst<<min(s.failures, 10), pauseMax))
	s.failures++
	if b.current == s {
		b.current = nil
	}
}

func (b *Balancer) find(address string) *server {
	if i := slices.IndexFunc(b.servers, func(s *server) bool { return s.Address == address }); i >= 0 {
		return b.servers[i]
	}
	return nil
}

// Dial connects to the first server that can be reached; the address that it is
// called with means nothing. It is for clients that verify the server
// themselves.
func (b *Balancer) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var errs []error
	for _, address := range b.order() {
		conn, err := Dialer().DialContext(ctx, network, address)
		if err == nil {
			b.Good(address)
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		b.Bad(address)
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, ErrNone
	}
	return nil, errors.Join(errs...)
}

// Pick gives the first server for which try succeeds. The next one is asked as
// soon as one fails, or is slow to answer. Without success the error holds what
// each of them said.
func (b *Balancer) Pick(ctx context.Context, try func(ctx context.Context, address string) error) (string, error) {
	list := b.order()
	if len(list) == 0 {
		return "", ErrNone
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		address string
		err     error
	}
	answers := make(chan answer, len(list))
	var errs []error
	for begun := 0; len(errs) < len(list); {
		var slow <-chan time.Time
		if begun < len(list) {
			address := list[begun]
			begun++
			go func() { answers <- answer{address, try(ctx, address)} }()
			if begun < len(list) {
				slow = time.After(pickStep)
			}
		}
		select {
		case a := <-answers:
			if a.err == nil {
				b.Good(a.address)
				return a.address, nil
			}
			if ctx.Err() == nil {
				b.Bad(a.address)
			}
			errs = append(errs, fmt.Errorf("server %s: %w", a.address, a.err))
		case <-slow:
		case <-ctx.Done():
			return "", errors.Join(append(errs, ctx.Err())...)
		}
	}
	return "", errors.Join(errs...)
}
