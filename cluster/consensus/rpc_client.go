package consensus

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// peers sends requests to the leader. It keeps one connection to each member it
// has sent to.
type peers struct {
	n  *Node
	mu sync.Mutex
	by map[string]*peer // by address; nil after close
	wg sync.WaitGroup
}

func newPeers(n *Node) *peers { return &peers{n: n, by: map[string]*peer{}} }

func (p *peers) close() {
	p.mu.Lock()
	all := p.by
	p.by = nil
	p.mu.Unlock()
	for _, c := range all {
		c.fail(ErrStopped)
	}
	p.wg.Wait()
}

func (p *peers) propose(ctx context.Context, leader string, cmd []byte) (r fsm.Result, index uint64, err error) {
	body, err := p.callLeader(ctx, leader, kindPropose, cmd)
	if err != nil {
		return r, 0, err
	}
	index, k := binary.Uvarint(body)
	if k <= 0 {
		return r, 0, fmt.Errorf("%w: malformed answer from %s", ErrUnknownOutcome, leader)
	}
	if r, err = decodeResult(body[k:]); err != nil {
		return r, 0, fmt.Errorf("%w: answer from %s: %w", ErrUnknownOutcome, leader, err)
	}
	return r, index, nil
}

func (p *peers) readIndex(ctx context.Context, leader string) (uint64, error) {
	body, err := p.callLeader(ctx, leader, kindReadIndex, nil)
	if err != nil {
		return 0, err
	}
	index, k := binary.Uvarint(body)
	if k <= 0 {
		return 0, fmt.Errorf("malformed answer from %s", leader)
	}
	return index, nil
}

// call sends one request and waits for its answer. An error that wraps
// ErrNotLeader or ErrUnreachable says that it was not carried out.
func (p *peers) call(ctx context.Context, addr string, kind byte, body []byte) ([]byte, error) {
	return p.callWhile(ctx, addr, kind, body, nil)
}

// callLeader is call of a member that leads. When another does, an answer can
// only come from before that: it is waited for a moment longer, if at all.
func (p *peers) callLeader(ctx context.Context, leader string, kind byte, body []byte) ([]byte, error) {
	return p.callWhile(ctx, leader, kind, body, func() bool {
		id, addr := p.n.Leader()
		return id == "" || addr == leader
	})
}

// lateAnswer is how long an answer is waited for after its server was replaced
// as the leader.
const lateAnswer = time.Second

