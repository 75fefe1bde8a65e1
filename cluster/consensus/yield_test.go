package consensus

import (
	"io"
	"testing"
	"time"
)

// TestYielding: a snapshot takes its time while there are writes, and none
// otherwise.
func TestYielding(t *testing.T) {
	const blocks = 200
	var rev int64
	took := func(writes bool) time.Duration {
		begin := time.Now()
		y := &yielding{w: io.Discard, revision: func() int64 {
			if writes {
				rev++
			}
			return rev
		}}
		for range blocks {
			y.looked = y.looked.Add(-yieldLook) // look each time
			if _, err := y.Write([]byte("block")); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(begin)
	}
	if quiet := took(false); quiet > blocks*yieldFor/2 {
		t.Errorf("%d blocks took %v with nobody else", blocks, quiet)
	}
	if busy := took(true); busy < blocks/2*yieldFor {
		t.Errorf("%d blocks took %v beside writes", blocks, busy)
	}
}
