package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// A question asks a process that is held for dead whether it lives. memberlist's
// Ping would do, but for its wait: it is as long as that of a usual probe, and
// when the probes fail because CPUs are short, so does it.
//
// On the wire it is a user message: kind, number, and of a question the node
// that is asked and where to answer.
const (
	kindQuestion = 'q'
	kindAnswer   = 'a'

	askEvery = 150 * time.Millisecond // a question is repeated so often, for packets get lost
	// Who cannot hear itself cannot judge: an answer is waited for echoTimes as
	// long as a packet to itself takes, at most echoLimit.
	echoTimes = 4
	echoLimit = 10 * time.Second
	objectIn  = time.Second // one that is held for dead says once in so long that it lives
)

// questions are those that wait for an answer.
type questions struct {
	mu       sync.Mutex
	last     uint64
	open     map[uint64]chan struct{}
	objected time.Time
}

// begin makes a number for a question, and the channel that is closed by its
// answer.
func (q *questions) begin() (uint64, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last++
	if q.open == nil {
		q.open = map[uint64]chan struct{}{}
	}
	got := make(chan struct{})
	q.open[q.last] = got
	return q.last, got
}

func (q *questions) end(number uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.open, number)
}

// ownAddr is where this process hears itself, whatever the network is like.
func (g *Gossip) ownAddr() string {
	addr := g.cfg.Bind
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if g.cfg.Advertise.Is6() {
			addr = netip.IPv6Loopback()
		}
	}
	return netip.AddrPortFrom(addr, g.cfg.Port).String()
}

// answers asks a process until it answers, or the wait is over, or its port
// refuses connections, which only one that is gone does. More is the wait from
// then on, if the time passed was not a good measure.
func (g *Gossip) answers(ctx context.Context, p process, wait time.Duration, more func() time.Duration) bool {
	ctx, cancel := context.WithCancel(ctx)
	var refused atomic.Bool
	dialed := make(chan struct{})
	go func() {
		defer close(dialed)
		c, err := g.wire.dial(ctx, p.addr)
		if err == nil {
			c.Close()
		}
		refused.Store(errors.Is(err, syscall.ECONNREFUSED))
	}()
	defer func() { cancel(); <-dialed }()
	number, got := g.asked.begin()
	defer g.asked.end(number)
	echo, heard := g.asked.begin()
	defer g.asked.end(echo)
	self := binary.BigEndian.AppendUint64([]byte{kindAnswer}, echo)
	heardAfter := time.Duration(-1)
	msg := binary.BigEndian.AppendUint64([]byte{kindQuestion}, number)
	msg = append(append(append(msg, byte(len(p.node))), p.node...), netip.AddrPortFrom(g.cfg.Advertise, g.cfg.Port).String()...)
	begin := time.Now()
	repeat := time.NewTicker(askEvery)
	defer repeat.Stop()
	for {
		_ = g.using(func(l *memberlist.Memberlist) error {
			err := l.SendToAddress(memberlist.Address{Addr: p.addr.String(), Name: p.node}, msg)
			if heardAfter < 0 {
				err = errors.Join(err, l.SendToAddress(memberlist.Address{Addr: g.ownAddr()}, self))
			}
			return err
		})
		select {
		case <-got:
			return true
		case <-heard:
			heard, heardAfter = nil, time.Since(begin)
		case <-repeat.C:
			d := time.Since(begin)
			fit := heardAfter >= 0 && d >= echoTimes*heardAfter || d >= echoLimit
			if refused.Load() || d >= wait && d >= more() && fit {
				return false
			}
		case <-ctx.Done():
			return false
		}
	}
}

// NotifyMsg takes questions and answers. It is called without memberlist's locks.
func (d delegate) NotifyMsg(b []byte) {
	if len(b) < 9 {
		return
	}
	g, kind, number, rest := d.g, b[0], binary.BigEndian.Uint64(b[1:9]), b[9:]
	switch kind {
	case kindQuestion:
		if len(rest) < 1 || len(rest) < 1+int(rest[0]) || string(rest[1:1+rest[0]]) != g.node {
			return // meant for the process that had this address before
		}
		to, err := netip.ParseAddrPort(string(rest[1+rest[0]:]))
		if err != nil {
			return
		}
		g.asked.mu.Lock()
		object := time.Since(g.asked.objected) > objectIn
		if object {
			g.asked.objected = time.Now()
		}
		g.asked.mu.Unlock()
		answer := binary.BigEndian.AppendUint64([]byte{kindAnswer}, number)
		_ = g.using(func(l *memberlist.Memberlist) error {
			return l.SendToAddress(memberlist.Address{Addr: to.String()}, answer)
		})
		if object {
			g.object.Store(true)
			poke(g.tagged)
		}
	case kindAnswer:
		g.asked.mu.Lock()
		if got := g.asked.open[number]; got != nil {
			close(got)
			delete(g.asked.open, number)
		}
		g.asked.mu.Unlock()
	}
}
