package consensus

import (
	"io"
	"time"
)

const (
	// yieldFor is how long a snapshot that is being sent waits after each block
	// while others write. A block of 128 KiB takes a third of that to make, so a
	// quarter of a core and 100 MB/s is what a snapshot takes then.
	yieldFor = time.Millisecond
	// yieldLook is how often it looks whether somebody writes, yieldLast how long
	// one write counts.
	yieldLook = 10 * time.Millisecond
	yieldLast = 200 * time.Millisecond
)

// yielding slows a snapshot down while others write: at full speed it takes a
// core, and who receives it on the same host another, and each of the dozen steps
// of a write would wait for its turn.
type yielding struct {
	w        io.Writer
	revision func() int64

	seen   int64
	looked time.Time
	until  time.Time // others have written within yieldLast
}

func (y *yielding) Write(p []byte) (int, error) {
	now := time.Now()
	if now.Sub(y.looked) >= yieldLook {
		if rev := y.revision(); rev != y.seen {
			if !y.looked.IsZero() {
				y.until = now.Add(yieldLast)
			}
			y.seen = rev
		}
		y.looked = now
	}
	if now.Before(y.until) {
		time.Sleep(yieldFor)
	}
	return y.w.Write(p)
}