func (p *peers) callWhile(ctx context.Context, addr string, kind byte, body []byte, leads func() bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	ms := max(time.Until(deadline).Milliseconds(), 0)
	c, err := p.connect(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	answer := make(chan frame, 1)
	id, err := c.register(answer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer c.forget(id)
	req := append(binary.AppendUvarint(make([]byte, 0, len(body)+10), uint64(ms)), body...)
	if err := c.w.write(frame{id, kind, req}); err != nil {
		c.fail(err)
		return nil, fmt.Errorf("%w: send to %s: %w", ErrUnknownOutcome, addr, err)
	}
	var late <-chan time.Time
	for {
		changed := p.n.lead.changed()
		if err := p.n.removed(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		if leads != nil && late == nil && !leads() {
			if kind == kindReadIndex {
				return nil, fmt.Errorf("%w: another server leads now", ErrNotLeader)
			}
			late = time.After(lateAnswer)
		}
		select {
		case f := <-answer:
			if f.kind != statusOK {
				return nil, errorOf(f.kind, string(f.body))
			}
			return f.body, nil
		case <-changed:
		case <-late:
			return nil, fmt.Errorf("%w: no answer from %s, and another server leads now", ErrUnknownOutcome, addr)
		case <-c.failed:
			return nil, fmt.Errorf("%w: connection to %s: %w", ErrUnknownOutcome, addr, c.err)
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: no answer from %s: %w", ErrUnknownOutcome, addr, ctx.Err())
		}
	}
}

// connect returns a connection to addr, an existing one if there is.
func (p *peers) connect(ctx context.Context, addr string) (*peer, error) {
	p.mu.Lock()
	if p.by == nil {
		p.mu.Unlock()
		return nil, ErrStopped
	}
	c := p.by[addr]
	if c == nil {
		c = &peer{answers: map[uint64]chan frame{}, dialled: make(chan struct{}), failed: make(chan struct{})}
		p.by[addr] = c
		p.wg.Go(func() { p.run(c, addr) })
	}
	p.mu.Unlock()
	select {
	case <-c.dialled:
		return c, nil
	case <-c.failed:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run dials and reads answers until the connection fails.
func (p *peers) run(c *peer, addr string) {
	defer func() {
		p.mu.Lock()
		if p.by[addr] == c {
			delete(p.by, addr)
		}
		p.mu.Unlock()
	}()
	conn, err := p.n.port.dial(p.n.port.stop, addr, protoRPC)
	if err != nil {
		c.fail(err)
		return
	}
	if !c.established(conn) {
		conn.Close()
		return
	}
	if e := p.n.c.Epoch; e.ID != "" {
		if err := c.w.write(frame{kind: kindEpoch, body: e.Encode()}); err != nil {
			c.fail(err)
			return
		}
	}
	close(c.dialled)
	r := bufio.NewReader(conn)
	for {
		f, err := readFrame(r)
		if err != nil {
			c.fail(fmt.Errorf("read: %w", err))
			return
		}
		c.deliver(f)
	}
}

// peer is a connection to another member.
type peer struct {
	dialled chan struct{} // closed when w can be used
	failed  chan struct{} // closed when err is set and all is over
	w       *frameWriter

	mu      sync.Mutex
	conn    net.Conn
	err     error
	last    uint64
	answers map[uint64]chan frame
}

func (c *peer) established(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.conn = conn
	c.w = &frameWriter{conn: conn, w: bufio.NewWriter(conn)}
	return true
}

func (c *peer) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.conn != nil {
		c.conn.Close()
	}
	close(c.failed)
}

func (c *peer) register(answer chan frame) (id uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.answers[c.last] = answer
	return c.last, nil
}

func (c *peer) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.answers, id)
}

func (c *peer) deliver(f frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.answers[f.id]; ch != nil {
		delete(c.answers, f.id)
		ch <- f // has room for the one answer
	}
}

// The errors of a result, by the number they have on the wire.
var resultErrors = []error{nil, store.ErrConflict, store.ErrExists, store.ErrNotFound}

func appendResult(dst []byte, r fsm.Result) []byte {
	code := byte(0)
	for i, e := range resultErrors {
		if errors.Is(r.Err, e) {
			code = byte(i)
		}
	}
	dst = append(dst, code)
	dst = binary.AppendUvarint(dst, uint64(r.Revision))
	dst = binary.AppendUvarint(dst, uint64(r.Op))
	kv := r.Current
	if kv == nil {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(len(kv.Key)))
	dst = append(dst, kv.Key...)
	dst = binary.AppendUvarint(dst, uint64(kv.CreateRevision))
	dst = binary.AppendUvarint(dst, uint64(kv.ModRevision))
	dst = binary.AppendUvarint(dst, uint64(kv.Expires))
	return append(dst, kv.Value...)
}

func decodeResult(b []byte) (r fsm.Result, err error) {
	if len(b) == 0 || int(b[0]) >= len(resultErrors) {
		return r, errors.New("malformed result")
	}
	r.Err, b = resultErrors[b[0]], b[1:]
	uvarint := func() uint64 {
		v, k := binary.Uvarint(b)
		if k <= 0 {
			err, b = errors.New("malformed result"), nil
			return 0
		}
		b = b[k:]
		return v
	}
	r.Revision, r.Op = int64(uvarint()), int(uvarint())
	if err != nil || len(b) == 0 {
		return r, err
	}
	n := uvarint()
	if n > uint64(len(b)) {
		return r, errors.New("malformed result")
	}
	kv := &store.KeyValue{Key: string(b[:n])}
	b = b[n:]
	kv.CreateRevision, kv.ModRevision, kv.Expires = int64(uvarint()), int64(uvarint()), int64(uvarint())
	kv.Value = b
	r.Current = kv
	return r, err
}
