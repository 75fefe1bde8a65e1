package raftdir

import (
	"slices"
	"sync"
	"time"
)

// latencyBounds are the upper ends of the histogram's buckets.
var latencyBounds = []time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second,
}

// Latency collects durations: all of them in a histogram, the latest exactly.
// The zero value is ready.
type Latency struct {
	mu     sync.Mutex
	counts [16]uint64 // one more than latencyBounds: the rest
	sum    time.Duration
	count  uint64
	recent [512]time.Duration // a ring, the next at count modulo its size
}

// Observe adds one duration.
func (l *Latency) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(latencyBounds, d)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[i]++
	l.sum += d
	l.recent[l.count%uint64(len(l.recent))] = d
	l.count++
}

// LatencyStats is a Latency at one moment.
type LatencyStats struct {
	Count uint64        `json:"count"`
	Sum   time.Duration `json:"sumNanoseconds"`
	// Of the latest 512; zero when there was none.
	P50 time.Duration `json:"p50Nanoseconds"`
	P99 time.Duration `json:"p99Nanoseconds"`
	Max time.Duration `json:"maxNanoseconds"`
	// Buckets[b] counts those that took at most b seconds, for a Prometheus
	// histogram.
	Buckets map[float64]uint64 `json:"-"`
}

// Stats returns what was collected.
func (l *Latency) Stats() LatencyStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := LatencyStats{Count: l.count, Sum: l.sum, Buckets: map[float64]uint64{}}
	total := uint64(0)
	for i, b := range latencyBounds {
		total += l.counts[i]
		s.Buckets[b.Seconds()] = total
	}
	if n := int(min(l.count, uint64(len(l.recent)))); n > 0 {
		r := slices.Sorted(slices.Values(l.recent[:n]))
		s.P50, s.P99, s.Max = r[n/2], r[n*99/100], r[n-1]
	}
	return s
}

// Count is how many durations were observed.
func (l *Latency) Count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// Quantile is what the part q of the latest 512 did not exceed; zero when there
// was none.
func (l *Latency) Quantile(q float64) time.Duration {
	l.mu.Lock()
	n := int(min(l.count, uint64(len(l.recent))))
	r := slices.Clone(l.recent[:n])
	l.mu.Unlock()
	if n == 0 {
		return 0
	}
	slices.Sort(r)
	return r[int(q*float64(n-1))]
}
