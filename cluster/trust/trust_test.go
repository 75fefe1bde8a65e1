package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// memoryLog is a Proposer without disks.
type memoryLog struct {
	mu    sync.Mutex
	fsm   *fsm.FSM
	index uint64
	fail  error
}

func (l *memoryLog) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return fsm.Result{}, l.fail
	}
	data, err := fsm.EncodeEntry(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	l.index++
	return l.fsm.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).([]fsm.Result)[0], nil
}

func (l *memoryLog) state() map[string][]byte {
	out := map[string][]byte{}
	l.fsm.Store().View().Ascend("/skiff/", "", func(kv *store.KeyValue) bool { out[kv.Key] = kv.Value; return true })
	return out
}

// fleet is a cluster in memory: servers with keys of their own on one log, and
// what gossip would say of everybody.
type fleet struct {
	t       *testing.T
	log     *memoryLog
	mu      sync.Mutex
	members map[string]*Member
	trusts  map[string]*Trust
	pkis    map[string]*pki.PKI
}

func newFleet(t *testing.T, names ...string) *fleet {
	f := &fleet{t: t, log: &memoryLog{fsm: fsm.New(store.New(store.Config{}))}, members: map[string]*Member{}, trusts: map[string]*Trust{}, pkis: map[string]*pki.PKI{}}
	var first *pki.PKI
	for _, n := range names {
		dir := filepath.Join(t.TempDir(), "pki")
		if first != nil {
			if err := pki.Install(dir, first.Files(), nil); err != nil {
				t.Fatal(err)
			}
		}
		p, err := pki.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = p
		}
		f.pkis[n] = p
		f.trusts[n] = f.trust(n)
		f.members[n] = &Member{Name: n, Alive: true}
	}
	return f
}

func (f *fleet) trust(name string) *Trust {
	f.t.Helper()
	sealer, err := seal.New(seal.Config{Key: f.pkis[name].ClusterKey(), Store: f.log.fsm.Store(), Log: f.log})
	if err != nil {
		f.t.Fatal(err)
	}
	t, err := New(Config{Node: f.log, Store: f.log.fsm.Store(), PKI: f.pkis[name], Sealer: sealer, Name: name, Poll: time.Millisecond, Members: f.view})
	if err != nil {
		f.t.Fatal(err)
	}
	return t
}

func (f *fleet) view() (out []Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		out = append(out, *m)
	}
	return out
}

// install lets members have the newest document and say so.
func (f *fleet) install(names ...string) {
	f.t.Helper()
	for _, n := range names {
		if t := f.trusts[n]; t != nil {
			if err := t.install(f.t.Context()); err != nil {
				f.t.Fatal(err)
			}
			generation, _, _ := t.Document()
			f.set(n, func(m *Member) { m.Trust = generation })
			continue
		}
		f.set(n, func(m *Member) { m.Trust = f.document().Generation }) // an agent
	}
}

func (f *fleet) set(name string, change func(*Member)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.members[name])
}

