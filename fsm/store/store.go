package store

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Defaults of Config.
const (
	DefaultHistoryEvents = 1 << 15
	DefaultHistoryBytes  = 32 << 20
)

// firstRevision is that of an empty store: Kubernetes gives 0 a meaning of its
// own, so no list may ever be at 0.
const firstRevision = 1

// Config bounds what the store keeps of the past.
type Config struct {
	HistoryEvents int   // events kept at most; 0 is DefaultHistoryEvents
	HistoryBytes  int64 // memory that kept events may pin; 0 is DefaultHistoryBytes
}

// Store is the newest version of everything, and a bounded history.
type Store struct {
	writer sync.Mutex // held by Update and Reset
	gens   atomic.Uint64
	newest atomic.Pointer[View]
	past   history
}

// New returns an empty store.
func New(c Config) *Store {
	if c.HistoryEvents <= 0 {
		c.HistoryEvents = DefaultHistoryEvents
	}
	if c.HistoryBytes <= 0 {
		c.HistoryBytes = DefaultHistoryBytes
	}
	s := &Store{}
	s.newest.Store(&View{rev: firstRevision})
	s.past.init(c, firstRevision)
	return s
}

// Revision is the revision of the newest change.
func (s *Store) Revision() int64 { return s.newest.Load().rev }

// View returns the newest state.
func (s *Store) View() *View { return s.newest.Load() }

// Update runs fn and publishes what it changed at once: views and watchers see
// all of it or nothing. Updates are serialized.
func (s *Store) Update(fn func(*Txn)) {
	s.writer.Lock()
	defer s.writer.Unlock()
	tx := &Txn{s: s, gen: s.gens.Add(1), v: *s.newest.Load()}
	fn(tx)
	if len(tx.events) == 0 && tx.base == 0 {
		return
	}
	v := tx.v
	s.past.publish(&s.newest, &v, tx.events, tx.base)
}

// Loader receives the content of a store, for Reset, which uses it up.
type Loader struct {
	gen uint64
	v   View
}

// NewLoader starts a content that Reset can install.
func (s *Store) NewLoader() *Loader { return &Loader{gen: s.gens.Add(1)} }

// Add adds one version. Keys must come in ascending order.
func (l *Loader) Add(kv *KeyValue) {
	l.v.bytes += int64(len(kv.Key) + len(kv.Value))
	l.v.root, _ = l.v.root.put(l.gen, kv.Key, kv)
	if kv.Expires != 0 {
		l.v.expiry, _ = l.v.expiry.put(l.gen, expiryKey(kv), kv)
	}
}

// Reset replaces everything by what l holds, at revision rev, and forgets the
// history: watchers that have not seen rev get ErrCompacted. A revision below
// the present one is refused, for readers must never see time run backwards.
func (s *Store) Reset(l *Loader, rev int64) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if have := s.Revision(); rev < have {
		return fmt.Errorf("reset store to revision %d: revision is already %d", rev, have)
	}
	v := l.v
	v.rev = rev
	s.past.reset(&s.newest, &v)
	return nil
}

// Expiring names one version of a key that should be deleted.
type Expiring struct {
	Key         string
	ModRevision int64
}

// Expired returns up to limit versions whose time was over at now (unix
// seconds), the oldest first. It deletes nothing: the caller proposes deletes
// that expect the ModRevision.
func (s *Store) Expired(now int64, limit int) []Expiring {
	var out []Expiring
	s.View().expiry.ascend("", "", func(kv *KeyValue) bool {
		if kv.Expires > now || len(out) >= limit {
			return false
		}
		out = append(out, Expiring{kv.Key, kv.ModRevision})
		return true
	})
	return out
}

// NextExpiry is the earliest time (unix seconds) at which a key expires.
func (s *Store) NextExpiry() (at int64, ok bool) {
	s.View().expiry.ascend("", "", func(kv *KeyValue) bool {
		at, ok = kv.Expires, true
		return false
	})
	return at, ok
}
