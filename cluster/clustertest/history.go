package clustertest

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strings"
)

// history is what became of the clients' keys, in the order of revisions.
type history struct {
	events []seen
	byKey  map[string][]int // indexes into events
	head   int64            // newest revision of the store
	jumps  map[string]int64 // revisions of restores, by ID
}

// newHistory puts the events that members told in order. What members told is
// complete if no revision is missing.
func (w *world) newHistory() *history {
	h := &history{byKey: map[string][]int{}, jumps: map[string]int64{}}
	w.mu.Lock()
	all := maps.Clone(w.history)
	w.mu.Unlock()
	next := w.empty + 1
	for _, rev := range slices.Sorted(maps.Keys(all)) {
		if e := all[rev]; rev > next && e.key == restoredKey {
			for next < rev-1 {
				next += w.wiped(h, next)
			}
			w.jump(h, next, e) // which nobody is told of
			next++
		}
		if rev != next && !w.sparse {
			w.anomaly("no member has told what revision %d was", next)
			break
		}
		next++
		h.head = rev
		e := all[rev]
		if key, ok := strings.CutPrefix(e.key, storeKeys); ok {
			h.byKey[key] = append(h.byKey[key], len(h.events))
			h.events = append(h.events, seen{rev: rev, key: key, value: e.value, host: e.from})
		}
	}
	return h
}

func (h *history) last() int64 { return h.head }

// position is the number of events up to a revision.
func (h *history) position(rev int64) int {
	return sort.Search(len(h.events), func(i int) bool { return h.events[i].rev > rev })
}

// at is the version of a key after so many events.
func (h *history) at(key string, position int) version {
	of := h.byKey[key]
	n, _ := slices.BinarySearchFunc(of, position, func(i, p int) int { return cmp.Compare(i, p) })
	if n == 0 {
		return version{}
	}
	if e := h.events[of[n-1]]; e.value != "" {
		return version{e.value, e.rev}
	}
	return version{}
}

// all is what there was after so many events.
func (h *history) all(position int) map[string]version {
	out := map[string]version{}
	for k := range h.byKey {
		if v := h.at(k, position); v.value != "" {
			out[k] = v
		}
	}
	return out
}

// between are the events after one revision up to another.
func (h *history) between(prefix string, after, upto int64) (out []seen) {
	for _, e := range h.events[h.position(after):h.position(upto)] {
		if strings.HasPrefix(e.key, prefix) {
			out = append(out, e)
		}
	}
	return out
}

// settle says of each operation whose outcome is unknown whether it took
// effect, and of each event which operation it was. Acknowledged writes that
// are not in the history are lost, events of nobody are made up.
func (w *world) settle(h *history, ops []op) []op {
	byValue := map[string]seen{}
	deletes := map[int64]seen{}
	for _, e := range h.events {
		if e.jump {
			continue
		}
		if e.value == "" {
			deletes[e.rev] = e
		} else if old, ok := byValue[e.value]; ok {
			w.anomaly("%q was written twice, at %d and %d", e.value, old.rev, e.rev)
		} else {
			byValue[e.value] = e
		}
	}
	var out, lost []op
	for _, o := range ops {
		switch {
		case o.kind == restore:
			out = w.settleRestore(h, o, out)
		case o.kind > remove || o.outcome == exists || o.outcome == missing || o.outcome == conflict:
			if o.outcome != failed {
				out = append(out, o)
			}
		case o.kind == remove && o.outcome == unknown:
			lost = append(lost, o)
		case o.kind == remove && o.outcome == done:
			if e, ok := deletes[o.rev]; !ok || e.key != o.key {
				w.anomaly("lost: %v", o)
			}
			delete(deletes, o.rev)
			out = append(out, o)
		case o.kind == remove:
		case o.outcome == done:
			if e, ok := byValue[o.value]; !ok || e.key != o.key || e.rev != o.rev {
				w.anomaly("lost or another: %v; the history has %v", o, e)
			}
			delete(byValue, o.value)
			out = append(out, o)
		case o.outcome == unknown:
			if e, ok := byValue[o.value]; ok {
				o.rev = e.rev
				out = append(out, o)
			}
			delete(byValue, o.value)
		case o.outcome == failed:
			if _, ok := byValue[o.value]; ok {
				w.anomaly("the client was told that nothing was done: %v", o)
			}
			delete(byValue, o.value)
		}
	}
	// Which of several deletes of a key it was can't be told: the first that may
	// have been it lends its call.
	for rev, e := range deletes {
		var was *op
		for i, o := range lost {
			if o.key == e.key && (was == nil || o.call < was.call) && (o.expect == 0 || o.expect == h.at(e.key, h.position(rev-1)).rev) {
				was = &lost[i]
			}
		}
		if was == nil {
			w.anomaly("nobody made the delete %v", e)
			continue
		}
		o := *was
		o.rev, o.expect = rev, 0
		out = append(out, o)
	}
	for id, rev := range h.jumps {
		w.anomaly("nobody restored %s, at revision %d", id, rev)
	}
	for _, e := range byValue {
		w.anomaly("nobody wrote %v, or it was taken back", e)
	}
	return out
}