func (f *fleet) document() *document {
	f.t.Helper()
	t := f.trusts["a"]
	d, err := t.read(f.t.Context(), t.stored())
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// advance is one look of a leader that knows nothing but the state.
func (f *fleet) advance(name string) {
	f.t.Helper()
	t := f.trust(name)
	t.installed = f.trusts[name].installed
	if _, err := t.advance(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) phases() string {
	d := f.document()
	return phase(d.CARotation) + " " + phase(d.GossipRotation)
}

func (f *fleet) wantPhases(when, want string) {
	f.t.Helper()
	if got := f.phases(); got != want {
		f.t.Errorf("%s: phases %q, want %q", when, got, want)
	}
}

func TestFirstDocumentReplacesPlainKeys(t *testing.T) {
	f := newFleet(t, "a")
	var ops []fsm.Op
	for name, b := range f.pkis["a"].Files() {
		ops = append(ops, fsm.Op{Type: fsm.Put, Key: plainPrefix + name, Value: b})
	}
	if _, err := f.log.Propose(t.Context(), fsm.Batch(ops...)); err != nil {
		t.Fatal(err)
	}
	changes, cancel := f.trusts["a"].Changes()
	defer cancel()
	f.advance("a")
	f.install("a")
	select {
	case <-changes:
	default:
		t.Error("no word of the installation")
	}
	key, _ := bytes.CutPrefix(bytes.TrimSpace(f.pkis["a"].Keys().CAs[0].Key), []byte("-----BEGIN PRIVATE KEY-----\n"))
	for k, v := range f.log.state() {
		if strings.HasPrefix(k, plainPrefix) || bytes.Contains(v, key[:40]) {
			t.Errorf("%s is still readable", k)
		}
	}
	generation, bundle, gossip := f.trusts["a"].Document()
	if generation == 0 || !bytes.Equal(bundle, f.pkis["a"].Bundle()) || len(gossip) != 1 || len(gossip[0]) != GossipKeyBytes {
		t.Errorf("generation %d, %d gossip keys", generation, len(gossip))
	}
	before := f.log.index
	f.advance("a")
	if f.log.index != before {
		t.Error("wrote without need")
	}
	// A snapshot of it and the key make the files of a new host.
	files, err := Recover(f.log.state(), f.pkis["a"].ClusterKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pki.CACertFile, pki.CAKeyFile, pki.SAKeyFile} {
		if !bytes.Equal(files[name], f.pkis["a"].Files()[name]) {
			t.Errorf("%s differs", name)
		}
	}
	if _, err := Recover(f.log.state(), nil); err == nil {
		t.Error("recovered without the key")
	}
}

func TestCARotationInPhases(t *testing.T) {
	f := newFleet(t, "a", "b", "c")
	f.advance("a")
	f.install("a", "b", "c")
	f.members["agent"] = &Member{Name: "agent", Alive: true, Trust: f.document().Generation}
	f.members["dead"] = &Member{Name: "dead", Trust: f.document().Generation}
	old := f.document().CAs[0].Cert

	if err := f.trusts["b"].RotateCA(t.Context(), true); !errors.Is(err, ErrRefused) {
		t.Errorf("finish without a beginning: %v", err)
	}
	if err := f.trusts["b"].RotateCA(t.Context(), false); err != nil { // not the leader
		t.Fatal(err)
	}
	f.wantPhases("begun", "add none")
	for _, again := range []bool{false, true} {
		if err := f.trusts["a"].RotateCA(t.Context(), again); !errors.Is(err, ErrRefused) {
			t.Errorf("again (finish %v): %v", again, err)
		}
	}
	f.install("a", "b")
	f.advance("a")
	f.wantPhases("c and the agent wait", "add none")
	s, err := f.trusts["a"].Status(t.Context())
	if err != nil || !slices.Equal(s.WaitingOn, []string{"agent", "c"}) || !slices.Equal(s.Absent, []string{"dead"}) {
		t.Errorf("status %+v, %v", s, err)
	}
	f.install("c", "agent")
	f.advance("b") // another leader goes on
	f.wantPhases("all trust the new one", "use none")
	d := f.document()
	if len(d.CAs) != 2 || d.CAs[1].Cert != old || d.CAs[1].Key != "" || d.CAs[0].Cross == "" || d.Leaves != d.Generation {
		t.Errorf("document %+v", d)
	}
	f.install("a", "b")
	f.advance("b")
	f.wantPhases("c waits", "use none")
	f.install("c", "agent")
	f.advance("c")
	f.wantPhases("all use it", "overlap none")
	generation := d.Generation
	if f.document().Generation != generation {
		t.Error("the name of a phase is a new generation")
	}
	f.advance("a")
	f.wantPhases("it stays so", "overlap none")

	err = f.trusts["a"].RotateCA(t.Context(), true)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "dead") || strings.Contains(err.Error(), "agent") {
		t.Errorf("finish while one is behind: %v", err)
	}
	cut, err := f.trusts["a"].FinishCA(t.Context(), true)
	if err != nil || !slices.Equal(cut, []string{"dead"}) {
		t.Errorf("forced: %v, %v", cut, err)
	}
	f.install("a", "b", "c", "agent")
	for n, p := range f.pkis {
		if len(p.CAs()) != 1 || string(p.CACertPEM()) == old {
			t.Errorf("%s trusts %d CAs", n, len(p.CAs()))
		}
	}
	f.wantPhases("finished", "none none")
}

func TestGossipKeyRotationInPhases(t *testing.T) {
	f := newFleet(t, "a", "b")
	f.advance("a")
	f.install("a", "b")
	_, _, keys := f.trusts["a"].Document()
	old := keys[0]
	if err := f.trusts["a"].RotateGossipKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.trusts["a"].RotateGossipKey(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("again: %v", err)
	}
	// At no time may two members be further apart than one generation, so each
	// always understands what the other encrypts.
	understood := func(when string) {
		t.Helper()
		_, _, a := f.trusts["a"].Document()
		_, _, b := f.trusts["b"].Document()
		has := func(list [][]byte, k []byte) bool {
			return slices.ContainsFunc(list, func(x []byte) bool { return bytes.Equal(x, k) })
		}
		if !has(b, a[0]) || !has(a, b[0]) {
			t.Errorf("%s: members do not understand each other", when)
		}
	}
	for i, want := range []string{"none add", "none use", "none none"} {
		f.wantPhases("step", want)
		f.install("a")
		understood(fmt.Sprint("a ahead ", i))
		f.advance("a")
		f.wantPhases("b behind", want)
		f.install("b")
		understood(fmt.Sprint("both ", i))
		f.advance([]string{"a", "b"}[i%2])
	}
	if _, _, keys := f.trusts["b"].Document(); len(keys) != 1 || bytes.Equal(keys[0], old) {
		t.Error("the key is the old one")
	}
}

// TestRotationIsResumed lets every single write fail once, and another leader go
// on.
func TestRotationIsResumed(t *testing.T) {
	f := newFleet(t, "a", "b")
	f.advance("a")
	f.install("a", "b")
	old := f.document()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.trusts["a"].RotateCA(t.Context(), false))
	must(f.trusts["b"].RotateGossipKey(t.Context()))
	must(f.trusts["b"].RotateLeaves(t.Context()))
	failures := 0
	for i := 0; f.phases() != "overlap none"; i++ {
		if i > 50 {
			t.Fatalf("no end: %s", f.phases())
		}
		f.install("a", "b")
		leader := []string{"a", "b"}[i%2]
		dying := f.trust(leader)
		dying.installed = f.trusts[leader].installed
		dying.step = func(string) { f.log.fail = errors.New("died"); failures++ }
		_, err := dying.advance(t.Context())
		f.log.fail = nil
		if err != nil && !strings.Contains(err.Error(), "died") {
			t.Fatal(err)
		}
		f.advance(leader)
	}
	f.install("a", "b")
	if failures < 2 { // both rotations go on with the same write
		t.Errorf("only %d writes failed", failures)
	}
	must(f.trusts["b"].RotateCA(t.Context(), true))
	f.install("a", "b")
	d := f.document()
	if d.CAs[0].Cert == old.CAs[0].Cert || bytes.Equal(d.GossipKeys[0], old.GossipKeys[0]) || len(d.CAs) != 1 || len(d.GossipKeys) != 1 || d.moving() {
		t.Errorf("%+v", d)
	}
}

