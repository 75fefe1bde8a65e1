package allocator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// ErrFull says that every number of a pool is taken.
var ErrFull = errors.New("range is full")

// InFlight is how long a reservation whose owner does not exist is respected:
// its owner may be about to be written by another server. It is longer than
// any API request may take.
const InFlight = 75 * time.Second

// Pool hands out the numbers First to Last (inclusive), such as ports or
// addresses as integers, each held by at most one owner.
type Pool struct {
	Reservations Reservations
	First, Last  uint32
	// Static is how many of the lowest numbers are handed out only when all
	// others are taken, so that there is room for those who ask for a number.
	Static uint32
	// Name gives the reservation's name of a number.
	Name func(n uint32) string
	// Live says whether the holder still exists and uses the number; holders
	// that do not are replaced. Nil takes every holder for live.
	Live func(ctx context.Context, n uint32, held Reservation) (bool, error)
}

// DryRun returns a pool that gives the same answers and reserves nothing.
func (p Pool) DryRun() Pool {
	p.Reservations = dryRun{p.Reservations}
	return p
}

// Contains says whether n is in the range.
func (p Pool) Contains(n uint32) bool { return n >= p.First && n <= p.Last }

// Size is how many numbers there are.
func (p Pool) Size() uint32 { return p.Last - p.First + 1 }

// Take reserves n for owner. Taking what owner already holds succeeds. It
// returns ErrTaken when a live owner holds it.
func (p Pool) Take(ctx context.Context, n uint32, owner string) error {
	if !p.Contains(n) {
		return fmt.Errorf("number %d is outside %d-%d", n, p.First, p.Last)
	}
	name := p.Name(n)
	held, ok := p.Reservations.Get(name)
	if !ok {
		err := p.Reservations.Reserve(ctx, name, owner, nil)
		if !errors.Is(err, ErrTaken) {
			return err
		}
		// Our view was old: another server was faster, or what we released is
		// not yet gone here.
		if held, ok = p.Reservations.Get(name); !ok {
			return err
		}
	}
	if held.Owner == owner {
		return nil
	}
	gone, err := p.abandoned(ctx, n, held)
	if err != nil {
		return err
	}
	if !gone {
		return fmt.Errorf("%s: %w", name, ErrTaken)
	}
	return p.Reservations.Reserve(ctx, name, owner, &held)
}

// Next reserves a number nobody holds, chosen at random so that a number just
// given up is not handed out at once. It returns ErrFull when there is none.
func (p Pool) Next(ctx context.Context, owner string) (uint32, error) {
	static := min(p.Static, p.Size()-1)
	for _, band := range [][2]uint32{{p.First + static, p.Last}, {p.First, p.First + static - 1}} {
		if band[0] > band[1] || band[1] > p.Last {
			continue
		}
		if n, ok, err := p.nextIn(ctx, band[0], band[1], owner, false); ok || err != nil {
			return n, err
		}
	}
	// All taken: only now is it worth asking which owners are gone.
	if n, ok, err := p.nextIn(ctx, p.First, p.Last, owner, true); ok || err != nil {
		return n, err
	}
	return 0, ErrFull
}

func (p Pool) nextIn(ctx context.Context, first, last uint32, owner string, takeOver bool) (uint32, bool, error) {
	size := last - first + 1
	start := rand.Uint32N(size)
	for i := range size {
		n := first + (start+i)%size
		if held, ok := p.Reservations.Get(p.Name(n)); ok && (!takeOver || held.Owner == owner) {
			continue
		}
		err := p.Take(ctx, n, owner)
		switch {
		case err == nil:
			return n, true, nil
		case !errors.Is(err, ErrTaken):
			return 0, false, err
		}
	}
	return 0, false, nil
}

// abandoned says whether a holder may be replaced.
func (p Pool) abandoned(ctx context.Context, n uint32, held Reservation) (bool, error) {
	if p.Live == nil || held.Owner == "" || time.Since(held.Since) < InFlight {
		return false, nil
	}
	live, err := p.Live(ctx, n, held)
	return err == nil && !live, err
}

// dryRun sees the reservations and makes none.
type dryRun struct{ Reservations }

func (d dryRun) Reserve(_ context.Context, name, owner string, old *Reservation) error {
	if held, ok := d.Get(name); ok && held.Owner != owner && old == nil {
		return fmt.Errorf("%s: %w", name, ErrTaken)
	}
	return nil
}

func (dryRun) Release(context.Context, string, string) error { return nil }
