package cluster

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeLeadership is steered by tests.
type fakeLeadership struct {
	leading  atomic.Bool
	changes  chan bool
	barriers atomic.Int32
	barrier  func(ctx context.Context) error
}

func (f *fakeLeadership) IsLeader() bool                 { return f.leading.Load() }
func (f *fakeLeadership) LeadershipChanges() <-chan bool { return f.changes }
func (f *fakeLeadership) Barrier(ctx context.Context) error {
	f.barriers.Add(1)
	if f.barrier != nil {
		return f.barrier(ctx)
	}
	return nil
}

func (f *fakeLeadership) set(v bool) { f.leading.Store(v); f.changes <- v }

// watchedDuties counts terms and finds those that overlap.
type watchedDuties struct {
	mu      sync.Mutex
	terms   int
	active  int
	overlap bool
	linger  time.Duration
	fail    chan error
}

func (w *watchedDuties) term() ([]Duty, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.terms++
	w.overlap = w.overlap || w.active > 0
	run := func(ctx context.Context) error {
		w.mu.Lock()
		w.active++
		w.mu.Unlock()
		defer func() { w.mu.Lock(); w.active--; w.mu.Unlock() }()
		select {
		case <-ctx.Done():
			w.mu.Lock()
			linger := w.linger
			w.mu.Unlock()
			time.Sleep(linger) // a duty may take its time to stop
			return nil
		case err := <-w.fail:
			return err
		}
	}
	return []Duty{{Name: "b", Run: run}, {Name: "a", Run: run}}, nil
}

func (w *watchedDuties) state() (terms, active int, overlap bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.terms, w.active, w.overlap
}

func runLeader(t *testing.T, f *fakeLeadership, w *watchedDuties) *Leader {
	t.Helper()
	l, err := NewLeader(LeaderConfig{Leadership: f, Term: w.term, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if _, active, overlap := w.state(); active != 0 || overlap {
			t.Errorf("after Run: %d duties active, terms overlapped: %v", active, overlap)
		}
	})
	return l
}

func expect(t *testing.T, w *watchedDuties, terms, active int) {
	t.Helper()
	eventually(t, "terms and active duties", func() (bool, error) {
		n, a, _ := w.state()
		return n == terms && a == active, nil
	})
}

func TestLeaderFollowsLeadership(t *testing.T) {
	f := &fakeLeadership{changes: make(chan bool)}
	w := &watchedDuties{linger: 20 * time.Millisecond}
	l := runLeader(t, f, w)
	expect(t, w, 0, 0)
	f.set(true)
	expect(t, w, 1, 2)
	if got := l.Running(); len(got) != 2 || got[0] != "a" {
		t.Errorf("running %v", got)
	}
	f.set(false)
	expect(t, w, 1, 0)
	eventually(t, "nothing runs", func() (bool, error) { return len(l.Running()) == 0, nil })
	f.set(true)
	expect(t, w, 2, 2)
	f.set(true) // lost and gained again in between
	expect(t, w, 3, 2)
	if n := f.barriers.Load(); n != 3 {
		t.Errorf("%d barriers, want one for each term", n)
	}
}

func TestLeaderFromTheStart(t *testing.T) {
	f := &fakeLeadership{changes: make(chan bool)}
	f.leading.Store(true)
	w := &watchedDuties{}
	runLeader(t, f, w)
	expect(t, w, 1, 2)
	f.set(true) // the news of what was known already
	time.Sleep(20 * time.Millisecond)
	expect(t, w, 1, 2)
}

func TestFailedDutyStartsTheTermAnew(t *testing.T) {
	f := &fakeLeadership{changes: make(chan bool)}
	f.leading.Store(true)
	w := &watchedDuties{fail: make(chan error)}
	runLeader(t, f, w)
	expect(t, w, 1, 2)
	w.fail <- errors.New("broken")
	expect(t, w, 2, 2)
}

func TestNoDutiesWithoutBarrier(t *testing.T) {
	f := &fakeLeadership{changes: make(chan bool), barrier: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	w := &watchedDuties{}
	runLeader(t, f, w)
	f.set(true)
	eventually(t, "barrier asked for", func() (bool, error) { return f.barriers.Load() == 1, nil })
	f.set(false)
	expect(t, w, 0, 0)
}

func TestPausedDutiesStartAnew(t *testing.T) {
	f := &fakeLeadership{changes: make(chan bool)}
	w := &watchedDuties{linger: 20 * time.Millisecond}
	l := runLeader(t, f, w)
	pause := func() func() {
		t.Helper()
		resume, err := l.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, active, _ := w.state(); active != 0 {
			t.Errorf("%d duties run in a pause", active)
		}
		return resume
	}
	pause()() // without leadership there is nothing to end
	f.set(true)
	expect(t, w, 1, 2)
	first, second := pause(), pause()
	first()
	first() // counts once
	time.Sleep(30 * time.Millisecond)
	expect(t, w, 1, 0)
	second()
	expect(t, w, 2, 2)
	if n := f.barriers.Load(); n != 2 {
		t.Errorf("%d barriers, want one after the pause", n)
	}
	resume := pause()
	f.set(false)
	f.set(true) // led anew, in a pause
	time.Sleep(30 * time.Millisecond)
	expect(t, w, 2, 0)
	resume()
	expect(t, w, 3, 2)

	w.mu.Lock()
	w.linger = time.Second
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a pause that nobody waits for: %v", err)
	}
	expect(t, w, 4, 2) // and it did not last
}
