package fsm

import (
	"bytes"
	"fmt"
	"testing"
)

// TestCheck finds every cut and flipped bit without looking at the keys.
func TestCheck(t *testing.T) {
	t.Parallel()
	f := newFSM()
	for i := range 20 {
		apply(t, f, uint64(i+1), put(fmt.Sprintf("/registry/things/k%d", i), "value", 0))
	}
	s := snapshot(t, f)
	if err := Check(bytes.NewReader(s)); err != nil {
		t.Fatal(err)
	}
	for i := range s {
		if err := Check(bytes.NewReader(s[:i])); err == nil {
			t.Errorf("cut to %d bytes it is accepted", i)
		}
		for _, bit := range []byte{1, 0x80} {
			s[i] ^= bit
			if err := Check(bytes.NewReader(s)); err == nil {
				t.Errorf("bit %#x of byte %d flipped, it is accepted", bit, i)
			}
			s[i] ^= bit
		}
	}
	if err := Check(bytes.NewReader(append(bytes.Clone(s), 0))); err == nil {
		t.Error("a byte more is accepted")
	}
}
