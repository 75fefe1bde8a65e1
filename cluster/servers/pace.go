package servers

import (
	"sync"
	"time"
)

const (
	// patienceMax is the longest wait for an answer, dialMax that for a TCP
	// connection: kernels accept those even where the process is slow.
	patienceMax = 20 * time.Second
	dialMax     = 6 * time.Second
	// slowTimes the time that an answer took lately is waited for the next one.
	slowTimes = 4
	// halfLife is how long it takes to forget half of that time.
	halfLife = 10 * time.Second
)

// pace is how patient a client is with one server, as TCP is with its segments:
// in proportion to how long answers took lately, and twice as long after each
// wait that was in vain. Without it, many clients of a server that is merely slow
// give up what it was just about to answer and begin anew, and keep it slow. It
// is safe for concurrent use.
type pace struct {
	mu       sync.Mutex
	slow     time.Duration // how long an answer took
	at       time.Time     // when that was
	failures int           // waits in vain, in a row
}

// lately is what is not forgotten of slow. p.mu is held.
func (p *pace) lately() time.Duration {
	d := p.slow
	for t := time.Since(p.at); t > halfLife && d > 0; t -= halfLife {
		d /= 2
	}
	return d
}

// wait is how long to wait for an answer that usually takes much less than base.
func (p *pace) wait(base, limit time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := max(base, slowTimes*p.lately())
	for range p.failures {
		if d >= limit {
			break
		}
		d *= 2
	}
	return min(d, max(base, limit))
}

func (p *pace) answered(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = 0
	if took >= p.lately() {
		p.slow, p.at = took, time.Now()
	}
}

func (p *pace) failed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures++
}
