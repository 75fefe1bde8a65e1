package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Leadership is what the leader duties need to know of consensus.
type Leadership interface {
	// IsLeader reports whether this member leads now.
	IsLeader() bool
	// LeadershipChanges delivers true when leadership is gained, false when it
	// is lost. Only one reader may exist.
	LeadershipChanges() <-chan bool
	// Barrier returns when everything that was acknowledged before this term is
	// applied here.
	Barrier(ctx context.Context) error
}

// Duty is work that exactly one member does: the leader.
type Duty struct {
	// Name appears in logs and in the status.
	Name string
	// Run works until ctx ends and returns after its last goroutine.
	Run func(ctx context.Context) error
}

// LeaderConfig describes a Leader.
type LeaderConfig struct {
	// Leadership says when to work.
	Leadership Leadership
	// Term makes the duties of one term of leadership. It is called anew for
	// every term, so nothing that a duty remembers outlives its term.
	Term func() ([]Duty, error)
	// Logger receives the changes.
	Logger *slog.Logger
}

// Leader runs duties while this member leads. On gaining leadership it waits for
// a barrier, so that the duties start from everything acknowledged before; on
// losing it, it cancels them and waits for each, so that two terms never overlap
// here. (A former leader on another member may still be stopping: writes are
// guarded by resource versions, so that costs a conflict, not a mistake.)
//
// A duty that ends by itself, or a barrier that fails, costs the term: all duties
// are stopped and, if this member still leads, started afresh after a pause.
type Leader struct {
	cfg LeaderConfig

	mu      sync.Mutex
	running []string // names of the duties under way; guarded by mu
	hold    hold
}

// hold keeps duties from running.
type hold struct {
	mu     sync.Mutex
	count  int                // of those who hold
	freed  chan struct{}      // closed when there are none any more
	cancel context.CancelFunc // of the work under way; nil if there is none
	idle   chan struct{}      // closed when that has ended
}

// Pause ends the duties, if they run here, and returns when the last has. None
// begins before resume is called; then they are made anew.
func (l *Leader) Pause(ctx context.Context) (resume func(), err error) {
	h := &l.hold
	h.mu.Lock()
	if h.count++; h.count == 1 {
		h.freed = make(chan struct{})
	}
	cancel, idle := h.cancel, h.idle
	h.mu.Unlock()
	resume = sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.count--; h.count == 0 {
			close(h.freed)
		}
	})
	if cancel == nil {
		return resume, nil
	}
	cancel()
	select {
	case <-idle:
		return resume, nil
	case <-ctx.Done():
		resume()
		return nil, ctx.Err()
	}
}

// begin waits until nobody holds, and says that work is under way until done is
// called.
func (h *hold) begin(ctx context.Context) (work context.Context, done func(), err error) {
	for {
		h.mu.Lock()
		if h.count == 0 {
			break
		}
		freed := h.freed
		h.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	defer h.mu.Unlock()
	work, h.cancel = context.WithCancel(ctx)
	cancel, idle := h.cancel, make(chan struct{})
	h.idle = idle
	return work, func() {
		cancel()
		h.mu.Lock()
		h.cancel = nil
		h.mu.Unlock()
		close(idle)
	}, nil
}

const (
	termPauseFirst = 100 * time.Millisecond
	termPauseMax   = 10 * time.Second
	// termSettled is how long a term must last for the pause to start over.
	termSettled = time.Minute
)

// NewLeader checks cfg and starts nothing.
func NewLeader(cfg LeaderConfig) (*Leader, error) {
	switch {
	case cfg.Leadership == nil:
		return nil, errors.New("leader duties: Leadership is missing")
	case cfg.Term == nil:
		return nil, errors.New("leader duties: Term is missing")
	case cfg.Logger == nil:
		return nil, errors.New("leader duties: Logger is missing")
	}
	return &Leader{cfg: cfg}, nil
}

// Running returns the names of the duties that are under way, sorted; none when
// another member leads.
func (l *Leader) Running() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.running)
}

// Run follows leadership until ctx ends, then stops the duties and returns nil.
func (l *Leader) Run(ctx context.Context) error {
	changes := l.cfg.Leadership.LeadershipChanges()
	leading := l.cfg.Leadership.IsLeader()
	// A change to true that was under way when IsLeader was asked tells nothing
	// new; any later one means that leadership was lost and gained in between.
	known := leading
	pause := termPauseFirst
	for ctx.Err() == nil {
		if !leading {
			select {
			case <-ctx.Done():
			case leading = <-changes:
				known = false
			}
			continue
		}
		began := time.Now()
		again := false
		leading, again = l.term(ctx, changes, &known)
		if !leading || again {
			pause = termPauseFirst
			continue
		}
		if time.Since(began) > termSettled {
			pause = termPauseFirst
		}
		select {
		case <-ctx.Done():
		case leading = <-changes:
			known = false
		case <-time.After(pause):
		}
		pause = min(2*pause, termPauseMax)
	}
	return nil
}

// term runs all duties until leadership changes, one of them ends or ctx ends.
// It returns whether this member leads now, and whether that is a new term.
func (l *Leader) term(ctx context.Context, changes <-chan bool, known *bool) (leading, again bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	over := make(chan error, 1)
	go func() { over <- l.work(ctx) }()
	for {
		select {
		case err := <-over:
			if err != nil && ctx.Err() == nil {
				l.cfg.Logger.Error("leader duties stopped, will start again", "error", err)
			}
			return true, false
		case now := <-changes:
			if now && *known {
				*known = false
				continue
			}
			l.cfg.Logger.Info("leadership changed, stopping duties", "leader", now)
			cancel()
			<-over
			return now, now
		}
	}
}

// work runs the duties of one term, anew after each Pause, and returns when all of
// them have.
func (l *Leader) work(ctx context.Context) error {
	for {
		work, done, err := l.hold.begin(ctx)
		if err != nil {
			return err
		}
		err = l.once(work)
		paused := work.Err() != nil && ctx.Err() == nil
		done()
		if !paused {
			return err
		}
		l.cfg.Logger.Info("leader duties pause")
	}
}

// once passes the barrier and runs the duties.
func (l *Leader) once(ctx context.Context) error {
	began := time.Now()
	if err := l.cfg.Leadership.Barrier(ctx); err != nil {
		return fmt.Errorf("barrier before leader duties: %w", err)
	}
	duties, err := l.cfg.Term()
	if err != nil {
		return fmt.Errorf("make leader duties: %w", err)
	}
	l.setRunning(duties)
	defer l.setRunning(nil)
	l.cfg.Logger.Info("leader duties start", "count", len(duties), "barrier", time.Since(began).Round(time.Microsecond))

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(duties))
	var wg sync.WaitGroup
	for i, d := range duties {
		wg.Go(func() {
			defer cancel() // one gone, all go
			err := runSafely(ctx, d)
			switch {
			case ctx.Err() != nil: // asked to stop; what it says now does not matter
			case err != nil:
				errs[i] = fmt.Errorf("leader duty %s: %w", d.Name, err)
			default:
				errs[i] = fmt.Errorf("leader duty %s ended by itself", d.Name)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// runSafely turns a panic of a duty into an error: losing a term is better than
// losing the process.
func runSafely(ctx context.Context, d Duty) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return d.Run(ctx)
}

func (l *Leader) setRunning(duties []Duty) {
	names := make([]string, 0, len(duties))
	for _, d := range duties {
		names = append(names, d.Name)
	}
	slices.Sort(names)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = names
}
