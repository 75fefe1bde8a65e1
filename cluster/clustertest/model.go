package clustertest

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkPatience is how long porcupine may take; no answer by then is an anomaly.
const checkPatience = 3 * time.Minute

// maxWhole is how many operations porcupine gets at once. Longer histories of
// all keys are left to checkOrder.
const maxWhole = 5000

// checkOps checks the operations of all clients.
func (w *world) checkOps(h *history) {
	w.mu.Lock()
	ops := slices.Clone(w.ops)
	w.mu.Unlock()
	settled := w.settle(h, ops)
	var single, whole []porcupine.Operation
	for _, o := range settled {
		if o.outcome == unknown {
			o.ret = math.MaxInt64
		}
		switch o.kind {
		case localGet:
			w.checkLocal(h, o)
			continue
		case listAt:
			w.checkList(h, o, o.expect)
			continue
		case restore:
			for _, e := range h.events[h.position(o.rev-1):h.position(o.rev)] {
				single = append(single, operation(op{client: o.client, kind: jump, key: e.key, value: e.value, rev: e.rev,
					outcome: o.outcome, call: o.call, ret: o.ret, host: o.host}))
			}
		case list:
			w.checkList(h, o, o.rev)
			for _, k := range w.keys { // for the model of one key it is a get of each
				v := o.items[k]
				g := op{client: o.client, kind: get, key: k, value: v.value, rev: v.rev, call: o.call, ret: o.ret, host: o.host}
				if v.value == "" {
					g.outcome = missing
				}
				single = append(single, operation(g))
			}
		default:
			single = append(single, operation(o))
		}
		whole = append(whole, operation(o))
	}
	w.checkOrder(h, settled)
	for name, check := range map[string]struct {
		model porcupine.Model
		ops   []porcupine.Operation
	}{"one key": {keyModel(), single}, "all keys": {storeModel(h), whole}} {
		if name == "all keys" && len(check.ops) > maxWhole {
			continue
		}
		result, info := porcupine.CheckOperationsVerbose(check.model, check.ops, checkPatience)
		switch result {
		case porcupine.Illegal:
			w.anomaly("not linearizable (%s): %s", name, stuck(check.ops, info))
		case porcupine.Unknown:
			w.anomaly("the check of linearizability (%s) did not end in %v", name, checkPatience)
		}
	}
}

func operation(o op) porcupine.Operation {
	return porcupine.Operation{ClientId: o.client, Input: o, Output: o.outcome, Call: o.call, Return: o.ret}
}

// stuck names the operations that the longest order found has no place for.
func stuck(ops []porcupine.Operation, info porcupine.LinearizationInfo) string {
	text := ""
	for _, partition := range info.PartialLinearizationsOperations() {
		longest := []porcupine.Operation{}
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
		if len(longest) == 0 {
			continue
		}
		in := map[[2]int64]bool{}
		key := longest[len(longest)-1].Input.(op).key
		for _, o := range longest {
			in[[2]int64{o.Call, o.Return}] = true
		}
		left := []op{}
		for _, o := range ops {
			x := o.Input.(op)
			if !in[[2]int64{o.Call, o.Return}] && x.outcome != unknown && x.key == key {
				left = append(left, x)
			}
		}
		if len(left) > 0 {
			slices.SortFunc(left, func(a, b op) int { return int(a.ret - b.ret) })
			text += fmt.Sprintf("\n\tafter %v\n\tthere is no place for %v", longest[len(longest)-1].Input, left[0])
		}
	}
	return text
}

// keyModel is a key by itself. It knows of the history only which of the
// writes without an answer took effect.
func keyModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, o := range all {
				k := o.Input.(op).key
				by[k] = append(by[k], o)
			}
			return slices.Collect(maps.Values(by))
		},
		Init: func() any { return version{} },
		Step: func(state, input, _ any) (bool, any) {
			now, o := state.(version), input.(op)
			if next, ok := o.write(now); o.outcome == done || o.outcome == unknown {
				if o.kind == get {
					return now == version{o.value, o.rev}, now
				}
				return ok, next
			}
			return o.refused(now), now
		},
	}
}

// write is what a write that took effect makes of a key, and whether it could.
func (o op) write(now version) (version, bool) {
	switch o.kind {
	case jump:
		if o.value == "" {
			return version{}, true
		}
		return version{o.value, o.rev}, true
	case create:
		return version{o.value, o.rev}, now.value == ""
	case update:
		return version{o.value, o.rev}, o.expect == 0 || o.expect == now.rev
	case remove:
		known := o.outcome == unknown || o.value == now.value
		return version{}, now.value != "" && known && (o.expect == 0 || o.expect == now.rev)
	}
	return now, false
}

// refused says whether a refusal is right while the key holds now.
func (o op) refused(now version) bool {
	switch o.outcome {
	case exists:
		return now.value != ""
	case missing:
		return now.value == ""
	case conflict:
		return now.value != "" && now.rev != o.expect
	}
	return false
}

// storeModel is all keys together. Its state is the number of events of the
// history that have happened.
func storeModel(h *history) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, _ any) (bool, any) {
			now, o := state.(int), input.(op)
			switch {
			case o.kind == list:
				return now == h.position(o.rev), now
			case o.kind == restore:
				return now == h.position(o.rev-1), h.position(o.rev)
			case o.outcome != done && o.outcome != unknown:
				return o.refused(h.at(o.key, now)), now
			case o.kind == get:
				return h.at(o.key, now) == version{o.value, o.rev}, now
			case now == len(h.events) || h.events[now].rev != o.rev:
				return false, now
			}
			_, ok := o.write(h.at(o.key, now))
			return ok, now + 1
		},
	}
}

// checkList compares a list with the state at its revision.
func (w *world) checkList(h *history, o op, rev int64) {
	if want := h.all(h.position(rev)); !maps.Equal(o.items, want) {
		w.anomaly("%v\n\thas %v\n\tat revision %d there was %v", o, o.items, rev, want)
	}
}

// checkLocal makes sure that a read of what was there gave something that there
// was, and not more than was acknowledged or under way.
func (w *world) checkLocal(h *history, o op) {
	if o.outcome == done && h.at(o.key, h.position(o.rev)) != (version{o.value, o.rev}) {
		w.anomaly("%v: there was no such version", o)
	}
}
