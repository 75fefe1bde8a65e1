package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Prefix is where reservations live in the replicated store.
const Prefix = "/skiff/reserved/"

// Proposer puts a command into the log and returns once it is applied here.
type Proposer interface {
	Propose(ctx context.Context, c fsm.Command) (fsm.Result, error)
}

// Replicated are the reservations kept in the replicated store.
type Replicated struct {
	log Proposer
	db  *store.Store
	now func() time.Time
}

var _ Reservations = (*Replicated)(nil)

// New returns the reservations of the store db, which are changed through log.
func New(log Proposer, db *store.Store) *Replicated {
	return &Replicated{log: log, db: db, now: time.Now}
}

// record is the stored form of a reservation.
type record struct {
	Owner string `json:"owner"`
	Since int64  `json:"since"` // unix seconds
}

func decode(kv *store.KeyValue) (Reservation, error) {
	r := Reservation{Name: strings.TrimPrefix(kv.Key, Prefix), Revision: kv.ModRevision}
	var rec record
	if err := json.Unmarshal(kv.Value, &rec); err != nil {
		return r, fmt.Errorf("reservation %s: %w", r.Name, err)
	}
	r.Owner, r.Since = rec.Owner, time.Unix(rec.Since, 0)
	return r, nil
}

// Reserve implements Reservations.
func (r *Replicated) Reserve(ctx context.Context, name, owner string, old *Reservation) error {
	value, err := json.Marshal(record{owner, r.now().Unix()})
	if err != nil {
		return fmt.Errorf("reserve %s: %w", name, err)
	}
	op := fsm.Op{Type: fsm.Put, Key: Prefix + name, Value: value}
	if old != nil {
		op.Expect = old.Revision
	}
	res, err := r.propose(ctx, op)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
		// A command that was proposed twice because its answer was lost finds
		// its own first attempt.
		if res.Current != nil {
			if have, err := decode(res.Current); err == nil && have.Owner == owner {
				return nil
			}
		}
		return fmt.Errorf("reserve %s: %w", name, ErrTaken)
	default:
		return fmt.Errorf("reserve %s: %w", name, err)
	}
}

// Release implements Reservations.
func (r *Replicated) Release(ctx context.Context, name, owner string) error {
	for {
		have, ok := r.Get(name)
		if !ok || have.Owner != owner {
			return nil
		}
		_, err := r.propose(ctx, fsm.Op{Type: fsm.Delete, Key: Prefix + name, Expect: have.Revision})
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound):
			return nil
		case errors.Is(err, store.ErrConflict):
			// Somebody else may hold it now: look again.
		default:
			return fmt.Errorf("release %s: %w", name, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("release %s: %w", name, ctx.Err())
		}
	}
}

func (r *Replicated) propose(ctx context.Context, op fsm.Op) (fsm.Result, error) {
	res, err := r.log.Propose(ctx, fsm.One(op))
	if err == nil {
		err = res.Err
	}
	return res, err
}

// Get implements Reservations. A record that can't be read counts as held by
// nobody in particular: it is never handed out.
func (r *Replicated) Get(name string) (Reservation, bool) {
	kv, ok := r.db.View().Get(Prefix + name)
	if !ok {
		return Reservation{}, false
	}
	res, _ := decode(kv)
	return res, true
}

// Each implements Reservations.
func (r *Replicated) Each(prefix string, fn func(Reservation) bool) {
	r.db.View().Ascend(Prefix+prefix, "", func(kv *store.KeyValue) bool {
		res, _ := decode(kv)
		return fn(res)
	})
}
