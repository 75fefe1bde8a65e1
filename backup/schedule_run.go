package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Run saves to the folder until ctx ends, and returns nil.
func (s *Schedule) Run(ctx context.Context) error {
	began := time.Now()
	s.loop(ctx, s.local, func(ctx context.Context, tick time.Time) (*Named, error) { return s.save(ctx, tick, began) })
	return nil
}

// Upload stores in the remote place, while this server leads, until ctx ends, and
// returns nil. It must not run twice at a time, and needs Run beside it: it sends
// the file that Run has saved for the same moment, and saves one itself only if
// there is none.
//
// A moment has one upload, also across changes of the leader: who finds a file of
// it in the place does nothing, and who does not lead any more when all is sent
// takes it back. Without such a file, one that leads begins at once.
func (s *Schedule) Upload(ctx context.Context) error {
	defer s.remote.idle()
	s.loop(ctx, s.remote, s.upload)
	return nil
}

// loop attempts what is due, later by Spread. attempt gives no file if it found
// one.
func (s *Schedule) loop(ctx context.Context, p *spot, attempt func(ctx context.Context, tick time.Time) (*Named, error)) {
	var tried time.Time
	pause := retryFirst
	for wait := s.c.Soon + s.c.Spread; sleep(ctx, wait); {
		now := time.Now()
		tick, next := p.due(s.c.Cron, now)
		wait = min(next.Sub(now)+s.c.Spread, longestSleep)
		if tick.IsZero() {
			continue
		}
		if early := s.c.Spread - now.Sub(tick); early > 0 {
			wait = early
			continue
		}
		if tick.After(tried) {
			tried, pause = tick, retryFirst
		}
		n, err := attempt(ctx, tick)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(now)
		if n != nil {
			st := p.stored(tick, *n, took)
			s.c.Logger.Info("snapshot saved", "place", p.place.String(), "name", n.Entry.Name, "bytes", n.Size, "revision", n.Name.Revision, "took", took.Round(time.Millisecond))
			s.c.Done(p.place, st)
			if err == nil {
				err = s.prune(ctx, p, n.Entry)
			}
		} else if err != nil {
			wait = min(wait, pause)
			pause = min(2*pause, retryMost)
		} else {
			p.present(tick)
		}
		if err != nil && ctx.Err() == nil {
			s.fail(p, tick, err)
		}
	}
}

func (s *Schedule) fail(p *spot, tick time.Time, err error) {
	st, first := p.failed(tick, err, time.Now())
	s.c.Logger.Error("snapshot failed", "place", p.place.String(), "error", err, "failures", st.Failures)
	s.c.Done(p.place, st)
	if first {
		s.c.Failed(p.place, st)
	}
}

var errUnknown = errors.New("the cluster's ID is not known yet: it has had no leader")

// save makes the file of tick in the folder. A new folder misses what was due
// since it was made, or since Run began.
func (s *Schedule) save(ctx context.Context, tick, began time.Time) (*Named, error) {
	d := Dir(s.c.Dir)
	if err := os.Mkdir(s.c.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("folder for snapshots: %w", err)
	}
	list, err := d.List(ctx)
	if err != nil {
		return nil, err
	}
	id := s.c.ClusterID()
	if id == "" {
		return nil, errUnknown
	}
	ours := Ours(list, id)
	since := born(s.c.Dir)
	if began.Before(since) {
		since = began
	}
	if s.local.found(ours, since, time.Now()); !s.local.lacks(tick) {
		return nil, nil
	}
	var last int64
	if len(ours) > 0 {
		last = ours[0].Size
	}
	room, err := newRoom(d, last)
	if err != nil {
		return nil, err
	}
	source := func(ctx context.Context, w io.Writer) error { return s.c.Source(ctx, room.limit(w)) }
	_, n, err := saveDir(ctx, source, d, "", s.c.Save)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// upload makes the file of tick in the remote place.
func (s *Schedule) upload(ctx context.Context, tick time.Time) (*Named, error) {
	list, err := s.c.Remote.List(ctx)
	if err != nil {
		return nil, err
	}
	id := s.c.ClusterID()
	if id == "" {
		return nil, errUnknown
	}
	if s.remote.found(Ours(list, id), time.Time{}, time.Now()); !s.remote.lacks(tick) {
		return nil, nil
	}
	s.local.await(ctx, tick, localPatience)
	if n, err := s.sendFile(ctx, id, tick); n != nil || err != nil {
		return n, err
	}
	_, n, err := SaveTo(ctx, s.c.Source, confirmed{s.c.Remote, s.c.Leading}, "", s.c.Save)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// sendFile sends the newest file in the folder that is of tick; nil if there is
// none.
func (s *Schedule) sendFile(ctx context.Context, id string, tick time.Time) (*Named, error) {
	d := Dir(s.c.Dir)
	list, err := d.List(ctx)
	if err != nil {
		return nil, nil // the folder is Run's concern
	}
	ours := slices.DeleteFunc(Ours(list, id), func(n Named) bool { return n.Name.At.Before(tick) })
	if len(ours) == 0 {
		return nil, nil
	}
	n := ours[0]
	r, e, err := d.Open(ctx, n.Entry.Name)
	if err != nil {
		return nil, nil
	}
	defer r.Close()
	if err := (confirmed{s.c.Remote, s.c.Leading}).Create(ctx, n.Entry.Name, r); err != nil {
		return nil, err
	}
	n.Entry = e
	return &n, nil
}

// confirmed is a place that stores only if this server still leads when all is
// there.
type confirmed struct {
	Place
	leading func(context.Context) error
}

func (c confirmed) Create(ctx context.Context, name string, content io.Reader) error {
	return c.Place.Create(ctx, name, readerFunc(func(p []byte) (int, error) {
		n, err := content.Read(p)
		if err == io.EOF {
			if lerr := c.leading(ctx); lerr != nil {
				return n, fmt.Errorf("this server does not lead any more: %w", lerr)
			}
		}
		return n, err
	}))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// prune removes what Retention does not keep, now that saved is there.
func (s *Schedule) prune(ctx context.Context, p *spot, saved Entry) error {
	list, err := p.place.List(ctx)
	if err != nil {
		return fmt.Errorf("saved, but old ones stay: %w", err)
	}
	var ours []Entry
	for _, n := range Ours(list, s.c.ClusterID()) {
		ours = append(ours, n.Entry)
	}
	for _, e := range s.c.Retention.Expired(ours, time.Now(), func(e Entry) bool { return e.Name == saved.Name }) {
		if err := p.place.Remove(ctx, e.Name); err != nil {
			return fmt.Errorf("saved, but old ones stay: %w", err)
		}
	}
	if sw, ok := p.place.(interface {
		Sweep(ctx context.Context, clusterID string, before time.Time) error
	}); ok {
		if err := sw.Sweep(ctx, s.c.ClusterID(), time.Now().Add(-sweepAfter)); err != nil {
			// Nothing that counts as a snapshot; not every service lists them.
			s.c.Logger.Warn("unfinished uploads stay", "place", p.place.String(), "error", err)
		}
	}
	return nil
}

// sweepAfter is longer than any upload takes.
const sweepAfter = 24 * time.Hour

// born is when a folder was made, as far as the file system tells.
func born(dir string) time.Time {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME|unix.STATX_MTIME, &st); err != nil {
		return time.Now()
	}
	t := st.Mtime
	if st.Mask&unix.STATX_BTIME != 0 {
		t = st.Btime
	}
	return time.Unix(t.Sec, int64(t.Nsec))
}
