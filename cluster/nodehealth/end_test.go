package nodehealth

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestEndOfALease(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := &office{term: 3, now: time.Unix(1000, 0)}
	l := o.leases(t)
	call := func(ctx context.Context, method string, body []byte) ([]byte, error) {
		if method != EndMethod {
			t.Errorf("method %s", method)
		}
		return l.HandleEnd(ctx, "server-2", body)
	}
	ask := func(tolerated time.Duration, want End) {
		t.Helper()
		if e, err := AskEnd(ctx, call, "n", tolerated); err != nil || e != want {
			t.Errorf("%+v, %v; want %+v", e, err, want)
		}
	}
	renew := func() error { _, err := l.grant(ctx, "n"); return err }
	pass := func(d time.Duration) {
		for range d / time.Second {
			o.now = o.now.Add(time.Second)
			l.alive()
		}
	}
	if _, err := AskEnd(ctx, call, "n", 0); !errors.Is(err, ErrNotLeading) {
		t.Errorf("said by a server that does not lead: %v", err)
	}
	if err := l.begin(ctx); err != nil {
		t.Fatal(err)
	}
	ask(0, End{Wait: 31 * time.Second})
	ask(5*time.Minute, End{Wait: 325 * time.Second})
	pass(20 * time.Second)
	if err := renew(); err != nil { // a question that is answered with no holds nothing
		t.Fatal(err)
	}
	ask(0, End{Wait: 31 * time.Second})
	l.Freeze(true)
	pass(40 * time.Second)
	ask(0, End{Frozen: true})
	l.Freeze(false)
	ask(0, End{Wait: 31 * time.Second}) // from the end of the freeze
	pass(31 * time.Second)
	o.err = errors.New("no majority")
	if e, err := AskEnd(ctx, call, "n", 0); !errors.Is(err, ErrNotLeading) || e.Over {
		t.Errorf("a leader that may be deposed says %+v, %v", e, err)
	}
	o.err = nil
	ask(5*time.Minute, End{Wait: 294 * time.Second})
	if err := renew(); err != nil {
		t.Fatal(err)
	}
	pass(31 * time.Second)
	ask(0, End{Over: true})
	if err := renew(); !errors.Is(err, errHeld) {
		t.Errorf("a lease is granted to the former host: %v", err)
	}
	if _, err := l.grant(ctx, "m"); err != nil {
		t.Errorf("another node: %v", err)
	}
	pass(endHold)
	if err := renew(); err != nil {
		t.Errorf("the new host gets no lease: %v", err)
	}
	if _, err := l.HandleEnd(ctx, "", []byte(`{}`)); err == nil {
		t.Error("a question without a node was answered")
	}
}
