package pod

import "time"

// Restart and image pull delays, as kubelet has them.
const (
	backoffInitial = 10 * time.Second
	backoffMax     = 300 * time.Second
	backoffReset   = 2 * backoffMax // quiet for so long: start over
)

// backoff delays repeated failures: the first retry is at once, the second
// after 10 s, then doubling to 300 s. It starts over when the last retry was
// more than ten minutes before the failure.
type backoff struct {
	delay time.Duration // zero: no failure yet
	last  time.Time     // when next was called
}

// wait returns how long to wait still after a failure at the given time.
func (b *backoff) wait(failed, now time.Time) time.Duration {
	if b.delay == 0 || b.expired(failed) {
		return 0
	}
	// A failure that lies in the future is of a clock that was set back since.
	return min(max(0, failed.Add(b.delay).Sub(now)), b.delay)
}

// next counts a retry after a failure at the given time.
func (b *backoff) next(failed, now time.Time) {
	if b.delay == 0 || b.expired(failed) {
		b.delay = backoffInitial
	} else {
		b.delay = min(b.delay*2, backoffMax)
	}
	b.last = now
}

func (b *backoff) expired(failed time.Time) bool { return failed.Sub(b.last) > backoffReset }
