package binary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// Leader is where orders and binaries come from, and where reports go.
type Leader interface {
	// Order of this member; nil if there is none.
	Order(ctx context.Context) (*order.Order, error)
	Report(ctx context.Context, r order.Report) error
	// Binary gives the content of a binary from an offset on.
	Binary(ctx context.Context, sum string, offset int64) (io.ReadCloser, error)
}

// Executor carries out a member's orders, each once, and says what came of them
// until a server has heard it. Its methods but Stopped are for one goroutine.
type Executor struct {
	c       Config
	log     *slog.Logger
	store   *Store
	journal journal
	place   place
	self    program // see own
	trial   *trial  // of this program when it started; nil: none
}

// How long a member tries again before it says that it cannot get a binary, and
// how often it asks for what it did not get.
const (
	fetchPatience = 2 * time.Minute // without any progress
	soonest       = 250 * time.Millisecond
	latest        = 15 * time.Second
)

// Run follows the orders until ctx ends. changed tells that there may be a new
// one. When this program is on trial, that has to end first: it does when healthy
// is closed. The error is an *Exec when another program is to run in place of
// this one.
func (e *Executor) Run(ctx context.Context, healthy <-chan struct{}, l Leader, changed <-chan struct{}) error {
	if e.trial != nil {
		if err := e.prove(ctx, healthy); err != nil || ctx.Err() != nil {
			return err
		}
	}
	for wait := soonest; ; {
		err := e.round(ctx, l)
		var x *Exec
		if errors.As(err, &x) {
			return err
		}
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil {
			e.log.Debug("orders of the cluster", "error", err)
			again = time.After(wait + rand.N(wait))
			wait = min(2*wait, latest)
		} else {
			wait = soonest
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// round says what is not said yet, and does what is not done yet.
func (e *Executor) round(ctx context.Context, l Leader) error {
	if err := e.settle(); err != nil {
		return err
	}
	if err := e.deliver(ctx, l); err != nil {
		return err
	}
	o, err := l.Order(ctx)
	if err != nil || o == nil {
		return err
	}
	if err := e.Do(ctx, l, *o); err != nil {
		return err
	}
	return e.deliver(ctx, l)
}

// deliver sends the report that no server has.
func (e *Executor) deliver(ctx context.Context, l Leader) error {
	s, err := e.journal.read()
	if err != nil || s.Sent || s.Report.Order == "" {
		return err
	}
	if err := l.Report(ctx, s.Report); err != nil {
		return fmt.Errorf("report on order %s: %w", s.Report.Order, err)
	}
	return e.journal.update(func(now *state) error {
		if now.Report == s.Report {
			now.Sent = true
		}
		return nil
	})
}

// Do carries out an order that was not carried out yet, and keeps the report on
// it. An *Exec as the error asks for the switch that is prepared; other errors
// mean that the order is not decided and Do has to be called again.
func (e *Executor) Do(ctx context.Context, l Leader, o order.Order) error {
	known := false
	err := e.journal.update(func(s *state) error {
		if s.Trial != nil {
			return errors.New("a switch is going on")
		}
		if known = s.Order.ID == o.ID && s.Report.Phase != order.Working; known {
			return nil
		}
		s.Order = o
		s.say(order.Working, program{Version: e.c.Version}, "")
		return nil
	})
	if err != nil || known {
		return err
	}
	// That it is being worked on may as well be heard later.
	if err := e.deliver(ctx, l); err != nil {
		e.log.Debug("orders of the cluster", "error", err)
	}
	e.log.Info("order of the cluster", "action", o.Action, "version", o.Binary.Version, "order", o.ID)
	err = e.carryOut(ctx, l, o)
	var x *Exec
	if errors.As(err, &x) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		e.log.Error("order of the cluster", "action", o.Action, "version", o.Binary.Version, "error", err)
	}
	return e.journal.update(func(s *state) error {
		phase, why := order.Done, ""
		if err != nil {
			phase, why = order.Failed, err.Error()
		}
		s.say(phase, program{Version: e.c.Version}, why)
		s.Report.Gone = o.Action == order.Return && errors.Is(err, ErrMissing)
		return nil
	})
}

func (e *Executor) carryOut(ctx context.Context, l Leader, o order.Order) error {
	if err := e.own(); err != nil {
		return err
	}
	s, err := e.journal.read()
	if err != nil {
		return err
	}
	switch o.Action {
	case order.Fetch:
		if err := e.place.check(o.Binary.Size, e.store.margin); err != nil {
			return err
		}
		if err := e.store.Prune(e.self.SHA256, s.Previous, o.Binary.SHA256); err != nil {
			e.log.Warn("old programs are left behind", "error", err)
		}
		return e.fetch(ctx, l, o.Binary)
	case order.Switch:
		if e.self.SHA256 == o.Binary.SHA256 {
			return nil
		}
		if err := e.fetch(ctx, l, o.Binary); err != nil {
			return err
		}
		return e.change(o, program{o.Binary.SHA256, o.Binary.Version})
	case order.Return:
		to, err := e.destination(s, o)
		if err != nil || to.SHA256 == e.self.SHA256 {
			return err
		}
		return e.change(o, to)
	}
	return fmt.Errorf("version %s of skiff does not know the action %q", e.c.Version, o.Action)
}

// own finds out what this program is.
func (e *Executor) own() (err error) {
	if e.self.SHA256 != "" {
		return nil
	}
	e.self.Version = e.c.Version
	if e.self.SHA256, err = Sum("/proc/self/exe"); err != nil {
		return fmt.Errorf("read the own program: %w", err)
	}
	return nil
}

// fetch tries again while something comes.
func (e *Executor) fetch(ctx context.Context, l Leader, b order.Binary) error {
	var last time.Time
	from := func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		body, err := l.Binary(ctx, b.SHA256, offset)
		if err != nil {
			return nil, &broken{err}
		}
		return &progress{body, &last}, nil
	}
	last = time.Now()
	for wait := soonest; ; wait = min(2*wait, latest) {
		err := e.store.AddFrom(ctx, b, from)
		var cut *broken
		if err == nil || ctx.Err() != nil || !errors.As(err, &cut) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if time.Since(last) > fetchPatience {
			return fmt.Errorf("no server gives the binary: %w", err)
		}
		e.log.Debug("the binary does not come", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(wait)):
		}
	}
}