func TestRunAndDuty(t *testing.T) {
	f := newFleet(t, "a", "b")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for n, tr := range f.trusts {
		changes, stop := tr.Changes()
		defer stop()
		wg.Go(func() { _ = tr.Run(ctx) })
		wg.Go(func() {
			for {
				select {
				case <-changes:
					generation, _, _ := tr.Document()
					f.set(n, func(m *Member) { m.Trust = generation })
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Go(func() { _ = f.trusts["a"].Duty(ctx) })
	await := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute", what)
			}
		}
	}
	await("document", func() bool { g, _, _ := f.trusts["b"].Document(); return g != 0 })
	leaf, err := f.pkis["b"].Leaf(pki.Request{CommonName: "x"})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := leaf.Certificate()
	if err := f.trusts["b"].RotateLeaves(t.Context()); err != nil {
		t.Fatal(err)
	}
	await("new leaves", func() bool { c, _ := leaf.Certificate(); return c != first })
	if err := f.trusts["b"].RotateCA(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	await("overlap", func() bool { return f.document().CARotation.phase() == PhaseOverlap })
	if err := f.trusts["b"].RotateCA(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	await("one CA", func() bool { return len(f.pkis["a"].CAs()) == 1 && len(f.pkis["b"].CAs()) == 1 })
	cancel()
	wg.Wait()
}
