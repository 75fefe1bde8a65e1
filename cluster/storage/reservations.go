package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// reservedPrefix is where reservations live; it is no API object's.
const reservedPrefix = "/skiff/reserved/"

// Reservations keeps allocator.Reservations in the replicated store.
type Reservations struct{ b *Backend }

var _ allocator.Reservations = Reservations{}

// Reservations of this backend.
func (b *Backend) Reservations() Reservations { return Reservations{b} }

type reservedValue struct {
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// Reserve implements allocator.Reservations. Reserving again for the same owner
// does nothing.
func (r Reservations) Reserve(ctx context.Context, name, owner string, old *allocator.Reservation) error {
	value, err := json.Marshal(reservedValue{owner, time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("reserve %s: %w", name, err)
	}
	op := fsm.Op{Type: fsm.Put, Key: reservedPrefix + name, Value: value}
	if old != nil {
		op.Expect = old.Revision
	}
	res, err := r.b.propose(ctx, fsm.One(op))
	switch {
	case err != nil:
		return err
	case res.Err == nil:
		return nil
	case errors.Is(res.Err, store.ErrNotFound): // released meanwhile
		return r.Reserve(ctx, name, owner, nil)
	}
	if now, ok := reservation(res.Current); ok && now.Owner == owner {
		return nil
	}
	return fmt.Errorf("reserve %s: %w", name, allocator.ErrTaken)
}

// Release implements allocator.Reservations.
func (r Reservations) Release(ctx context.Context, name, owner string) error {
	key := reservedPrefix + name
	kv := r.b.get(key)
	if kv == nil { // perhaps only here
		if err := r.b.readIndex(ctx); err != nil {
			return err
		}
		kv = r.b.get(key)
	}
	for {
		now, ok := reservation(kv)
		if !ok || now.Owner != owner {
			return nil
		}
		res, err := r.b.propose(ctx, fsm.One(fsm.Op{Type: fsm.Delete, Key: key, Expect: kv.ModRevision}))
		if err != nil || res.Err == nil {
			return err
		}
		kv = res.Current
	}
}

// Get implements allocator.Reservations.
func (r Reservations) Get(name string) (allocator.Reservation, bool) {
	return reservation(r.b.get(reservedPrefix + name))
}

// Each implements allocator.Reservations.
func (r Reservations) Each(prefix string, fn func(allocator.Reservation) bool) {
	r.b.store.View().Ascend(reservedPrefix+prefix, "", func(kv *store.KeyValue) bool {
		v, ok := reservation(kv)
		return !ok || fn(v)
	})
}

func reservation(kv *store.KeyValue) (allocator.Reservation, bool) {
	if kv == nil {
		return allocator.Reservation{}, false
	}
	var v reservedValue
	if json.Unmarshal(kv.Value, &v) != nil {
		return allocator.Reservation{}, false
	}
	return allocator.Reservation{Name: strings.TrimPrefix(kv.Key, reservedPrefix), Owner: v.Owner, Since: v.Since, Revision: kv.ModRevision}, true
}
