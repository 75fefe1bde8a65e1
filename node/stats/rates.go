package stats

import (
	"context"
	"sync"
	"time"
)

const (
	// firstWindow is how long the first asker waits for rates.
	firstWindow = time.Second
	// longestWindow is how old counters may be for a rate since then to be called
	// that of now.
	longestWindow = time.Minute
	// apart is how far apart counters are that are kept.
	apart = 10 * time.Second
)

// Rates makes rates of counters that are read when somebody asks: it keeps two
// earlier readings of all of them. Safe for concurrent use.
type Rates struct {
	mu        sync.Mutex
	old, last *reading
}

// reading has nanoseconds of CPU by key.
type reading struct {
	at    time.Time
	nanos map[string]uint64
}

// Now gives the CPUs in use, in billionths, by the keys that read returns. It
// may call read twice, a second apart. Keys that are new have no rate.
func (r *Rates) Now(ctx context.Context, read func() map[string]uint64) map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := &reading{time.Now(), read()}
	base := r.base(now.at)
	if base == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(firstWindow):
		}
		base, now = now, &reading{time.Now(), read()}
	}
	if r.last == nil || now.at.Sub(r.last.at) >= apart {
		r.old, r.last = r.last, now
	}
	out := make(map[string]uint64, len(now.nanos))
	seconds := now.at.Sub(base.at).Seconds()
	for k, n := range now.nanos {
		if before, ok := base.nanos[k]; ok && n >= before {
			out[k] = uint64(float64(n-before) / seconds)
		}
	}
	return out
}

// base is the newest reading of a useful age.
func (r *Rates) base(now time.Time) *reading {
	for _, x := range []*reading{r.last, r.old} {
		if x == nil {
			continue
		}
		if age := now.Sub(x.at); age >= firstWindow && age <= longestWindow {
			return x
		}
	}
	return nil
}
