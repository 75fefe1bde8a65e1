package membership

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// A node of which the state of a new epoch knows nothing is admitted again if it
// joined before the restore, and only then.
func TestNodesAreAdmittedAgainAfterARestore(t *testing.T) {
	t.Parallel()
	later := func(cause raftdir.Cause) raftdir.Epoch {
		return raftdir.Epoch{Number: 2, ID: "x", Cause: cause, At: time.Now().Add(time.Hour)}
	}
	for _, tc := range []struct {
		name    string
		epoch   raftdir.Epoch
		prepare func(b *bench) []fsm.Op
		refused string
	}{
		{name: "restored", epoch: later(raftdir.Restored)},
		{name: "recovered", epoch: later(raftdir.Recovered), refused: "restored from an older snapshot"},
		{name: "joined since", epoch: raftdir.Epoch{Number: 2, ID: "x", Cause: raftdir.Restored, At: time.Now().Add(-time.Hour)}, refused: "no member w with this identity"},
		{name: "removed since", epoch: later(raftdir.Restored), refused: "was removed from the cluster by admin", prepare: func(*bench) []fsm.Op {
			op, _ := putRemoval("id-w", Removal{Name: "w", Role: RoleAgent, By: "admin", At: time.Now()})
			return []fsm.Op{op}
		}},
		{name: "its name is another's", epoch: later(raftdir.Restored), refused: "no member w with this identity", prepare: func(*bench) []fsm.Op {
			op, _ := putRecord("w", Record{ID: "id-other", Role: RoleAgent}, 0)
			return []fsm.Op{op}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			n := joined(t, b, "w", "id-w")
			ops := []fsm.Op{{Type: fsm.Delete, Key: memberPrefix + "w", Expect: fsm.Any}}
			if err := b.propose(t.Context(), "forget", ops...); err != nil {
				t.Fatal(err)
			}
			if tc.prepare != nil {
				if err := b.propose(t.Context(), "prepare", tc.prepare(b)...); err != nil {
					t.Fatal(err)
				}
			}
			b.c.Epoch = func() raftdir.Epoch { return tc.epoch }
			_, err := n.NodeConfig(context.Background())
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("want a refusal with %q, got %v", tc.refused, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r := b.records()["w"]; r.ID != "id-w" || r.Role != RoleAgent || r.Address == "" {
				t.Errorf("record %+v", r)
			}
			if err := n.Renew(context.Background(), "test"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKeptOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.KeepOut(t.Context(), "the cluster goes on without it")
	b.KeepOut(t.Context(), "something else")
	if err := context.Cause(b.Membership()); err == nil || err.Error() != "the cluster goes on without it" {
		t.Errorf("membership ended with %v", err)
	}
	if w := b.Status(t.Context()).Warnings; len(w) != 1 || w[0] != "the cluster goes on without it" {
		t.Errorf("warnings %v", w)
	}
}

// A restored state may not know the CA that signed a node's certificate, if the
// CA was replaced after the snapshot: the older one vouches for it.
func TestACAThatTheRestoredStateDoesNotKnow(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	before := b.pki.Keys()
	next, err := b.pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	old := before.CAs[0]
	if err := b.pki.Set(pki.Keys{CAs: []pki.CA{next, {Cert: old.Cert}}, SAKey: before.SAKey}); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, err := n.NodeConfig(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.Renew(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	if err := b.pki.Set(before); err != nil {
		t.Fatal(err)
	}
	c, err := n.NodeConfig(ctx)
	if err != nil || !c.Renew {
		t.Fatalf("config %+v, %v", c, err)
	}
	if err := n.Renew(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	if c, err := n.NodeConfig(ctx); err != nil || c.Renew {
		t.Errorf("after the renewal: %+v, %v", c, err)
	}
	// A CA that nobody vouches for stays out.
	foreign := newPKI(t)
	if err := b.pki.Set(foreign.Keys()); err != nil {
		t.Fatal(err)
	}
	r, _, err := n.renewRequest(n.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Renew(ctx, r)
	refusedWith(t, err, "of a CA that this cluster")
}
