package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
)

// DefaultSchedule is twice a day.
const DefaultSchedule = "0 */12 * * *"

// Cron says when snapshots are due: always at the same moments, whichever server
// asks and whenever it was started.
type Cron struct {
	text string
	next cron.Schedule
}

// ParseCron reads minute, hour, day of month, month and day of week, or @hourly,
// @daily, @weekly, @monthly, @yearly. Times are UTC, unless CRON_TZ=ZONE and a
// space stand before: servers need not agree about the zone of their hosts.
func ParseCron(text string) (*Cron, error) {
	fail := func(why string) error {
		return fmt.Errorf("%q: %s; want MINUTE HOUR DAY MONTH WEEKDAY, such as %q", text, why, DefaultSchedule)
	}
	full := strings.TrimSpace(text)
	if !strings.HasPrefix(full, "CRON_TZ=") && !strings.HasPrefix(full, "TZ=") {
		full = "CRON_TZ=UTC " + full
	} else if !strings.Contains(full, " ") {
		return nil, fail("there is only a time zone") // the library panics
	}
	s, err := cron.ParseStandard(full)
	if err != nil {
		return nil, fail(err.Error())
	}
	if _, ok := s.(cron.ConstantDelaySchedule); ok {
		return nil, fail("@every counts from the start of a server, and servers start at different times")
	}
	if s.Next(time.Now()).IsZero() {
		return nil, fail("that never comes")
	}
	return &Cron{text: strings.TrimSpace(text), next: s}, nil
}

func (c *Cron) String() string { return c.text }

// Next is the first moment after t.
func (c *Cron) Next(t time.Time) time.Time { return c.next.Next(t).UTC() }

// Last is the last moment that is not after t; zero if there was none for ten
// years.
func (c *Cron) Last(t time.Time) (last time.Time) {
	for back := time.Minute; ; back *= 2 {
		if next := c.Next(t.Add(-back)); !next.IsZero() && !next.After(t) {
			for ; !next.IsZero() && !next.After(t); next = c.Next(next) {
				last = next
			}
			return last
		}
		if back > 10*366*24*time.Hour {
			return time.Time{}
		}
	}
}

// ScheduleConfig of a Schedule. What has no default is required.
type ScheduleConfig struct {
	Cron   *Cron
	Source Source
	// ClusterID of the cluster; empty as long as it is not known.
	ClusterID func() string
	// Dir is the folder of this server. It is made if only its last part is missing.
	Dir string
	// Remote is where the leader stores as well; nil: nowhere.
	Remote Place
	// Leading returns nil if this server leads, as its peers confirm. It is needed
	// with Remote.
	Leading   func(ctx context.Context) error
	Retention Retention
	Save      SaveOptions
	// Spread is by how much this server is later than others.
	Spread time.Duration
	// Soon after the start, or a change of leader, what was missed is made up for:
	// others may have just done it. Default 10 s.
	Soon time.Duration
	// Done is told of each attempt, Failed of the first failure since a snapshot was
	// due. Both must be quick; default nothing.
	Done   func(place Place, p PlaceStatus)
	Failed func(place Place, p PlaceStatus)
	Logger *slog.Logger
}

// PlaceStatus is how it goes in one place. Fields are only added.
type PlaceStatus struct {
	Place string `json:"place"`
	// Last is the newest of this cluster that is there; nil: none.
	Last *Saved `json:"last,omitempty"`
	// Error is why the attempt after Last failed; Failed is when, Failures how many
	// failed since.
	Error    string     `json:"error,omitempty"`
	Failed   *time.Time `json:"failed,omitempty"`
	Failures int        `json:"failures,omitempty"`
	// Next is when the next is due.
	Next time.Time `json:"next,omitzero"`
	// Overdue is since when there should be one that is newer than Last.
	Overdue *time.Time `json:"overdue,omitempty"`
}

// Saved is a snapshot file in a place.
type Saved struct {
	Name     string        `json:"name"`
	At       time.Time     `json:"at"`
	Size     int64         `json:"size"` // bytes
	Revision int64         `json:"revision"`
	Took     time.Duration `json:"took,omitempty"` // nanoseconds; 0: it was there before this process
}

const (
	defaultSoon = 10 * time.Second
	// retryFirst to retryMost is the pause after a failure.
	retryFirst = 30 * time.Second
	retryMost  = longestSleep
	// grace is how late a snapshot may be before it is missed.
	grace = 15 * time.Minute
	// longestSleep bounds how long a change of the host's clock goes unnoticed.
	longestSleep = 5 * time.Minute
	// clockSkew is by how much clocks of servers may differ.
	clockSkew = 5 * time.Minute
	// localPatience is how long Uploads waits for the file of this server.
	localPatience = 10 * time.Minute
)

// Schedule saves when it is due. Safe for concurrent use.
//
// A moment that was missed, because the host was off, is made up for once. What
// fails is tried again until the next moment, which takes its place. Old files go
// only after a new one was stored in the same place.
type Schedule struct {
	c      ScheduleConfig
	local  *spot
	remote *spot // nil without Remote
}

