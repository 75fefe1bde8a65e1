package clustertest

import "math"

// order checks all keys together, in the time that it takes to look at each
// operation once: porcupine's search can take for ever on tens of thousands.
//
// The history says in which order the writes took effect. So each has a moment
// between its call and its return, those moments follow each other, and whoever
// saw the state after n writes, and not after m, was called before the moment of
// the m-th and returned after that of the n-th. There are such moments if no
// operation that must come before a write was called after the return of one
// that must come behind it, or behind a later one.
type order struct {
	h             *history
	after, before []bound // of the moment of each event, counted from 1
}

// bound is a moment, and the operation that gives it.
type bound struct {
	at int64
	op *op
}

func newOrder(h *history) *order {
	o := &order{h: h, after: make([]bound, len(h.events)+2), before: make([]bound, len(h.events)+2)}
	for i := range o.before {
		o.before[i].at = math.MaxInt64
	}
	return o
}

// saw says that an operation took place after the event first and before the
// one behind last.
func (r *order) saw(o *op, first, last int) {
	ret := o.ret
	if o.outcome == unknown {
		ret = math.MaxInt64
	}
	if first > 0 && ret < r.before[first].at {
		r.before[first] = bound{ret, o}
	}
	if last < len(r.h.events) && o.call > r.after[last+1].at {
		r.after[last+1] = bound{o.call, o}
	}
}

// add takes an operation that says something about one moment. Others, such as
// one that was refused, are left to the check of their key.
func (r *order) add(o *op) {
	at := r.h.position(o.rev)
	switch {
	case o.outcome != done && o.outcome != unknown, o.kind == localGet, o.kind == listAt:
	case o.kind == list:
		r.saw(o, at, at)
	case o.kind == restore:
		r.saw(o, at, r.h.position(o.rev-1))
	case o.kind == get:
		next := len(r.h.events)
		for _, e := range r.h.byKey[o.key] {
			if r.h.events[e].rev > o.rev {
				next = e
				break
			}
		}
		r.saw(o, at, next)
	default:
		r.saw(o, at, at-1)
	}
}

// broken returns two operations that contradict each other: the first began
// after the other had returned, and saw less.
func (r *order) broken() (late, early *op) {
	latest := bound{}
	first := make([]bound, len(r.after)) // the latest call up to each
	for i, b := range r.after {
		if b.at > latest.at {
			latest = b
		}
		first[i] = latest
	}
	soonest := bound{at: math.MaxInt64}
	for i := len(r.before) - 1; i > 0; i-- {
		if r.before[i].at < soonest.at {
			soonest = r.before[i]
		}
		if first[i].op != nil && soonest.op != nil && first[i].at >= soonest.at {
			return first[i].op, soonest.op
		}
	}
	return nil, nil
}

// checkOrder checks all operations that settle returned.
func (w *world) checkOrder(h *history, ops []op) {
	r := newOrder(h)
	for i := range ops {
		r.add(&ops[i])
	}
	if late, early := r.broken(); late != nil {
		w.anomaly("not linearizable (order of all): %v\n\tbegan after the return of %v", late, early)
	}
}
