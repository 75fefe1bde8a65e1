package clustertest

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// staleLog answers reads without a read index.
type staleLog struct{ *consensus.Node }

func (staleLog) ReadIndex(context.Context) error { return nil }

// hastyLog takes no answer for a yes.
type hastyLog struct{ *consensus.Node }

func (l hastyLog) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	r, err := l.Node.Propose(ctx, c)
	if errors.Is(err, consensus.ErrUnknownOutcome) {
		return fsm.Result{Revision: 1}, nil
	}
	return r, err
}

// stubbornLog takes no answer for a no.
type stubbornLog struct{ *consensus.Node }

func (l stubbornLog) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	for {
		r, err := l.Node.Propose(ctx, c)
		if !errors.Is(err, consensus.ErrUnknownOutcome) || ctx.Err() != nil {
			return r, err
		}
	}
}

// politeLog says that nothing was done when it does not know.
type politeLog struct{ *consensus.Node }

func (l politeLog) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	r, err := l.Node.Propose(ctx, c)
	if errors.Is(err, consensus.ErrUnknownOutcome) {
		err = consensus.ErrNoLeader
	}
	return r, err
}

// TestChecksFind breaks a promise each, and wants the checks to say so.
func TestChecksFind(t *testing.T) {
	log := func(f func(*consensus.Node) storage.Log) options {
		o := standard
		o.spoil = f
		return o
	}
	watch := func(f func([]seen) []seen) options {
		o := standard
		o.spoilWatch = func(v *watch) {
			if p := v.parts[0]; len(p.events) > 10 {
				p.events = f(p.events)
			}
		}
		return o
	}
	state := standard
	state.spoilState = func(m *member) {
		m.fsm.Store().Update(func(tx *store.Txn) { _, _ = tx.Put("/registry/pods/x/9", nil, fsm.Any, 0) })
	}
	for _, c := range []struct {
		name string
		o    options
		want string
	}{
		{"reads without a read index", log(func(n *consensus.Node) storage.Log { return staleLog{n} }), "not linearizable"},
		{"no answer is a yes", log(func(n *consensus.Node) storage.Log { return hastyLog{n} }), "lost"},
		{"no answer is a no", log(func(n *consensus.Node) storage.Log { return politeLog{n} }), "nothing was done"},
		{"no answer is tried again", log(func(n *consensus.Node) storage.Log { return stubbornLog{n} }), "twice|nobody wrote"},
		{"an event is missing", watch(func(e []seen) []seen { return slices.Delete(slices.Clone(e), 7, 8) }), "should see"},
		{"an event is repeated", watch(func(e []seen) []seen { return slices.Insert(slices.Clone(e), 7, e[7]) }), "should see"},
		{"events are swapped", watch(func(e []seen) []seen {
			e = slices.Clone(e)
			e[7], e[8] = e[8], e[7]
			return e
		}), "should see"},
		{"the last event is missing", watch(func(e []seen) []seen { return e[:len(e)-1] }), "missed"},
		{"a member has a state of its own", state, "is not that of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.o.faults = 20 * time.Second
			const seeds = 150 // the rarest is met by one in eight
			for seed := uint64(1); seed <= seeds; seed++ {
				r := inBubble(t, seed, c.o)
				for _, a := range r.Anomalies {
					if regexp.MustCompile(c.want).MatchString(a) {
						t.Logf("seed %d: %s", seed, a)
						return
					}
				}
			}
			t.Errorf("%d seeds have not found it", seeds)
		})
	}
}