// NewSchedule checks c and starts nothing.
func NewSchedule(c ScheduleConfig) (*Schedule, error) {
	switch {
	case c.Cron == nil || c.Source == nil || c.ClusterID == nil || c.Logger == nil:
		return nil, errors.New("snapshot schedule: Cron, Source, ClusterID and Logger are needed")
	case c.Dir == "":
		return nil, errors.New("snapshot schedule: Dir is missing")
	case c.Remote != nil && c.Leading == nil:
		return nil, errors.New("snapshot schedule: Leading is needed with Remote")
	}
	if c.Soon == 0 {
		c.Soon = defaultSoon
	}
	if c.Done == nil {
		c.Done = func(Place, PlaceStatus) {}
	}
	if c.Failed == nil {
		c.Failed = func(Place, PlaceStatus) {}
	}
	s := &Schedule{c: c, local: newSpot(Dir(c.Dir))}
	if c.Remote != nil {
		s.remote = newSpot(c.Remote)
	}
	return s, nil
}

// Cron is when snapshots are due.
func (s *Schedule) Cron() *Cron { return s.c.Cron }

// Status is how it goes in the folder and, on the leader, elsewhere.
func (s *Schedule) Status() []PlaceStatus {
	now := time.Now()
	out := []PlaceStatus{s.local.status(s.c.Cron, now)}
	if s.remote != nil {
		if st := s.remote.status(s.c.Cron, now); !st.Next.IsZero() {
			out = append(out, st)
		}
	}
	return out
}

// spot is a place and what happened there.
type spot struct {
	place Place

	mu      sync.Mutex
	st      PlaceStatus   // guarded by mu
	first   *time.Time    // what is due after it counts where there is no file; guarded by mu
	base    time.Time     // what is due after this is missing; guarded by mu
	tick    time.Time     // that was tried last; guarded by mu
	told    time.Time     // tick of which a failure was told; guarded by mu
	changed chan struct{} // closed when tick changes; guarded by mu
}

func newSpot(p Place) *spot {
	return &spot{place: p, st: PlaceStatus{Place: p.String()}, changed: make(chan struct{})}
}

// found is told what is in the place now. without is when what is missing began to
// count where there is nothing; the first call settles it.
func (p *spot) found(list []Named, without, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == nil {
		if without.After(now) { // the clock was wrong then, or is
			without = now
		}
		p.first = &without
	}
	p.base = time.Time{}
	defer func() {
		if p.base.IsZero() {
			p.base = *p.first
		}
	}()
	if len(list) == 0 {
		p.st.Last = nil
		return
	}
	last := savedOf(list[0])
	// What seems to come from the future was saved while a clock was wrong; a bit of
	// it is how clocks of servers differ.
	for _, n := range list {
		if n.Name.At.After(p.base) && n.Name.At.Before(now.Add(clockSkew)) {
			p.base = n.Name.At
		}
	}
	if p.st.Last != nil && p.st.Last.Name == last.Name {
		last.Took = p.st.Last.Took
	}
	p.st.Last = last
}

func savedOf(n Named) *Saved {
	return &Saved{Name: n.Entry.Name, At: n.Name.At, Size: n.Size, Revision: n.Name.Revision}
}

// lacks says whether a file of tick is missing.
func (p *spot) lacks(tick time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return tick.After(p.base)
}

// due is the moment that is missing now, zero if none is, and when to look again.
func (p *spot) due(c *Cron, now time.Time) (tick, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.base.After(now) { // the clock was set back
		p.base = now
	}
	tick = c.Last(now)
	if !tick.After(p.base) {
		tick = time.Time{}
	}
	next = c.Next(now)
	p.st.Next = next
	return tick, next
}

// stored is told of a success, failed of the opposite; both give the status.
func (p *spot) stored(tick time.Time, n Named, took time.Duration) PlaceStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := savedOf(n)
	last.Took = took
	p.st.Last, p.st.Error, p.st.Failed, p.st.Failures = last, "", nil, 0
	p.base = tick
	p.attempted(tick)
	return p.st
}

func (p *spot) failed(tick time.Time, err error, now time.Time) (st PlaceStatus, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Error, p.st.Failed = err.Error(), &now
	p.st.Failures++
	first = p.told.IsZero() || tick.After(p.told)
	p.told = tick
	p.attempted(tick)
	return p.st, first
}

// present is told that there is a file of tick, which this server did not save.
func (p *spot) present(tick time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Error, p.st.Failed, p.st.Failures = "", nil, 0
	p.attempted(tick)
}

// attempted is called with mu held.
func (p *spot) attempted(tick time.Time) {
	p.tick = tick
	close(p.changed)
	p.changed = make(chan struct{})
}

// idle is told that nobody works at the place.
func (p *spot) idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Next, p.st.Error, p.st.Failed, p.st.Failures, p.told = time.Time{}, "", nil, 0, time.Time{}
}

// await returns when tick was tried, or in vain after a time.
func (p *spot) await(ctx context.Context, tick time.Time, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		p.mu.Lock()
		tried, changed := !p.tick.Before(tick), p.changed
		p.mu.Unlock()
		if tried {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (p *spot) status(c *Cron, now time.Time) PlaceStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.st
	if !p.base.IsZero() {
		if due := c.Next(p.base); due.Add(grace).Before(now) {
			st.Overdue = &due
		}
	}
	return st
}

// sleep returns false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
