package image

import (
	"io"
	"sync"
)

// Progress is how far a pull or import has come.
type Progress struct {
	Ref      string // the image or archive
	Layer    string // the layer this report is about, or "" for the whole
	Status   string // "Resolving", "Downloading", "Unpacking", "Exists", "Done"
	Complete int64  // bytes done of the whole
	Total    int64  // bytes of the whole; grows while images are being resolved
}

// ProgressFunc receives reports, one at a time, from several goroutines. May be nil.
type ProgressFunc func(Progress)

// tracker adds up the progress of parallel layers.
type tracker struct {
	fn  ProgressFunc
	ref string

	mu              sync.Mutex
	complete, total int64
}

func newTracker(ref string, fn ProgressFunc) *tracker { return &tracker{fn: fn, ref: ref} }

func (t *tracker) report(layer, status string, done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.complete += done
	t.total += total
	if t.fn != nil {
		t.fn(Progress{Ref: t.ref, Layer: layer, Status: status, Complete: t.complete, Total: t.total})
	}
}

// reportEvery is how many bytes make a report.
const reportEvery = 256 << 10

// trackedReader reports what is read through it.
type trackedReader struct {
	r             io.Reader
	t             *tracker
	layer, status string
	size          int64 // reported when everything was read, at most
	pending, sum  int64
}

func (r *trackedReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.pending += int64(n)
	if r.pending >= reportEvery || err != nil && r.pending > 0 {
		d := min(r.pending, r.size-r.sum)
		r.sum += d
		r.pending = 0
		r.t.report(r.layer, r.status, d, 0)
	}
	return n, err
}

// finish reports what was not read, and takes back what is to be read again
// when ok is false.
func (r *trackedReader) finish(ok bool) {
	if ok {
		r.t.report(r.layer, r.status, r.size-r.sum, 0)
	} else {
		r.t.report(r.layer, r.status, -r.sum, 0)
	}
}
