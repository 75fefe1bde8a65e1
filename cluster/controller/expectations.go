package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
)

// expectationsTimeout bounds how long a lost event can hold up a controller.
const expectationsTimeout = 5 * time.Minute

// Expectations remember, per controller key, which creations and deletions have
// been asked for but not yet been seen by the informer. While there are any, the
// cached list of children is known to be out of date, and acting on it would
// create or delete twice.
//
// Announce before the call to the API, because the event may be faster than the
// answer; take the announcement back when the call fails.
type Expectations struct {
	mu   sync.Mutex
	open map[string]*expectation
	now  func() time.Time
}

type expectation struct {
	creations int
	deletions sets.Set[string]
	since     time.Time
}

// NewExpectations returns an empty set.
func NewExpectations() *Expectations {
	return &Expectations{open: map[string]*expectation{}, now: time.Now}
}

// ExpectCreations announces n creations for key.
func (e *Expectations) ExpectCreations(key string, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at(key).creations += n
}

// ExpectDeletions announces the deletion of children, each under a name that
// DeletionObserved will be called with.
func (e *Expectations) ExpectDeletions(key string, children ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at(key).deletions.Insert(children...)
}

// CreationObserved takes one announced creation back: seen, or failed.
func (e *Expectations) CreationObserved(key string) { e.CreationsObserved(key, 1) }

// CreationsObserved takes n announced creations back.
func (e *Expectations) CreationsObserved(key string, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x, ok := e.open[key]; ok {
		x.creations = max(0, x.creations-n)
	}
}

// DeletionObserved takes the announced deletion of child back.
func (e *Expectations) DeletionObserved(key, child string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x, ok := e.open[key]; ok {
		x.deletions.Delete(child)
	}
}

// Satisfied reports whether the cache shows all that was announced for key, or
// the announcement is so old that an event must have been lost.
func (e *Expectations) Satisfied(key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	x, ok := e.open[key]
	if !ok {
		return true
	}
	if x.creations == 0 && x.deletions.Len() == 0 || e.now().Sub(x.since) > expectationsTimeout {
		delete(e.open, key)
		return true
	}
	return false
}

// Forget drops everything about key.
func (e *Expectations) Forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, key)
}

// at returns key's entry with its age renewed; e.mu is held.
func (e *Expectations) at(key string) *expectation {
	x, ok := e.open[key]
	if !ok {
		x = &expectation{deletions: sets.New[string]()}
		e.open[key] = x
	}
	x.since = e.now()
	return x
}
