package store

import (
	"context"
	"strings"
)

// maxEventsPerNext bounds what one Next returns, so that a watcher that starts
// far behind does not hold everything at once.
const maxEventsPerNext = 1024

// Watcher is a cursor over the changes of the keys with a prefix. It costs no
// goroutine and needs no closing. Next must not be called concurrently.
type Watcher struct {
	s      *Store
	prefix string
	after  int64
	nudges uint64
	woken  chan struct{}

	// Guarded by history.mu: the list of sleepers the watcher is in, if any.
	in         *sleepGroup
	next, prev *Watcher
}

// Watch returns a cursor over the changes after revision after, of the keys
// with the prefix. after may lie in the future: then only changes above it are
// told. The first Next says whether the history still reaches back to after.
func (s *Store) Watch(prefix string, after int64) *Watcher {
	s.past.mu.RLock()
	defer s.past.mu.RUnlock()
	return &Watcher{s: s, prefix: prefix, after: after, nudges: s.past.nudges, woken: make(chan struct{}, 1)}
}

// Next blocks until there is a change for the watcher, or a Nudge, or ctx ends.
// Each change is told once, in order. upto is the revision up to which the
// watcher has now been told everything, with or without events. ErrCompacted
// means that changes were missed: the reader has to list again.
//
// A watcher that waits in Next is woken by changes of keys with its prefix
// only, and the events it has slept through can't compact it.
func (w *Watcher) Next(ctx context.Context) (events []*Event, upto int64, err error) {
	h := &w.s.past
	for {
		h.mu.RLock()
		events, done, err := w.collect(h)
		h.mu.RUnlock()
		if done || err != nil {
			return events, w.after, err
		}
		if err := ctx.Err(); err != nil {
			return nil, w.after, err
		}
		h.mu.Lock()
		events, done, err = w.collect(h) // again: something may have come in between
		if done || err != nil {
			h.mu.Unlock()
			return events, w.after, err
		}
		select { // a wake-up that an earlier, cancelled Next did not take
		case <-w.woken:
		default:
		}
		h.bucket(w.prefix).sleep(w)
		h.mu.Unlock()

		select {
		case <-w.woken:
		case <-ctx.Done():
			h.mu.Lock()
			if w.in != nil {
				w.after = max(w.after, h.rev) // it slept: nothing up to here was for it
				w.in.owner.leave(w)
			}
			h.mu.Unlock()
			return nil, w.after, ctx.Err()
		}
	}
}

// collect gathers what there is to tell and moves the cursor.
func (w *Watcher) collect(h *history) (events []*Event, done bool, err error) {
	list := &h.all.eventList
	dropped := h.oldest()
	if name := bucketName(w.prefix); name != "" {
		dropped = h.base
		list = nil
		if b := h.buckets[name]; b != nil {
			list = &b.eventList
			dropped = max(h.base, b.dropped)
		}
	}
	if w.after < dropped {
		return nil, true, ErrCompacted
	}
	if list != nil {
		for _, e := range list.after(w.after) {
			if !strings.HasPrefix(e.Key, w.prefix) {
				continue
			}
			if len(events) == maxEventsPerNext {
				w.after = events[len(events)-1].Revision
				return events, true, nil
			}
			events = append(events, e)
		}
	}
	w.after = max(w.after, h.rev)
	nudged := w.nudges != h.nudges
	w.nudges = h.nudges
	return events, len(events) > 0 || nudged, nil
}

// Nudge lets every watcher's pending or next Next return, with or without
// events, so that idle watchers can report how far they have seen.
func (s *Store) Nudge() {
	h := &s.past
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nudges++
	h.eachBucket(func(b *bucket) { b.wakeAll(h.rev) })
}

// sleepers are the watchers of one bucket that wait, grouped by prefix.
// history.mu guards them.
type sleepers struct {
	dirs map[string]*sleepGroup            // prefixes that end with a slash
	odd  map[string]map[string]*sleepGroup // other prefixes, by the directory they are in
}

// sleepGroup is a doubly linked list of the watchers with one prefix.
type sleepGroup struct {
	owner  *sleepers
	prefix string
	head   *Watcher
}

// dirOf is the prefix up to and with its last slash.
func dirOf(prefix string) string { return prefix[:strings.LastIndexByte(prefix, '/')+1] }

func (s *sleepers) sleep(w *Watcher) {
	var groups map[string]*sleepGroup
	if dir := dirOf(w.prefix); dir == w.prefix {
		if s.dirs == nil {
			s.dirs = map[string]*sleepGroup{}
		}
		groups = s.dirs
	} else {
		if s.odd == nil {
			s.odd = map[string]map[string]*sleepGroup{}
		}
		if s.odd[dir] == nil {
			s.odd[dir] = map[string]*sleepGroup{}
		}
		groups = s.odd[dir]
	}
	g := groups[w.prefix]
	if g == nil {
		g = &sleepGroup{owner: s, prefix: w.prefix}
		groups[w.prefix] = g
	}
	w.in, w.prev, w.next = g, nil, g.head
	if g.head != nil {
		g.head.prev = w
	}
	g.head = w
}

// leave takes one watcher out of the list it is in.
func (s *sleepers) leave(w *Watcher) {
	g := w.in
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		g.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	w.in, w.next, w.prev = nil, nil, nil
	if g.head == nil {
		s.drop(g)
	}
}

func (s *sleepers) drop(g *sleepGroup) {
	dir := dirOf(g.prefix)
	if dir == g.prefix {
		delete(s.dirs, g.prefix)
		return
	}
	delete(s.odd[dir], g.prefix)
	if len(s.odd[dir]) == 0 {
		delete(s.odd, dir)
	}
}

// rouse wakes the watchers of a group, which have missed nothing up to seen.
func (s *sleepers) rouse(g *sleepGroup, seen int64) {
	for w := g.head; w != nil; {
		next := w.next
		w.in, w.next, w.prev = nil, nil, nil
		w.after = max(w.after, seen)
		w.woken <- struct{}{} // has room: it is emptied before each sleep
		w = next
	}
	s.drop(g)
}

// wake wakes the watchers that a change of key at revision rev concerns: it is
// the first for them since they went to sleep.
func (s *sleepers) wake(key string, rev int64) {
	seen := rev - 1
	if len(s.dirs) == 0 && len(s.odd) == 0 {
		return
	}
	if g := s.dirs[""]; g != nil {
		s.rouse(g, seen)
	}
	for i := 0; i < len(key); i++ {
		if key[i] != '/' {
			continue
		}
		if g := s.dirs[key[:i+1]]; g != nil {
			s.rouse(g, seen)
		}
	}
	if len(s.odd) == 0 {
		return
	}
	// A prefix such as /registry/pods/default/we is in the directory of its
	// keys; one such as /reg is in a directory above them.
	for i := -1; i < len(key); i++ {
		if i >= 0 && key[i] != '/' {
			continue
		}
		for prefix, g := range s.odd[key[:i+1]] {
			if strings.HasPrefix(key, prefix) {
				s.rouse(g, seen)
			}
		}
	}
}

// wakeAll wakes everybody, and notes that they have missed nothing up to rev.
func (s *sleepers) wakeAll(rev int64) {
	for _, g := range s.dirs {
		s.rouse(g, rev)
	}
	for _, dir := range s.odd {
		for _, g := range dir {
			s.rouse(g, rev)
		}
	}
}
