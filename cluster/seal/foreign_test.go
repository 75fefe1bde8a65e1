package seal

import (
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm/store"
)

func keysOf(l *memoryLog) map[string][]byte {
	out := map[string][]byte{}
	l.store().View().Ascend("/skiff/", "", func(kv *store.KeyValue) bool { out[kv.Key] = kv.Value; return true })
	return out
}

// TestForeignValues: values of another state with the same data key stay, those of
// a key that is gone here, or is another under the same number, are sealed anew.
func TestForeignValues(t *testing.T) {
	const key = "/registry/secrets/default/s"
	k, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	here, other := newLog(), newLog()
	s, o := newSealer(t, here, k), newSealer(t, other, k)
	sameKey := sealed(t, s, key, "same")
	record := here.get(t, recordKey(1))
	fork := sealed(t, o, key, "fork") // a first data key of its own
	for _, c := range []struct {
		name, want string
		state      map[string][]byte
		stored     []byte
		stays      bool
	}{
		{"the same data key", "same", map[string][]byte{recordKey(1): record}, sameKey, true},
		{"another key of the same number", "fork", keysOf(other), fork, false},
		{"plain", "plain", nil, []byte("plain"), true},
	} {
		f, err := s.Foreign(c.state)
		if err != nil {
			t.Fatal(err)
		}
		v, err := f.Value(t.Context(), key, c.stored)
		if err != nil || (string(v) == string(c.stored)) != c.stays {
			t.Errorf("%s: %q, %v", c.name, v, err)
		}
		if got, _ := opened(t, s, key, v); got != c.want {
			t.Errorf("%s opens to %q", c.name, got)
		}
		rev, used := f.Used()[recordKey(1)]
		if kv, _ := here.store().View().Get(recordKey(1)); used != (c.name != "plain") || used && rev != kv.ModRevision {
			t.Errorf("%s: used %v", c.name, f.Used())
		}
	}
	// A value whose key was dropped here long ago.
	state := keysOf(here)
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	duty(t, s, func() bool { _, ok := here.store().View().Get(recordKey(1)); return !ok })
	f, err := s.Foreign(state)
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.Value(t.Context(), key, sameKey)
	if got, stale := opened(t, s, key, v); err != nil || got != "same" || stale || f.Used()[recordKey(2)] == 0 {
		t.Errorf("of a dropped key: %q, %v, %v", got, err, f.Used())
	}
	if _, err := f.Value(t.Context(), "/registry/secrets/default/t", sameKey); err == nil {
		t.Error("a value under another key was opened")
	}
	strange, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	wrong := newLog()
	sealed(t, newSealer(t, wrong, strange), key, "x")
	if _, err := s.Foreign(keysOf(wrong)); err == nil || !strings.Contains(err.Error(), strange.ID()) {
		t.Errorf("of another cluster key: %v", err)
	}
	if f, err = s.Foreign(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Value(t.Context(), key, sameKey); err == nil {
		t.Error("a value whose key is nowhere")
	}
}
