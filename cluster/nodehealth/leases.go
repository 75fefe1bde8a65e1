package nodehealth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Times of leases. Nodes know the same (package node): a change has to keep
// older nodes safe.
const (
	// LeaseDuration is for how long a grant holds, counted by the node from
	// when it sent its request.
	LeaseDuration = 20 * time.Second
	// RenewInterval is how often a node asks.
	RenewInterval = 5 * time.Second
	// leaseMargin is added to what a node has, for ending its containers.
	leaseMargin = 10 * time.Second
	// driftShare of a duration (a twentieth) is how far clocks may run apart.
	driftShare = 20
	// pulse is how often the leader's clock is seen to go, stall how long it may
	// have stood still: a leader that was stopped knows nothing of what gossip
	// has learned meanwhile.
	pulse = time.Second
	stall = 5 * time.Second
	// LeaseMethod is the name under which Leases.Handle is called on the leader.
	LeaseMethod = "lease"
)

// ErrNotLeading is returned by what only the leader can do.
var ErrNotLeading = errors.New("this server does not lead the cluster")

// LeasesConfig configures Leases.
type LeasesConfig struct {
	// Verify proves, by hearing from a majority after it was called, that this
	// member leads, and returns its term of leadership.
	Verify func(ctx context.Context) (term uint64, err error)
	// Revision is the newest one that is applied here.
	Revision func() uint64

	now func() time.Time
}

// Leases remembers when each node was last granted the right to run pods that
// must not run twice. Only the leader grants, in memory: nothing is written.
//
// There is one for each server, for as long as its process lives; it grants and
// answers while Run runs, which is a duty of the leader. Safe for concurrent use.
type Leases struct {
	cfg LeasesConfig

	mu      sync.Mutex
	leading bool
	term    uint64
	start   time.Time // of this term's Run
	renewed map[string]time.Time
	held    map[string]time.Time // until when a node gets none, see end
	frozen  bool
	thawed  time.Time // when evictions were last seen frozen
	beat    time.Time // when the clock was last seen to go
}

// NewLeases grants nothing before Run.
func NewLeases(cfg LeasesConfig) (*Leases, error) {
	switch {
	case cfg.Verify == nil:
		return nil, errors.New("leases: Verify is missing")
	case cfg.Revision == nil:
		return nil, errors.New("leases: Revision is missing")
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	return &Leases{cfg: cfg, renewed: map[string]time.Time{}, held: map[string]time.Time{}}, nil
}

// Run is the duty: it grants until ctx ends. It must be called after everything
// that was acknowledged before this term is applied here.
func (l *Leases) Run(ctx context.Context) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			l.leading = false
			l.mu.Unlock()
			return nil
		case <-tick.C:
			l.alive()
		}
	}
}

// alive notices that this process was stopped: then it is as if it led from now.
func (l *Leases) alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notice()
}

func (l *Leases) notice() {
	now := l.cfg.now()
	if now.Sub(l.beat) > stall {
		l.start = now
	}
	l.beat = now
}

func (l *Leases) begin(ctx context.Context) error {
	term, err := l.cfg.Verify(ctx)
	if err != nil {
		return fmt.Errorf("leases of nodes: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Whoever led before may have granted until now.
	l.leading, l.term, l.start = true, term, l.cfg.now()
	// Not frozen: another duty of this term may have said so already.
	l.thawed, l.beat = time.Time{}, l.start
	clear(l.renewed)
	return nil
}

// request and Grant are what servers and nodes say to each other.
type request struct {
	Node string `json:"node"`
}

// Grant answers a renewal.
type Grant struct {
	// Seconds is for how long it holds, from when the request was sent.
	Seconds int `json:"seconds"`
	// Revision is a revision that the state had after the grant was decided:
	// what a node knows from later on is newer than every decision that was
	// made before the grant.
	Revision uint64 `json:"revision"`
}

// Handle grants a lease; it is what servers call on the leader as LeaseMethod.
// The caller has made sure that the request is the named node's own.
func (l *Leases) Handle(ctx context.Context, _ string, body []byte) ([]byte, error) {
	var r request
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("request for a lease: %w", err)
	}
	if r.Node == "" {
		return nil, errors.New("request for a lease: node is missing")
	}
	g, err := l.grant(ctx, r.Node)
	if err != nil {
		return nil, err
	}
	return json.Marshal(g)
}

// grant asks the majority after the request has come: a leader that was deposed
// meanwhile grants nothing. The time noted is later than when the node sent its
// request, from which it counts.
func (l *Leases) grant(ctx context.Context, node string) (Grant, error) {
	if err := l.Confirm(ctx); err != nil {
		return Grant{}, err
	}
	l.mu.Lock()
	if !l.leading {
		l.mu.Unlock()
		return Grant{}, ErrNotLeading
	}
	now := l.cfg.now()
	if until, held := l.held[node]; held && now.Before(until) {
		l.mu.Unlock()
		return Grant{}, errHeld
	}
	delete(l.held, node)
	l.renewed[node] = now
	l.mu.Unlock()
	return Grant{Seconds: int(LeaseDuration / time.Second), Revision: l.cfg.Revision()}, nil
}

// Confirm proves that this member still leads in the term of the running duty:
// nobody else has granted anything before the call.
func (l *Leases) Confirm(ctx context.Context) error {
	l.mu.Lock()
	leading, term := l.leading, l.term
	l.mu.Unlock()
	if !leading {
		return ErrNotLeading
	}
	now, err := l.cfg.Verify(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeading, err)
	}
	if now != term {
		return ErrNotLeading
	}
	return nil
}

// Renewed is when a node was last granted a lease in this term; zero if never.
func (l *Leases) Renewed(node string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed[node]
}

// Freeze notes whether evictions are frozen, until it is told otherwise: a term
// begins with what the last one here ended with. A node that has seen most others for
// long enough may go on without a lease, because then evictions are frozen here;
// so after the end of a freeze every lease counts as just renewed.
func (l *Leases) Freeze(frozen bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen && !frozen {
		l.thawed = l.cfg.now()
	}
	l.frozen = frozen
}

// OverAt is when a node has certainly stopped a pod that it may go on running
// for tolerated after its last contact, if it is not granted a lease before. It
// returns false while that cannot be said: elsewhere than on the leader, and
// while evictions are frozen.
//
// A decision to replace such a pod needs, in this order: the pod as read from
// the API, OverAt in the past, Confirm, and a deletion whose precondition is the
// version that was read.
func (l *Leases) OverAt(node string, tolerated time.Duration) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.overAt(node, tolerated)
}

// overAt is called with mu held.
func (l *Leases) overAt(node string, tolerated time.Duration) (time.Time, bool) {
	if !l.leading || l.frozen {
		return time.Time{}, false
	}
	if l.cfg.now().Sub(l.beat) > stall {
		l.notice()
	}
	last := l.start
	for _, t := range []time.Time{l.renewed[node], l.thawed} {
		if t.After(last) {
			last = t
		}
	}
	d := max(LeaseDuration, tolerated)
	return last.Add(d + d/driftShare + leaseMargin), true
}
