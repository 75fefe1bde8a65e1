// Package allocator keeps addresses and ports unique over all servers. Each
// one taken is a key of the replicated store (under /skiff/reserved/) whose
// value names the owner; a key is created only where there is none, so two
// servers cannot both get it, and a snapshot carries it along.
//
// A reservation is made before its owner is written and released after the
// owner is gone. A crash in between leaves a reservation nobody uses: it costs
// one address until somebody asks for it or the owners' repair runs.
package allocator

import (
	"context"
	"errors"
	"time"
)

// ErrTaken says that somebody else holds a reservation.
var ErrTaken = errors.New("already reserved")

// Reservation says who holds a name.
type Reservation struct {
	// Name is what is held, such as "clusterip/10.43.0.1".
	Name string
	// Owner is opaque to this package.
	Owner string
	// Since is when it was made.
	Since time.Time
	// Revision changes with each new holder.
	Revision int64
}

// Reservations is a replicated set of names, each held by one owner.
type Reservations interface {
	// Reserve takes name, or replaces the holder seen as old when old is not
	// nil. It returns ErrTaken when another owner was faster.
	Reserve(ctx context.Context, name, owner string, old *Reservation) error
	// Release gives name up when owner holds it, and otherwise does nothing.
	Release(ctx context.Context, name, owner string) error
	// Get returns the holder of name. The answer may be slightly old.
	Get(name string) (Reservation, bool)
	// Each calls fn for the names with prefix in order until it returns false.
	Each(prefix string, fn func(Reservation) bool)
}
