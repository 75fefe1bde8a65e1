package consensus

import (
	"sync"
	"time"
)

// contacts remembers what the members answered this one's Raft as their leader.
type contacts struct {
	mu   sync.Mutex
	by   map[string]*contact
	news chan struct{} // closed at the next answer; nil when nobody waits
}

type contact struct {
	term  uint64
	last  time.Time // of the last answer
	sent  time.Time // of the latest request that was answered in term
	index uint64    // of the log, acknowledged in term
}

// answered says that a member accepted a request of this leader.
func (c *contacts) answered(id string, term uint64, sent time.Time, index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.by[id]
	if k == nil {
		if c.by == nil {
			c.by = map[string]*contact{}
		}
		k = &contact{}
		c.by[id] = k
	}
	if term < k.term {
		return
	}
	if term > k.term {
		*k = contact{term: term}
	}
	k.last = time.Now()
	if sent.After(k.sent) {
		k.sent = sent
	}
	k.index = max(k.index, index)
	if c.news != nil {
		close(c.news)
		c.news = nil
	}
}

// next is closed at the next answer.
func (c *contacts) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.news == nil {
		c.news = make(chan struct{})
	}
	return c.news
}

// Never is the time since the last answer of a member that has not answered.
const Never time.Duration = 1<<63 - 1

// since is the time since a member answered; Never if it did not.
func (c *contacts) since(id string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.by[id]; k != nil {
		return time.Since(k.last)
	}
	return Never
}

// acked is the log index that a member is known to have.
func (c *contacts) acked(id string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.by[id]; k != nil {
		return k.index
	}
	return 0
}

// confirmed says whether a member accepted, in term, a request that was sent
// after t.
func (c *contacts) confirmed(id string, term uint64, t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.by[id]
	return k != nil && k.term == term && k.sent.After(t)
}
