package allocator_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func name(n uint32) string { return fmt.Sprintf("number/%d", n) }

func newPool(t *testing.T) (allocator.Pool, *allocator.Replicated) {
	env := registrytest.New(t)
	r := allocator.New(env.Log, env.DB)
	return allocator.Pool{Reservations: r, First: 10, Last: 19, Static: 4, Name: name}, r
}

func TestPool(t *testing.T) {
	ctx := context.Background()
	p, r := newPool(t)
	for i := range 6 {
		n, err := p.Next(ctx, "a")
		if err != nil || n < 14 || n > 19 {
			t.Fatalf("number %d is %d, %v: the lowest four come last", i, n, err)
		}
	}
	if n, err := p.Next(ctx, "a"); err != nil || n >= 14 || n < 10 {
		t.Errorf("then %d, %v", n, err)
	}
	for range 3 {
		if _, err := p.Next(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Next(ctx, "a"); !errors.Is(err, allocator.ErrFull) {
		t.Errorf("from a full range: %v", err)
	}
	if err := p.Take(ctx, 12, "a"); err != nil {
		t.Errorf("take what one holds: %v", err)
	}
	if err := p.Take(ctx, 12, "b"); !errors.Is(err, allocator.ErrTaken) {
		t.Errorf("take what another holds: %v", err)
	}
	if err := p.Take(ctx, 20, "b"); err == nil || errors.Is(err, allocator.ErrTaken) {
		t.Errorf("take what is outside: %v", err)
	}
	if err := r.Release(ctx, name(12), "b"); err != nil {
		t.Fatal(err)
	}
	if _, held := r.Get(name(12)); !held {
		t.Error("released by somebody else")
	}
	if err := r.Release(ctx, name(12), "a"); err != nil {
		t.Fatal(err)
	}
	if n, err := p.DryRun().Next(ctx, "b"); err != nil || n != 12 {
		t.Errorf("dry run gives %d, %v", n, err)
	}
	if _, held := r.Get(name(12)); held {
		t.Error("dry run reserved")
	}
	if n, err := p.Next(ctx, "b"); err != nil || n != 12 {
		t.Errorf("the only free one: %d, %v", n, err)
	}
}

// A number whose holder is gone is given away, but not while the holder may be
// about to be written.
func TestPoolAbandoned(t *testing.T) {
	ctx := context.Background()
	p, r := newPool(t)
	p.Last = 11
	for _, owner := range []string{"live", "dead"} {
		if _, err := p.Next(ctx, owner); err != nil {
			t.Fatal(err)
		}
	}
	p.Live = func(_ context.Context, _ uint32, held allocator.Reservation) (bool, error) {
		return held.Owner == "live", nil
	}
	if _, err := p.Next(ctx, "new"); !errors.Is(err, allocator.ErrFull) {
		t.Errorf("fresh reservation taken over: %v", err)
	}
	p.Reservations = aged{r}
	n, err := p.Next(ctx, "new")
	if err != nil {
		t.Fatal(err)
	}
	if held, _ := r.Get(name(n)); held.Owner != "new" {
		t.Errorf("held by %q", held.Owner)
	}
	p.Live = func(context.Context, uint32, allocator.Reservation) (bool, error) {
		return false, errors.New("cannot tell")
	}
	if err := p.Take(ctx, n, "x"); err == nil || errors.Is(err, allocator.ErrTaken) {
		t.Errorf("where it can't be told: %v", err)
	}
}

// aged makes reservations look older than any request.
type aged struct{ *allocator.Replicated }

func (a aged) Get(name string) (allocator.Reservation, bool) {
	r, ok := a.Replicated.Get(name)
	r.Since = r.Since.Add(-2 * allocator.InFlight)
	return r, ok
}

// Two that replace the same abandoned holder: one of them gets it.
func TestReserveReplaces(t *testing.T) {
	ctx := context.Background()
	_, r := newPool(t)
	if err := r.Reserve(ctx, "n", "old", nil); err != nil {
		t.Fatal(err)
	}
	seen, _ := r.Get("n")
	if time.Since(seen.Since) > time.Minute || seen.Owner != "old" || seen.Name != "n" {
		t.Errorf("reservation %+v", seen)
	}
	if err := r.Reserve(ctx, "n", "a", &seen); err != nil {
		t.Fatal(err)
	}
	if err := r.Reserve(ctx, "n", "b", &seen); !errors.Is(err, allocator.ErrTaken) {
		t.Errorf("second replacement: %v", err)
	}
	if err := r.Reserve(ctx, "n", "a", &seen); err != nil {
		t.Errorf("the same again, after a lost answer: %v", err)
	}
}
