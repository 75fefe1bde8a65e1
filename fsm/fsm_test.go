package fsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/store"
)

func newFSM() *FSM { return New(store.New(store.Config{})) }

func entry(t testing.TB, cmds ...Command) []byte {
	t.Helper()
	e, err := EncodeEntry(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func put(key, value string, expect int64) Command {
	return One(Op{Type: Put, Key: key, Value: []byte(value), Expect: expect})
}

func snapshot(t testing.TB, f *FSM) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f.Capture().Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func apply(t testing.TB, f *FSM, index uint64, cmds ...Command) []Result {
	t.Helper()
	return f.Apply(&raft.Log{Index: index, Term: 1, Data: entry(t, cmds...)}).([]Result)
}

func TestResults(t *testing.T) {
	f := newFSM()
	r := apply(t, f, 1,
		put("/a", "1", 0),
		put("/a", "2", 0),
		put("/a", "2", 2),
		put("/b", "1", 9),
		Batch(Op{Type: Put, Key: "/c", Expect: 0}, Op{Type: Put, Key: "/d", Expect: 0}),
		Batch(Op{Type: Put, Key: "/e", Expect: 0}, Op{Type: Delete, Key: "/a", Expect: 2}),
		Batch(Op{Type: Put, Key: "/f", Expect: 0}, Op{Type: Put, Key: "/f", Value: []byte("x"), Expect: Any}, Op{Type: Delete, Key: "/f", Expect: Any}),
		One(Op{Type: Delete, Key: "/a", Expect: 3}),
		One(Op{Type: Delete, Key: "/a", Expect: Any}),
		Command{Configuration: &Configuration{ClusterID: "one"}},
		Command{Configuration: &Configuration{ClusterID: "one"}},
		Command{Configuration: &Configuration{ClusterID: "two"}},
	)
	type short struct {
		rev int64
		err error
		op  int
		cur string
	}
	want := []short{
		{2, nil, 0, "/a=1"},
		{2, store.ErrExists, 0, "/a=1"},
		{3, nil, 0, "/a=2"},
		{3, store.ErrNotFound, 0, ""},
		{5, nil, 0, "/d="},
		{5, store.ErrConflict, 1, "/a=2"},
		{8, nil, 0, "/f=x"},
		{9, nil, 0, "/a=2"},
		{9, store.ErrNotFound, 0, ""},
		{9, nil, 0, ""},
		{9, nil, 0, ""},
		{9, store.ErrExists, 0, ""},
	}
	if len(r) != len(want) {
		t.Fatalf("%d results for %d commands", len(r), len(want))
	}
	for i, r := range r {
		got := short{rev: r.Revision, err: r.Err, op: r.Op}
		if r.Current != nil {
			got.cur = r.Current.Key + "=" + string(r.Current.Value)
		}
		if got != want[i] {
			t.Errorf("command %d: got %+v, want %+v", i, got, want[i])
		}
	}
	if f.ClusterID() != "one" {
		t.Errorf("cluster id %q", f.ClusterID())
	}
	if index, term := f.Applied(); index != 1 || term != 1 {
		t.Errorf("applied %d of term %d", index, term)
	}
}

func TestValuesDoNotShareTheEntry(t *testing.T) {
	f := newFSM()
	e := entry(t, put("/a", "value", 0))
	f.Apply(&raft.Log{Index: 1, Term: 1, Data: e})
	clear(e)
	if kv, ok := f.Store().View().Get("/a"); !ok || string(kv.Value) != "value" {
		t.Errorf("after the entry was overwritten: %+v", kv)
	}
}

// randomLog is a log that does all there is, often to the same keys.
func randomLog(t testing.TB, seed uint64, entries int) []*raft.Log {
	r := rand.New(rand.NewPCG(seed, 1))
	op := func() Op {
		o := Op{Type: Put, Key: fmt.Sprintf("/registry/k%d/%d", r.IntN(5), r.IntN(60)), Expect: int64(r.IntN(40)) - 2}
		if o.Expect < 0 || r.IntN(2) == 0 {
			o.Expect = Any
		}
		if r.IntN(4) == 0 {
			o.Type = Delete
			return o
		}
		o.Value = []byte(strings.Repeat("v", r.IntN(300)))
		o.Expires = int64(r.IntN(3) * 1000)
		return o
	}
	var logs []*raft.Log
	for i := range entries {
		var cmds []Command
		for range 1 + r.IntN(6) {
			switch r.IntN(5) {
			case 0:
				cmds = append(cmds, Batch(op(), op(), op()))
			case 1:
				cmds = append(cmds, Command{Configuration: &Configuration{ClusterID: fmt.Sprint(r.IntN(3))}})
			default:
				cmds = append(cmds, One(op()))
			}
		}
		logs = append(logs, &raft.Log{Index: uint64(i + 1), Term: 1 + uint64(i/50), Type: raft.LogCommand, Data: entry(t, cmds...)})
	}
	return logs
}

// TestSameLogSameBytes gives one log to two state machines, in other portions,
// with a snapshot and restore in between for one.
func TestSameLogSameBytes(t *testing.T) {
	for seed := range uint64(20) {
		logs := randomLog(t, seed, 200)
		a, b := newFSM(), newFSM()
		var ra, rb []string
		for _, l := range logs {
			for _, r := range a.Apply(l).([]Result) {
				ra = append(ra, fmt.Sprint(r.Revision, r.Err, r.Op))
			}
		}
		for rest, n := logs, 1; len(rest) > 0; n = n%7 + 1 {
			n = min(n, len(rest))
			for _, out := range b.ApplyBatch(rest[:n]) {
				for _, r := range out.([]Result) {
					rb = append(rb, fmt.Sprint(r.Revision, r.Err, r.Op))
				}
			}
			rest = rest[n:]
			if len(rest) > 0 && len(rest) < 80 && len(rest) > 70 {
				c := newFSM()
				if err := c.Restore(io.NopCloser(bytes.NewReader(snapshot(t, b)))); err != nil {
					t.Fatal(err)
				}
				b = c
			}
		}
		if !bytes.Equal(snapshot(t, a), snapshot(t, b)) {
			t.Errorf("seed %d: the snapshots differ", seed)
		}
		if strings.Join(ra, ",") != strings.Join(rb, ",") {
			t.Errorf("seed %d: the results differ", seed)
		}
	}
}

func TestSnapshotRestoreSnapshot(t *testing.T) {
	a := newFSM()
	for _, l := range randomLog(t, 99, 500) {
		a.Apply(l)
	}
	first := snapshot(t, a)
	b := newFSM()
	if err := b.Restore(io.NopCloser(bytes.NewReader(first))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, snapshot(t, b)) {
		t.Error("the snapshot of what was restored is another")
	}
	if a.ClusterID() == "" || a.ClusterID() != b.ClusterID() || a.Store().Revision() != b.Store().Revision() {
		t.Errorf("cluster %q at %d became %q at %d", a.ClusterID(), a.Store().Revision(), b.ClusterID(), b.Store().Revision())
	}
	if x, y := fmt.Sprint(a.Store().Expired(1<<60, 1000)), fmt.Sprint(b.Store().Expired(1<<60, 1000)); x != y {
		t.Errorf("expiring keys were %s, are %s", x, y)
	}
	if _, err := b.Store().ViewAt(b.Store().Revision() - 1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a view from before the snapshot: %v", err)
	}
}

func TestRestoreOfABadSnapshotChangesNothing(t *testing.T) {
	a, b := newFSM(), newFSM()
	for _, l := range randomLog(t, 3, 300) {
		a.Apply(l)
	}
	apply(t, b, 1, put("/mine", "x", 0))
	before := snapshot(t, b)
	good := snapshot(t, a)
	for _, cut := range []int{0, 5, 11, 30, len(good) / 2, len(good) - 1} {
		if err := b.Restore(io.NopCloser(bytes.NewReader(good[:cut]))); err == nil {
			t.Errorf("restored from the first %d bytes", cut)
		}
		if !bytes.Equal(before, snapshot(t, b)) {
			t.Fatalf("after the first %d bytes the state is another", cut)
		}
	}
	// Nor does a good one that is older: readers must not see time run backwards.
	old := newFSM()
	if err := a.Restore(io.NopCloser(bytes.NewReader(snapshot(t, old)))); err == nil {
		t.Error("the revision went back")
	}
	if !bytes.Equal(good, snapshot(t, a)) {
		t.Error("the refused snapshot changed the state")
	}
}

func TestUnknownCommandsStopTheMember(t *testing.T) {
	frame := func(typ uint64, body string) []byte {
		return appendFrame(EntryHeader(nil), typ, []byte(body))
	}
	batchOf := appendFrame(appendFrame(nil, typePut, []byte("\x01a\x00\x00")), 77, []byte("new"))
	config := appendString(binary.AppendUvarint(nil, 9), "x")
	for name, data := range map[string][]byte{
		"a later type":             frame(99, "whatever"),
		"type 0":                   frame(0, ""),
		"a later type in a batch":  frame(typeBatch, string(batchOf)),
		"a later setting":          frame(typeConfiguration, string(config)),
		"a later version of entry": {entryVersion + 1, 1, 2, 3},
	} {
		if err := mustPanic(func() { newFSM().Apply(&raft.Log{Index: 42, Data: data}) }); !errors.Is(err, ErrUnknownCommand) || !strings.Contains(err.Error(), "42") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, data := range map[string][]byte{
		"nothing":               nil,
		"a cut off frame":       frame(typePut, "\x01a\x00\x00v")[:5],
		"a key that is cut off": frame(typePut, "\x09a"),
		"an empty key":          frame(typePut, "\x00\x00\x00"),
		"delete with more":      frame(typeDelete, "\x01a\x00more"),
		"a batch of one":        frame(typeBatch, string(appendFrame(nil, typePut, []byte("\x01a\x00\x00")))),
		"expect below any":      frame(typePut, "\x01a\x03\x00"),
		"no setting":            frame(typeConfiguration, ""),
	} {
		if err := mustPanic(func() { newFSM().Apply(&raft.Log{Index: 42, Data: data}) }); err == nil || errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// mustPanic returns the error that fn panics with.
func mustPanic(fn func()) (err error) {
	defer func() { err, _ = recover().(error) }()
	fn()
	return nil
}

func TestInvalidCommandsAreNotEncoded(t *testing.T) {
	for name, c := range map[string]Command{
		"nothing":               {},
		"both":                  {Ops: put("/a", "", 0).Ops, Configuration: &Configuration{ClusterID: "x"}},
		"no cluster id":         {Configuration: &Configuration{}},
		"no key":                put("", "x", 0),
		"a long key":            put(strings.Repeat("k", MaxKeyBytes+1), "x", 0),
		"a large value":         put("/a", strings.Repeat("v", MaxCommandBytes), 0),
		"an unknown operation":  One(Op{Type: 3, Key: "/a"}),
		"a negative revision":   put("/a", "x", -2),
		"a negative expiry":     One(Op{Type: Put, Key: "/a", Expires: -1}),
		"delete with a value":   One(Op{Type: Delete, Key: "/a", Value: []byte("x")}),
		"delete with an expiry": One(Op{Type: Delete, Key: "/a", Expires: 1}),
		"too many operations":   {Ops: make([]Op, MaxBatchOps+1)},
	} {
		before := []byte("before")
		after, err := AppendCommand(before, c)
		if !errors.Is(err, ErrInvalid) || string(after) != "before" {
			t.Errorf("%s: %v, appended %d bytes", name, err, len(after)-len(before))
		}
	}
}

func TestEncodeDecode(t *testing.T) {
	cmds := []Command{
		put("/a", "1", 0),
		put("/a", "", Any),
		One(Op{Type: Put, Key: "/e", Value: []byte{0, 255}, Expect: 1 << 60, Expires: 1 << 40}),
		One(Op{Type: Delete, Key: "/a", Expect: 7}),
		Batch(Op{Type: Put, Key: "/x", Value: []byte("y")}, Op{Type: Delete, Key: "/z", Expect: Any}),
		{Configuration: &Configuration{ClusterID: "cluster"}},
	}
	got, err := DecodeEntry(entry(t, cmds...))
	if err != nil || len(got) != len(cmds) {
		t.Fatalf("%d commands, %v", len(got), err)
	}
	for i := range cmds {
		a, b := describe(cmds[i]), describe(got[i])
		if a != b {
			t.Errorf("command %d: %s became %s", i, a, b)
		}
		enc, _ := AppendCommand(nil, cmds[i])
		if err := CheckCommand(enc); err != nil {
			t.Errorf("command %d: %v", i, err)
		}
		if err := CheckCommand(enc[:len(enc)-1]); !errors.Is(err, ErrInvalid) {
			t.Errorf("command %d without its last byte: %v", i, err)
		}
		if err := CheckCommand(append(enc, 0)); !errors.Is(err, ErrInvalid) {
			t.Errorf("command %d with a byte more: %v", i, err)
		}
	}
}

func describe(c Command) string {
	if c.Restore != nil {
		return fmt.Sprintf("%+v", *c.Restore)
	}
	if c.Configuration != nil {
		return fmt.Sprintf("%+v", *c.Configuration)
	}
	var s []string
	for _, o := range c.Ops {
		s = append(s, fmt.Sprintf("%s %q %q %d %d", o.Type, o.Key, o.Value, o.Expect, o.Expires))
	}
	return strings.Join(s, "; ")
}

func TestWaitApplied(t *testing.T) {
	f := newFSM()
	if err := f.WaitApplied(t.Context(), 0); err != nil {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.WaitApplied(t.Context(), 2) }()
	apply(t, f, 1, put("/a", "", 0))
	select {
	case err := <-done:
		t.Fatalf("returned before entry 2: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	f.ApplyBatch([]*raft.Log{{Index: 2, Type: raft.LogConfiguration}})
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.WaitApplied(ctx, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

func TestWriterRefusesDisorder(t *testing.T) {
	w, err := NewWriter(io.Discard, Header{Revision: 5})
	if err != nil {
		t.Fatal(err)
	}
	kv := &store.KeyValue{Key: "/b", CreateRevision: 2, ModRevision: 2}
	if err := w.Add(kv); err != nil {
		t.Error(err)
	}
	if err := w.Add(kv); err == nil {
		t.Error("took the same key twice")
	}
}
