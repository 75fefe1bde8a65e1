package store

import (
	"sort"
	"strings"
	"sync"
	"sync/atomic"
)

// eventList is a queue of events in revision order.
type eventList struct {
	events  []*Event
	dropped int64 // highest revision that was taken out at the front
}

func (l *eventList) pop() {
	l.dropped = l.events[0].Revision
	l.events[0] = nil
	l.events = l.events[1:]
}

// after returns the events with a revision above rev.
func (l *eventList) after(rev int64) []*Event {
	i := sort.Search(len(l.events), func(i int) bool { return l.events[i].Revision > rev })
	return l.events[i:]
}

// history is the recent past: all events in order, the same events by bucket,
// and the watchers that wait for more. mu also orders the publication of a view
// with that of its events.
type history struct {
	mu        sync.RWMutex
	maxEvents int
	maxBytes  int64

	rev     int64 // of the newest event
	base    int64 // nothing at or below this revision can be told, whatever the bucket
	bytes   int64
	nudges  uint64
	all     bucket
	buckets map[string]*bucket

	views viewCache
}

// bucket is the history of the keys below one directory such as
// /registry/pods/. A quiet bucket keeps its past, however busy others are.
type bucket struct {
	eventList
	sleepers
}

func (h *history) init(c Config, rev int64) {
	h.maxEvents, h.maxBytes, h.rev = c.HistoryEvents, c.HistoryBytes, rev
	h.buckets = map[string]*bucket{}
}

// bucketName is the first two levels of a key: /registry/pods/default/a is in
// /registry/pods/. It is "" for keys and prefixes that are shorter.
func bucketName(key string) string {
	if key == "" || key[0] != '/' {
		return ""
	}
	i := strings.IndexByte(key[1:], '/') + 1
	if i == 0 {
		return ""
	}
	j := strings.IndexByte(key[i+1:], '/')
	if j < 0 {
		return ""
	}
	return key[:i+j+2]
}

// bucket returns the bucket of a key or of the keys with a prefix.
func (h *history) bucket(key string) *bucket {
	name := bucketName(key)
	if name == "" {
		return &h.all
	}
	b := h.buckets[name]
	if b == nil {
		b = &bucket{}
		b.dropped = h.base
		h.buckets[name] = b
	}
	return b
}

// publish makes v the newest view together with the events that led to it: all
// since the view before, or since the history began anew at base, if that is not 0.
func (h *history) publish(newest *atomic.Pointer[View], v *View, events []*Event, base int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	newest.Store(v)
	if base != 0 {
		h.restart(base)
	}
	h.rev = v.rev
	for _, e := range events {
		h.bytes += e.cost()
		h.all.events = append(h.all.events, e)
		h.all.wake(e.Key, e.Revision)
		if b := h.bucket(e.Key); b != &h.all {
			b.events = append(b.events, e)
			b.wake(e.Key, e.Revision)
		}
	}
	trimmed := false
	for len(h.all.events) > h.maxEvents || (h.bytes > h.maxBytes && len(h.all.events) > 0) {
		e := h.all.events[0]
		h.bytes -= e.cost()
		h.all.pop()
		if b := h.bucket(e.Key); b != &h.all {
			b.pop()
		}
		trimmed = true
	}
	if trimmed {
		h.views.forget(h.oldest())
	}
}

// reset starts the history anew at v.
func (h *history) reset(newest *atomic.Pointer[View], v *View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	newest.Store(v)
	h.restart(v.rev)
}

// restart forgets everything up to rev, and wakes all watchers to hear of it.
func (h *history) restart(rev int64) {
	h.eachBucket(func(b *bucket) { b.wakeAll(h.rev) })
	h.rev, h.base, h.bytes = rev, rev, 0
	h.all.eventList = eventList{dropped: rev}
	h.buckets = map[string]*bucket{}
	h.views.forget(rev + 1)
}

func (h *history) eachBucket(fn func(*bucket)) {
	fn(&h.all)
	for _, b := range h.buckets {
		fn(b)
	}
}

// oldest is the oldest revision from which every change is still known.
func (h *history) oldest() int64 { return max(h.base, h.all.dropped) }

// CompactRevision is the oldest revision from which any watch may start, and
// the oldest that ViewAt can rebuild.
func (s *Store) CompactRevision() int64 {
	s.past.mu.RLock()
	defer s.past.mu.RUnlock()
	return s.past.oldest()
}

// ViewAt returns the state as it was at revision rev, rebuilt from the newest
// by taking back the changes since. It returns ErrCompacted when these are no
// longer kept, and ErrFutureRevision when rev is yet to come.
func (s *Store) ViewAt(rev int64) (*View, error) {
	h := &s.past
	h.mu.RLock()
	v, oldest := s.newest.Load(), h.oldest()
	undo := h.all.after(rev)
	h.mu.RUnlock()
	switch {
	case rev > v.rev:
		return nil, ErrFutureRevision
	case rev == v.rev:
		return v, nil
	case rev < oldest:
		return nil, ErrCompacted
	}
	if old := h.views.get(rev); old != nil {
		return old, nil
	}
	tx := Txn{s: s, gen: s.gens.Add(1), v: *v}
	for i := len(undo) - 1; i >= 0; i-- {
		e := undo[i]
		if e.KV == nil {
			tx.replace(nil, e.Prev)
		} else {
			tx.replace(e.KV, e.Prev)
		}
	}
	tx.v.rev = rev
	old := tx.v
	h.views.add(&old)
	return &old, nil
}

// viewCache keeps the last rebuilt views, for the pages of one list ask for the
// same revision again and again.
type viewCache struct {
	mu    sync.Mutex
	views []*View // the least recently used first
}

const maxCachedViews = 8

func (c *viewCache) get(rev int64) *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range c.views {
		if v.rev == rev {
			copy(c.views[i:], c.views[i+1:])
			c.views[len(c.views)-1] = v
			return v
		}
	}
	return nil
}

func (c *viewCache) add(v *View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.views) == maxCachedViews {
		c.views = append(c.views[:0], c.views[1:]...)
	}
	c.views = append(c.views, v)
}

// forget drops the views older than rev: they would keep memory that the
// bounds of the history promise to release.
func (c *viewCache) forget(rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := c.views[:0]
	for _, v := range c.views {
		if v.rev >= rev {
			keep = append(keep, v)
		}
	}
	clear(c.views[len(keep):])
	c.views = keep
}
