package membership

import (
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	freeAttempts    = 10               // wrong tokens in a row from one address
	attemptInterval = 10 * time.Second // then one in this time
	maxAttempters   = 4096             // addresses that are remembered
)

// attempts limits how often an address may show wrong tokens: a bucket for each
// address, which only failures empty.
type attempts struct {
	now func() time.Time

	mu   sync.Mutex
	full map[string]time.Time // when the address will have all its attempts again
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now: now, full: map[string]time.Time{}}
}

// wait is how long the address has to wait before its next attempt.
func (a *attempts) wait(addr string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	full, ok := a.full[addr]
	if !ok {
		return 0
	}
	return max(full.Sub(a.now())-(freeAttempts-1)*attemptInterval, 0)
}

// failed counts a wrong token.
func (a *attempts) failed(addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if len(a.full) >= maxAttempters {
		for k, t := range a.full {
			if !t.After(now) || len(a.full) >= maxAttempters {
				delete(a.full, k)
			}
		}
	}
	from := a.full[addr]
	if from.Before(now) {
		from = now
	}
	a.full[addr] = from.Add(attemptInterval)
}

// caller is the address that a request comes from.
func caller(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
