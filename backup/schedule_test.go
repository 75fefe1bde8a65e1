package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func mustCron(t testing.TB, text string) *Cron {
	t.Helper()
	c, err := ParseCron(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// server is one whose schedule runs in the bubble.
type server struct {
	*Schedule
	dir string

	mu       sync.Mutex // guards what follows
	broken   error      // what Source ends with
	failures []string
	saved    int
}

func (s *server) breakWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

func (s *server) saves() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved
}

func (s *server) failed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.failures)
}

func startSchedule(t *testing.T, dir string, change func(*ScheduleConfig)) *server {
	t.Helper()
	f := sample(t, 20)
	s := &server{dir: dir}
	c := ScheduleConfig{
		Cron: mustCron(t, "0 */12 * * *"), Dir: dir, ClusterID: func() string { return "test-cluster" },
		Source: func(ctx context.Context, w io.Writer) error {
			s.mu.Lock()
			s.saved++
			err := s.broken
			s.mu.Unlock()
			if err != nil {
				return err
			}
			return source(f)(ctx, w)
		},
		Retention: Retention{Keep: 3},
		Failed: func(p Place, st PlaceStatus) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failures = append(s.failures, p.String()+": "+st.Error)
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c)
	}
	var err error
	if s.Schedule, err = NewSchedule(c); err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	return s
}

// run runs f until the test ends or stop is called.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// old makes a file that another process saved.
func old(t *testing.T, dir string, at time.Time, revision int64) string {
	t.Helper()
	name := Name{Cluster: "test-cluster", At: at, Revision: revision}.String()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestParseCron(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ text, from, next, last string }{
		{"0 */12 * * *", "2026-11-21T12:00:00Z", "2026-11-22T00:00:00Z", "2026-11-21T12:00:00Z"},
		{"0 */12 * * *", "2026-11-21T11:59:59Z", "2026-11-21T12:00:00Z", "2026-11-21T00:00:00Z"},
		{"*/5 * * * *", "2026-11-21T11:59:59+05:00", "2026-11-21T07:00:00Z", "2026-11-21T06:55:00Z"},
		{"@weekly", "2026-11-21T11:59:59Z", "2026-11-22T00:00:00Z", "2026-11-15T00:00:00Z"},
		{"0 3 29 2 *", "2026-11-21T11:59:59Z", "2028-02-29T03:00:00Z", "2024-02-29T03:00:00Z"},
		{"CRON_TZ=Asia/Kolkata 30 5 * * *", "2026-11-21T11:59:59Z", "2026-11-22T00:00:00Z", "2026-11-21T00:00:00Z"},
	} {
		s := mustCron(t, c.text)
		if got := s.Next(at(c.from)); !got.Equal(at(c.next)) {
			t.Errorf("%s: after %s comes %s, want %s", c.text, c.from, got, c.next)
		}
		if got := s.Last(at(c.from)); !got.Equal(at(c.last)) {
			t.Errorf("%s: before %s was %s, want %s", c.text, c.from, got, c.last)
		}
	}
	for text, want := range map[string]string{
		"": "found 0", "hourly": "expected exactly 5 fields", "0 0 * * * *": "5 fields", "61 * * * *": "above maximum",
		"@every 1h": "counts from the start", "0 0 31 2 *": "never comes", "CRON_TZ=Mars/Olympus 0 0 * * *": "bad location",
		"CRON_TZ=UTC": "only a time zone", "a b c d e": "parse",
	} {
		if _, err := ParseCron(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "want MINUTE") {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "snapshots")
		s := startSchedule(t, dir, func(c *ScheduleConfig) { c.Spread = 20 * time.Second })
		// The folder was born years after the bubble's clock, as if that were wrong.
		time.Sleep(time.Minute)
		for day := range 3 {
			time.Sleep(24 * time.Hour)
			if want := min(2*(day+1), 3); len(names(t, dir)) != want {
				t.Fatalf("day %d: %v, want %d files", day, names(t, dir), want)
			}
		}
		if s.saves() != 6 || len(s.failed()) > 0 {
			t.Errorf("%d saves, failures %v", s.saves(), s.failed())
		}
		st := s.Status()
		if len(st) != 1 || st[0].Place != dir || st[0].Last == nil || st[0].Error != "" || st[0].Overdue != nil || time.Until(st[0].Next) > 12*time.Hour {
			t.Errorf("status %+v", st)
		}
		if at := st[0].Last.At; at.Second() != 20 || at.Hour()%12 != 0 || st[0].Last.Revision == 0 || st[0].Last.Size == 0 {
			t.Errorf("last %+v", st[0].Last)
		}
		if _, err := Status(filepath.Join(dir, st[0].Last.Name)); err != nil {
			t.Error(err)
		}
	})
}

// TestMissed moments are made up for once, however many there were, and soon.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		old(t, dir, time.Now().Add(-100*time.Hour), 1)
		s := startSchedule(t, dir, nil)
		time.Sleep(time.Minute)
		if got := names(t, dir); len(got) != 2 || s.saves() != 1 {
			t.Errorf("%v after %d saves", got, s.saves())
		}
		time.Sleep(time.Hour)
		if s.saves() != 1 {
			t.Errorf("%d saves after an hour", s.saves())
		}
	})
}

