package store

import (
	"errors"
	"sync/atomic"
)

var (
	// ErrCompacted says that the history asked for is no longer kept.
	ErrCompacted = errors.New("revision has been compacted")
	// ErrFutureRevision says that the revision asked for does not exist yet.
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrConflict says that the key exists with another revision than expected.
	ErrConflict = errors.New("revision conflict")
	// ErrExists says that the key was expected not to exist.
	ErrExists = errors.New("key exists")
	// ErrNotFound says that the key was expected to exist.
	ErrNotFound = errors.New("key not found")
)

// KeyValue is one version of one key. It is immutable but for the cache slot
// of Decoded.
type KeyValue struct {
	Key            string
	Value          []byte
	CreateRevision int64 // revision of the put that created the key
	ModRevision    int64 // revision of the put that made this version
	Expires        int64 // unix seconds after which the key is to be deleted; 0 is never

	decoded atomic.Pointer[any]
}

// Decoded returns what SetDecoded stored, or nil. The slot lets readers share
// one decoded form of Value; what it returns must not be changed.
func (kv *KeyValue) Decoded() any {
	if p := kv.decoded.Load(); p != nil {
		return *p
	}
	return nil
}

// SetDecoded stores a decoded form of Value. Concurrent calls are safe, the
// last one wins.
func (kv *KeyValue) SetDecoded(v any) { kv.decoded.Store(&v) }

// Event is one change.
type Event struct {
	Revision int64     // of the change
	KV       *KeyValue // the new version, nil on delete
	Prev     *KeyValue // the version before, nil on create
	Key      string
}

// eventOverhead is what an event costs in memory beside the superseded value.
const eventOverhead = 192

// cost is the memory that keeping the event in the history pins: the new value
// is in the tree anyway.
func (e *Event) cost() int64 {
	c := int64(eventOverhead)
	if e.Prev != nil {
		c += int64(len(e.Prev.Value))
	}
	return c
}
