package nodehealth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// EndMethod is the name under which Leases.HandleEnd is called on the leader.
const EndMethod = "lease-end"

// endHold is for how long no lease is granted to a node of which was said that
// its lease is over: until another host has its name.
const endHold = 5 * time.Second

var errHeld = errors.New("another host is about to take the name of this node")

// endRequest asks whether the lease of a node is over, as OverAt.
type endRequest struct {
	Node      string        `json:"node"`
	Tolerated time.Duration `json:"tolerated"` // nanoseconds
}

// End says whether a node has certainly stopped what must not run twice.
type End struct {
	Over bool `json:"over,omitempty"`
	// Wait is when it will have at the earliest, in nanoseconds.
	Wait time.Duration `json:"wait,omitempty"`
	// Frozen: it cannot be said while evictions are frozen.
	Frozen bool `json:"frozen,omitempty"`
}

// AskEnd asks the leader by call whether the node has certainly stopped what it
// may go on running for tolerated after its last contact. If so, it gets no lease
// for some seconds, in which its name can be given to another host.
func AskEnd(ctx context.Context, call func(ctx context.Context, method string, body []byte) ([]byte, error), node string, tolerated time.Duration) (End, error) {
	var e End
	body, err := json.Marshal(endRequest{Node: node, Tolerated: tolerated})
	if err != nil {
		return e, err
	}
	answer, err := call(ctx, EndMethod, body)
	if err == nil {
		err = json.Unmarshal(answer, &e)
	}
	if err != nil {
		return End{}, fmt.Errorf("ask the leader for the lease of %s: %w", node, err)
	}
	return e, nil
}

// HandleEnd is what servers call on the leader as EndMethod.
func (l *Leases) HandleEnd(ctx context.Context, _ string, body []byte) ([]byte, error) {
	var r endRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("question for a lease: %w", err)
	}
	if r.Node == "" {
		return nil, errors.New("question for a lease: node is missing")
	}
	e, err := l.end(ctx, r.Node, r.Tolerated)
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

func (l *Leases) end(ctx context.Context, node string, tolerated time.Duration) (End, error) {
	if err := l.Confirm(ctx); err != nil {
		return End{}, err
	}
	l.mu.Lock()
	e, err := l.endNow(node, tolerated)
	if e.Over {
		l.held[node] = l.cfg.now().Add(endHold)
	}
	l.mu.Unlock()
	if err != nil || !e.Over {
		return e, err
	}
	// Nobody else has granted anything before now, and here nothing is granted
	// until the name is given away.
	if err := l.Confirm(ctx); err != nil {
		return End{}, err
	}
	return e, nil
}

// endNow is called with mu held.
func (l *Leases) endNow(node string, tolerated time.Duration) (End, error) {
	at, ok := l.overAt(node, tolerated)
	switch wait := at.Sub(l.cfg.now()); {
	case !l.leading:
		return End{}, ErrNotLeading
	case !ok:
		return End{Frozen: true}, nil
	case wait > 0:
		return End{Wait: wait}, nil
	}
	return End{Over: true}, nil
}
