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

	// When what was sent that was answered, heartbeats not counted; and when
	// leadership was last not handed over to it.
	append, owed time.Time
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
	if index > 0 && sent.After(k.append) {
		k.append = sent
	}
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

// owe says that leadership could not be handed over to a member.
//
// Raft asks the goroutine that replicates to the member to hurry, and goes on
// when that hears it. It can wait for an answer of the member just then, for as
// long as the reign lasts. One such request it finds later; the next would wait
// for ever, and no write would be accepted meanwhile.
func (c *contacts) owe(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.by[id]; k != nil {
		k.owed = time.Now()
	}
}

// follows says whether a member answers appends: one sent not longer ago than
// lately, and after leadership could not be handed over to it.
func (c *contacts) follows(id string, lately time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.by[id]
	return k != nil && time.Since(k.append) < lately && k.append.After(k.owed)
}

// confirmed says whether a member accepted, in term, a request that was sent
// after t.
func (c *contacts) confirmed(id string, term uint64, t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.by[id]
	return k != nil && k.term == term && k.sent.After(t)
}
