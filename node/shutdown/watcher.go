package shutdown

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What kubelet says.
const (
	Reason             = "Terminated"
	Message            = "Pod was terminated in response to imminent node shutdown."
	NotAdmitted        = "NodeShutdown"
	NotAdmittedMessage = "Pod was rejected as the node is shutting down."
)

const (
	firstRetry = time.Second
	mostRetry  = time.Minute
	lookEvery  = 100 * time.Millisecond // at pods that end; only during a shutdown
)

// Node is what a Watcher acts on.
type Node interface {
	// Pods are those that have not ended.
	Pods() []*v1.Pod
	// End ends a pod for good, with a grace period in seconds.
	End(uid types.UID, grace int64)
	// Changed tells that Watcher.Closing has changed.
	Changed(closing bool)
}

// Config configures a Watcher.
type Config struct {
	Periods Periods
	Node    Node
	Logger  *slog.Logger

	address string // of the bus; the system's when ""
	dropIn  string // LogindDropIn when ""
}

// Watcher ends the node's pods when the machine is shut down.
type Watcher struct {
	cfg     Config
	closing atomic.Bool
	ready   func() // told when a shutdown would be noticed; for tests
}

// New returns a Watcher that does nothing yet.
func New(cfg Config) *Watcher {
	if cfg.dropIn == "" {
		cfg.dropIn = LogindDropIn
	}
	return &Watcher{cfg: cfg, ready: func() {}}
}

// Closing says that the machine is being shut down.
func (w *Watcher) Closing() bool { return w.closing.Load() }

// Run watches until ctx ends. Without Periods it does nothing.
func (w *Watcher) Run(ctx context.Context) error {
	if len(w.cfg.Periods) == 0 {
		return nil
	}
	retry, said := firstRetry, ""
	for {
		began := time.Now()
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > mostRetry {
			retry, said = firstRetry, ""
		}
		if said != err.Error() {
			said = err.Error()
			level := slog.LevelWarn
			if errors.Is(err, errNoBus) {
				level = slog.LevelInfo
			}
			w.cfg.Logger.Log(ctx, level, "a shutdown of this machine gives its pods no time", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		retry = min(2*retry, mostRetry)
	}
}

// watch holds up shutdowns for as long as the connection to logind lasts.
func (w *Watcher) watch(ctx context.Context) error {
	l, err := connect(ctx, w.cfg.address, w.cfg.dropIn)
	if err != nil {
		return err
	}
	defer l.close()
	periods, want := w.cfg.Periods, w.cfg.Periods.Total()
	have, err := l.raise(ctx, want)
	if have == 0 && err != nil {
		return err
	}
	if have < want {
		w.cfg.Logger.Warn("systemd-logind waits less for pods than they were to have; set InhibitDelayMaxSec in logind.conf", "wanted", want, "have", have, "err", err)
		periods = periods.within(have)
	}
	before, err := l.preparing(ctx) // what was missed while there was no connection
	if err != nil {
		return err
	}
	w.set(before)
	lock, err := l.inhibit(ctx)
	if err != nil {
		return err
	}
	w.ready()
	e := &ending{lock: lock, stop: func() {}}
	defer func() { e.wait() }()
	for {
		begins, err := l.next(ctx)
		if err != nil {
			return err
		}
		if !w.set(begins) {
			continue
		}
		if begins {
			e.begin(ctx, func(ctx context.Context) { w.end(ctx, periods) })
			continue
		}
		e.stop()
		e.wait()
		if lock, err = l.inhibit(ctx); err != nil {
			return err
		}
		e = &ending{lock: lock, stop: func() {}}
	}
}

// set notes whether the machine is being shut down; false if that is known.
func (w *Watcher) set(closing bool) bool {
	if w.closing.Swap(closing) == closing {
		return false
	}
	w.cfg.Node.Changed(closing)
	return true
}

// ending is the work between the announcement of a shutdown and the moment when
// it may go on. Losing the connection to logind does not end it.
type ending struct {
	lock *os.File
	stop context.CancelFunc
	done chan struct{} // nil: it has not begun
}

func (e *ending) begin(ctx context.Context, work func(context.Context)) {
	ctx, e.stop = context.WithCancel(ctx)
	e.done = make(chan struct{})
	go func() {
		defer close(e.done)
		work(ctx)
		_ = e.lock.Close() // the shutdown goes on
	}()
}

// wait waits for what has begun, and lets the shutdown go on.
func (e *ending) wait() {
	if e.done != nil {
		<-e.done
	}
	e.stop()
	_ = e.lock.Close() // a second time it does no harm
}

// end ends the pods, group by group.
func (w *Watcher) end(ctx context.Context, periods Periods) {
	began := time.Now()
	for _, g := range periods.groups(w.cfg.Node.Pods()) {
		if len(g.pods) == 0 {
			continue
		}
		w.cfg.Logger.Info("the machine is shut down: ending pods", "priority", g.Priority, "pods", len(g.pods), "within", g.Grace)
		mine := map[types.UID]bool{}
		for _, p := range g.pods {
			mine[p.UID] = true
			w.cfg.Node.End(p.UID, g.grace(p))
		}
		if !w.await(ctx, mine, g.Grace) {
			return
		}
	}
	w.cfg.Logger.Info("pods have ended, the machine may go on with its shutdown", "took", time.Since(began).Round(time.Millisecond))
}

// await waits until the pods have ended, or the time is over; false if the
// shutdown was taken back.
func (w *Watcher) await(ctx context.Context, pods map[types.UID]bool, most time.Duration) bool {
	due := time.NewTimer(most)
	defer due.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		left := 0
		for _, p := range w.cfg.Node.Pods() {
			if pods[p.UID] {
				left++
			}
		}
		if left == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-due.C:
			w.cfg.Logger.Warn("pods have not ended in time", "pods", left)
			return true
		case <-tick.C:
		}
	}
}
