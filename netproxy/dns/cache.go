package dns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds on how long a forwarded answer is kept.
const (
	maxPositive = 5 * time.Minute
	maxNegative = 30 * time.Second
)

// answerCache keeps forwarded answers. When it is full an arbitrary entry goes.
type answerCache struct {
	max int

	mu      sync.Mutex
	entries map[string]cached
}

type cached struct {
	msg             *dns.Msg
	stored, expires time.Time
}

func newAnswerCache(size int) *answerCache {
	return &answerCache{max: size, entries: map[string]cached{}}
}

// get returns a copy with what is left of each TTL.
func (c *answerCache) get(key string, now time.Time) *dns.Msg {
	c.mu.Lock()
	e, ok := c.entries[key]
	if ok && !now.Before(e.expires) {
		delete(c.entries, key)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	m := e.msg.Copy()
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return m
}

func (c *answerCache) put(key string, m *dns.Msg, now time.Time) {
	life := lifetime(m)
	if life <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= c.max {
		for k := range c.entries {
			delete(c.entries, k)
			break
		}
	}
	c.entries[key] = cached{msg: m.Copy(), stored: now, expires: now.Add(life)}
}

// lifetime is how long an answer may be kept; 0 means not at all.
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	if len(m.Answer) == 0 || m.Rcode == dns.RcodeNameError {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNegative)
			}
		}
		return 0
	}
	life := maxPositive
	for _, rr := range m.Answer {
		life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
	}
	return life
}