// TestNothingMissed: a start soon after a save is no reason for another, and
// neither is a file that a wrong clock has put into the future.
func TestNothingMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		old(t, dir, time.Now().Add(1000*time.Hour), 1) // the bubble begins at midnight
		old(t, dir, time.Now(), 2)
		s := startSchedule(t, dir, nil)
		time.Sleep(11 * time.Hour)
		if s.saves() != 0 {
			t.Errorf("%d saves", s.saves())
		}
		time.Sleep(2 * time.Hour)
		if s.saves() != 1 {
			t.Errorf("%d saves after noon", s.saves())
		}
	})
}

func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		kept := old(t, dir, time.Now().Add(-20*time.Hour), 1)
		s := startSchedule(t, dir, func(c *ScheduleConfig) { c.Retention = Retention{Keep: 1, MaxAge: time.Hour} })
		s.breakWith(errors.New("disk on fire"))
		time.Sleep(6 * time.Hour)
		st := s.Status()[0]
		if st.Error == "" || st.Failures < 10 || st.Failures > 90 || st.Last == nil || st.Last.Name != kept || st.Overdue == nil {
			t.Errorf("status %+v", st)
		}
		if len(s.failed()) != 1 || !strings.Contains(s.failed()[0], "disk on fire") {
			t.Errorf("told %v", s.failed())
		}
		if got := names(t, dir); len(got) != 1 || got[0] != kept {
			t.Errorf("there is %v", got) // its age is over, but nothing replaces it
		}
		time.Sleep(12 * time.Hour)
		if len(s.failed()) != 2 {
			t.Errorf("told %v", s.failed())
		}
		s.breakWith(nil)
		time.Sleep(time.Hour)
		st = s.Status()[0]
		if got := names(t, dir); len(got) != 1 || got[0] == kept || st.Error != "" || st.Failures != 0 || st.Overdue != nil || st.Last.Name != got[0] {
			t.Errorf("there is %v, status %+v", got, st)
		}
	})
}

func TestFolderOfSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "not", "mounted")
		s := startSchedule(t, dir, nil)
		time.Sleep(13 * time.Hour)
		if st := s.Status()[0]; !strings.Contains(st.Error, dir) || s.saves() != 0 {
			t.Errorf("status %+v after %d saves", st, s.saves())
		}
	})
}

// TestUpload: one server leads after the other, and each moment has one upload.
func TestUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &memoryPlace{}
		var leader atomic.Int32
		leader.Store(-1)
		var all []*server
		for i := range 3 {
			s := startSchedule(t, t.TempDir(), func(c *ScheduleConfig) {
				c.Spread = time.Duration(i) * 9 * time.Second
				c.Remote, c.Retention = remote, Retention{Keep: 4}
				c.Leading = func(context.Context) error {
					if leader.Load() != int32(i) {
						return errors.New("another leads")
					}
					return nil
				}
			})
			all = append(all, s)
		}
		for turn := range 6 {
			leader.Store(int32(turn % 3))
			stop := run(t, all[leader.Load()].Upload)
			time.Sleep(30 * time.Minute)
			if n := len(remote.names()); n != min(turn+1, 4) || remote.creates() != turn+1 {
				t.Fatalf("turn %d: %d files after %d tries: %v", turn, n, remote.creates(), remote.names())
			}
			st := all[leader.Load()].Status()
			if len(st) != 2 || st[1].Place != "memory" || st[1].Last == nil || st[1].Error != "" {
				t.Errorf("turn %d: status %+v", turn, st)
			}
			own := names(t, all[leader.Load()].dir)
			if last := st[1].Last.Name; turn > 0 && !slices.Contains(own, last) {
				t.Errorf("turn %d: %s is none of %v", turn, last, own) // it is a copy
			}
			stop()
			if len(all[leader.Load()].Status()) != 1 {
				t.Error("who does not lead shows a place elsewhere")
			}
			// The next one has nothing to do.
			leader.Store(int32((turn + 1) % 3))
			stop = run(t, all[leader.Load()].Upload)
			time.Sleep(time.Hour)
			stop()
			if remote.creates() != turn+1 {
				t.Errorf("turn %d: %d tries after the leader's change", turn, remote.creates())
			}
			leader.Store(-1)
			time.Sleep(10*time.Hour + 30*time.Minute)
		}
	})
}

func TestUploadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &memoryPlace{fail: errors.New("connection refused")}
		var lost atomic.Bool // the lead
		s := startSchedule(t, t.TempDir(), func(c *ScheduleConfig) {
			c.Remote, c.Leading = remote, func(context.Context) error {
				if lost.Load() {
					return errors.New("another leads")
				}
				return nil
			}
		})
		run(t, s.Upload)
		time.Sleep(6 * time.Hour)
		if st := s.Status()[1]; !strings.Contains(st.Error, "refused") || st.Failures < 10 || st.Last != nil {
			t.Errorf("status %+v", st)
		}
		// The folder fails too: the snapshot goes there directly.
		remote.failWith(nil)
		s.breakWith(nil)
		lost.Store(true)
		if err := os.RemoveAll(s.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if st := s.Status()[1]; !strings.Contains(st.Error, "does not lead any more") || len(remote.names()) != 0 {
			t.Errorf("who does not lead: %+v, %v", st, remote.names())
		}
		lost.Store(false)
		time.Sleep(12 * time.Hour)
		got := remote.names()
		if st := s.Status()[1]; len(got) != 2 || st.Error != "" || st.Last.Name != got[1] {
			t.Errorf("%v, status %+v", got, st)
		}
		if len(s.failed()) != 2 { // there and here
			t.Errorf("told %v", s.failed())
		}
	})
}
