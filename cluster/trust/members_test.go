package trust

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// TestMembersThatGossipForgot: who was down already when a server started is
// unknown to its gossip, and still nobody to be cut off without a word.
func TestMembersThatGossipForgot(t *testing.T) {
	f := newFleet(t, "a", "b")
	for _, name := range []string{"a", "away"} {
		if _, err := f.log.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: recordPrefix + name, Value: []byte("{}")})); err != nil {
			t.Fatal(err)
		}
	}
	f.advance("a")
	f.install("a", "b")
	if err := f.trusts["a"].RotateCA(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	f.install("a", "b")
	f.advance("a")
	f.wantPhases("a leader that has just started waits for who may be alive", "add none")

	settled := func() *Trust { // one that started long ago
		tr := f.trust("a")
		tr.installed, tr.began = f.trusts["a"].installed, time.Now().Add(-settleTime)
		return tr
	}
	for f.phases() != "overlap none" {
		before := f.phases()
		if _, err := settled().advance(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.phases() == before {
			t.Fatalf("stays at %s for who is not there", before)
		}
		f.install("a", "b")
	}
	if _, err := settled().FinishCA(t.Context(), false); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "away") {
		t.Errorf("finished without a word of the one that is cut off: %v", err)
	}
	s, err := settled().Status(t.Context())
	if err != nil || !slices.Equal(s.Absent, []string{"away"}) || len(s.Members) != 3 {
		t.Errorf("status %+v, %v", s, err)
	}
	if cut, err := settled().FinishCA(t.Context(), true); err != nil || !slices.Equal(cut, []string{"away"}) {
		t.Errorf("forced: %v, %v", cut, err)
	}
}

// TestAnotherRotationIsNotTheSame: a leader that looked at one rotation does not
// take the next one a step on.
func TestAnotherRotationIsNotTheSame(t *testing.T) {
	one := newRotation()
	later := &Rotation{Phase: one.Phase, Since: one.Since.Add(time.Second)}
	for _, c := range []struct {
		a, b *Rotation
		same bool
	}{{nil, nil, true}, {one, one, true}, {one, nil, false}, {nil, one, false}, {one, later, false}, {one, one.to(PhaseUse), false}} {
		if got := c.a.same(c.b); got != c.same {
			t.Errorf("%+v and %+v: %t", c.a, c.b, got)
		}
	}
}

// TestDutyComplainsOnce: what goes wrong again and again is said once.
func TestDutyComplainsOnce(t *testing.T) {
	f := newFleet(t, "a")
	var said bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		tr := f.trust("a")
		tr.cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
		if _, err := tr.encode(t.Context(), &document{}); err != nil { // makes the data key
			t.Fatal(err)
		}
		f.log.fail = errors.New("the disk is full")
		ctx, cancel := context.WithTimeout(t.Context(), 20*dutyRetry)
		defer cancel()
		tries := 0
		tr.step = func(string) { tries++ }
		if err := tr.Duty(ctx); err != nil || tries < 10 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
	f.log.fail = nil
	if n := bytes.Count(said.Bytes(), []byte("disk is full")); n != 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
}
