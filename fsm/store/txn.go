package store

import (
	"bytes"
	"encoding/binary"
)

// Txn is one Update in progress. It is valid only inside the function given to
// Update, and for one goroutine.
type Txn struct {
	s      *Store
	gen    uint64
	v      View
	events []*Event
	base   int64 // revision of the last Reset in it; 0: there was none
}

// Revision is the revision of the last change so far.
func (tx *Txn) Revision() int64 { return tx.v.rev }

// Get returns the newest version of key, changes of this Update included.
func (tx *Txn) Get(key string) (*KeyValue, bool) { return tx.v.Get(key) }

// Ascend calls fn in key order for every key that has the prefix, as they are
// now: what fn changes it does not get to see.
func (tx *Txn) Ascend(prefix string, fn func(*KeyValue) bool) {
	v := tx.v
	tx.gen = tx.s.gens.Add(1) // freezes the nodes that v refers to
	v.Ascend(prefix, "", fn)
}

// Put sets key. expect is the ModRevision the key must have: -1 for any
// (existing or not), 0 for a key that must not exist. The value is kept, not
// copied. If expect does not hold nothing changes, and current is the version
// that stands against it.
func (tx *Txn) Put(key string, value []byte, expect, expires int64) (current *KeyValue, err error) {
	old := tx.v.root.get(key)
	if err := check(old, expect); err != nil {
		return old, err
	}
	tx.v.rev++
	kv := &KeyValue{Key: key, Value: value, CreateRevision: tx.v.rev, ModRevision: tx.v.rev, Expires: expires}
	if old != nil {
		kv.Key, kv.CreateRevision = old.Key, old.CreateRevision
	}
	tx.replace(old, kv)
	tx.events = append(tx.events, &Event{Revision: tx.v.rev, KV: kv, Prev: old, Key: kv.Key})
	return kv, nil
}

// Delete removes key. expect is as for Put; a key that does not exist is
// ErrNotFound whatever is expected. It returns the version that was deleted, or
// the one that stands against expect.
func (tx *Txn) Delete(key string, expect int64) (current *KeyValue, err error) {
	old := tx.v.root.get(key)
	if old == nil {
		return nil, ErrNotFound
	}
	if err := check(old, expect); err != nil {
		return old, err
	}
	tx.v.rev++
	tx.replace(old, nil)
	tx.events = append(tx.events, &Event{Revision: tx.v.rev, Prev: old, Key: old.Key})
	return old, nil
}

// Reset replaces everything by what l holds, but for the keys that keep names:
// they stay as they are, and those of l do not count. It is one revision, above the
// present one and not below floor. A key with the same value as before stays the
// version that it is; all others get the new revision: one that l has of them may
// be older than what readers have seen. Nothing from before is told any more,
// watchers get ErrCompacted.
func (tx *Txn) Reset(l *Loader, floor int64, keep func(key string) bool) {
	old := tx.v
	rev := max(old.rev+1, floor)
	tx.v = View{rev: rev}
	l.v.Ascend("", "", func(kv *KeyValue) bool {
		if keep(kv.Key) {
			return true
		}
		was := old.root.get(kv.Key)
		if was != nil && was.Expires == kv.Expires && bytes.Equal(was.Value, kv.Value) {
			tx.replace(nil, was)
			return true
		}
		now := &KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: rev, ModRevision: rev, Expires: kv.Expires}
		if was != nil {
			now.CreateRevision = was.CreateRevision
		}
		tx.replace(nil, now)
		return true
	})
	old.Ascend("", "", func(kv *KeyValue) bool {
		if keep(kv.Key) {
			tx.replace(nil, kv)
		}
		return true
	})
	tx.events, tx.base = nil, rev
}

// Atomic runs fn and takes back everything that fn did if it fails.
func (tx *Txn) Atomic(fn func() error) error {
	before, n := tx.v, len(tx.events)
	tx.gen = tx.s.gens.Add(1) // freezes the nodes that before refers to
	if err := fn(); err != nil {
		tx.v = before
		tx.events = tx.events[:n]
		tx.gen = tx.s.gens.Add(1)
		return err
	}
	return nil
}

func check(old *KeyValue, expect int64) error {
	switch {
	case expect == 0 && old != nil:
		return ErrExists
	case expect > 0 && old == nil:
		return ErrNotFound
	case expect > 0 && old.ModRevision != expect:
		return ErrConflict
	}
	return nil
}

// replace exchanges old for kv (either may be nil) in the tree and the indexes.
func (tx *Txn) replace(old, kv *KeyValue) {
	if old != nil {
		tx.v.bytes -= int64(len(old.Key) + len(old.Value))
		if old.Expires != 0 {
			tx.v.expiry, _ = tx.v.expiry.del(tx.gen, expiryKey(old))
		}
	}
	if kv == nil {
		tx.v.root, _ = tx.v.root.del(tx.gen, old.Key)
		return
	}
	tx.v.bytes += int64(len(kv.Key) + len(kv.Value))
	tx.v.root, _ = tx.v.root.put(tx.gen, kv.Key, kv)
	if kv.Expires != 0 {
		tx.v.expiry, _ = tx.v.expiry.put(tx.gen, expiryKey(kv), kv)
	}
}

// expiryKey sorts by time of expiry, then by key.
func expiryKey(kv *KeyValue) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(kv.Expires))
	return string(b[:]) + kv.Key
}
