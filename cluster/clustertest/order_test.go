package clustertest

import "testing"

func TestOrder(t *testing.T) {
	t.Parallel()
	// Written at revisions 11 to 14: a, b, a again, and b deleted.
	history := func() *history {
		h := &history{byKey: map[string][]int{}, head: 14}
		for i, s := range []seen{{rev: 11, key: "a", value: "1"}, {rev: 12, key: "b", value: "2"}, {rev: 13, key: "a", value: "3"}, {rev: 14, key: "b"}} {
			h.events = append(h.events, s)
			h.byKey[s.key] = append(h.byKey[s.key], i)
		}
		return h
	}
	write := func(k kind, key string, rev, call, ret int64) op {
		return op{kind: k, key: key, rev: rev, call: call, ret: ret}
	}
	writes := func(more ...op) []op {
		return append([]op{write(create, "a", 11, 10, 19), write(create, "b", 12, 20, 29), write(update, "a", 13, 30, 39), write(remove, "b", 14, 40, 49)}, more...)
	}
	lost := write(update, "a", 13, 15, 16) // its answer, that is
	lost.outcome = unknown
	for _, c := range []struct {
		name   string
		ops    []op
		broken bool
	}{
		{"one after the other", writes(), false},
		{"reads of the newest", writes(write(get, "a", 11, 21, 22), write(list, "", 12, 24, 25), write(get, "a", 13, 51, 52), write(list, "", 14, 53, 54)), false},
		{"reads beside a write may see it or not", writes(write(list, "", 12, 31, 32), write(list, "", 13, 33, 34)), false},
		{"and not go back", writes(write(list, "", 13, 31, 32), write(list, "", 12, 33, 34)), true},
		{"a list of two keys that is stale", writes(write(list, "", 11, 31, 32)), true},
		{"a get that is stale", writes(write(get, "a", 11, 41, 42)), true},
		{"a get of what is not stale for long", writes(write(get, "b", 12, 35, 36)), false},
		{"a list of what is not written", writes(write(list, "", 13, 21, 22)), true},
		{"a get of what is not written", writes(write(get, "a", 13, 21, 22)), true},
		{"writes against the order of their calls", []op{write(create, "a", 11, 20, 29), write(create, "b", 12, 10, 19)}, true},
		{"a get and a list that contradict each other", []op{write(create, "a", 11, 1, 2), write(create, "b", 12, 3, 99), write(update, "a", 13, 3, 99),
			write(get, "a", 13, 10, 11), write(list, "", 11, 12, 13)}, true},
		{"a write without an answer, late", []op{write(create, "a", 11, 1, 2), write(create, "b", 12, 20, 29), lost, write(list, "", 12, 30, 31), write(list, "", 13, 32, 33)}, false},
		{"and early", []op{write(create, "a", 11, 1, 2), lost, write(get, "a", 13, 5, 6)}, true},
		{"what was refused says nothing", writes(op{kind: create, key: "a", outcome: exists, call: 1, ret: 2}), false},
	} {
		r := newOrder(history())
		for i := range c.ops {
			r.add(&c.ops[i])
		}
		late, early := r.broken()
		if (late != nil) != c.broken {
			t.Errorf("%s: %v and %v", c.name, late, early)
		}
	}
}