// broken is an error of the way here, not of what comes.
type broken struct{ error }

func (b *broken) Unwrap() error { return b.error }

type progress struct {
	io.ReadCloser
	last *time.Time
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if n > 0 {
		*p.last = time.Now()
	}
	if err != nil && err != io.EOF {
		err = &broken{err}
	}
	return n, err
}

// pause is between attempts at what has to succeed.
const pause = time.Second

// prove ends the trial of this program when it is healthy.
func (e *Executor) prove(ctx context.Context, healthy <-chan struct{}) error {
	guarded, done := context.WithCancel(ctx)
	defer done()
	go e.keepGuard(guarded)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-healthy:
		}
		over, err := e.proved()
		switch {
		case over:
			return nil
		case err != nil:
			e.log.Error("the trial of this program does not end", "error", err)
			time.Sleep(pause)
		default:
			e.log.Error("this program was healthy too late: the guard ends it")
			healthy = nil
		}
	}
}

// keepGuard sees to it that a guard watches until the trial is over.
func (e *Executor) keepGuard(ctx context.Context) {
	for {
		gone, err := e.guarded()
		if gone == nil && err == nil {
			return
		}
		var again <-chan time.Time
		if err != nil {
			e.log.Error("nobody watches over the trial of this program", "error", err)
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-gone:
		case <-again:
		}
	}
}

// guarded gives a channel that is closed when the guard ends; one is started if
// there is none. Without a trial it is nil.
func (e *Executor) guarded() (<-chan struct{}, error) {
	s, err := e.journal.read()
	if err != nil || s.Trial == nil {
		return nil, err
	}
	p := s.Trial.Guard
	if !p.lives() {
		e.log.Warn("the guard of this trial is gone: another one watches")
		program := e.store.Path(s.Trial.From.SHA256)
		if _, err := os.Stat(program); err != nil {
			program = e.place.previous()
		}
		return e.startGuard(program)
	}
	proc, err := os.FindProcess(p.PID)
	if err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := proc.Wait(); err == nil { // a child of this process under its earlier program
			return
		}
		for p.lives() {
			time.Sleep(time.Second)
		}
	}()
	return gone, nil
}

// proved ends the trial well, unless it was decided already.
func (e *Executor) proved() (over bool, err error) {
	keep := []string{e.self.SHA256}
	err = e.journal.update(func(s *state) error {
		if over = s.Trial == nil; over {
			return nil
		}
		if s.Trial.Returning != "" {
			return nil
		}
		s.Previous = s.Trial.From.SHA256
		keep = append(keep, s.Previous)
		s.end(order.Done, e.self, "")
		over = true
		return nil
	})
	if err != nil || !over {
		return false, err
	}
	step("proved")
	e.log.Info("this program is healthy: the trial is over", "version", e.c.Version)
	if err := errors.Join(e.tidy(), e.store.Prune(keep...)); err != nil {
		e.log.Warn("old programs are left behind", "error", err)
	}
	return true, nil
}

// Stopped says that this process ends because it was asked to: the guard then does
// not start anything, and the trial goes on with the next start.
func (e *Executor) Stopped() {
	s, err := e.journal.read()
	if err == nil && s.Trial != nil {
		err = e.journal.update(func(s *state) error {
			if s.Trial != nil {
				s.Trial.Stopped = true
			}
			return nil
		})
	}
	if err != nil {
		e.log.Error("the guard does not know that skiff was stopped", "error", err)
	}
}
