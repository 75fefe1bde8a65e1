package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// memoryLog is a Log without disks.
type memoryLog struct {
	mu      sync.Mutex
	fsm     *fsm.FSM
	index   uint64
	entries [][]byte
	fail    error
}

func newLog() *memoryLog { return &memoryLog{fsm: fsm.New(store.New(store.Config{}))} }

func (l *memoryLog) store() *store.Store { return l.fsm.Store() }

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
	l.entries = append(l.entries, data)
	return l.fsm.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).([]fsm.Result)[0], nil
}

func (l *memoryLog) put(t testing.TB, key string, v []byte, expect int64) fsm.Result {
	t.Helper()
	r, err := l.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: v, Expect: expect}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *memoryLog) get(t testing.TB, key string) []byte {
	t.Helper()
	kv, ok := l.store().View().Get(key)
	if !ok {
		t.Fatalf("%s is not there", key)
	}
	return kv.Value
}

const prefix = "/registry/secrets/"

func newSealer(t testing.TB, l *memoryLog, k *Key) *Sealer {
	t.Helper()
	s, err := New(Config{Key: k, Store: l.store(), Log: l, Prefixes: []string{prefix}, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sealed(t testing.TB, s *Sealer, key, plain string) []byte {
	t.Helper()
	b, err := s.TransformToStorage(t.Context(), []byte(plain), value.DefaultContext(key))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opened(t testing.TB, s *Sealer, key string, stored []byte) (string, bool) {
	t.Helper()
	b, stale, err := s.TransformFromStorage(t.Context(), stored, value.DefaultContext(key))
	if err != nil {
		t.Fatal(err)
	}
	return string(b), stale
}

// duty runs the leader's duty until cond holds.
func duty(t testing.TB, s *Sealer, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Duty(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within 10s: %+v", s.Status())
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestValuesAreSealedForTheirKey(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	s := newSealer(t, l, k)
	b := sealed(t, s, prefix+"a", "password123")
	if bytes.Contains(b, []byte("password")) || !bytes.HasPrefix(b, []byte("skiff:sealed:1:1:")) {
		t.Errorf("stored as %q", b)
	}
	if p, stale := opened(t, s, prefix+"a", b); p != "password123" || stale {
		t.Errorf("opened %q, stale %v", p, stale)
	}
	if other := sealed(t, s, prefix+"a", "password123"); bytes.Equal(b, other) {
		t.Error("the same plain text gives the same stored form")
	}
	_, _, err := s.TransformFromStorage(t.Context(), b, value.DefaultContext(prefix+"b"))
	if err == nil || !strings.Contains(err.Error(), "belongs to another key") {
		t.Errorf("a value in another's place: %v", err)
	}
	for _, i := range []int{len(b) - 1, len(b) - 20, len(magic) + 3} {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, _, err := s.TransformFromStorage(t.Context(), bad, value.DefaultContext(prefix+"a")); err == nil {
			t.Errorf("byte %d changed and opened", i)
		}
	}
	for _, bad := range []string{magic, magic + "x:abc", magic + "0:abc", magic + "1:", magic + "1"} {
		if _, _, err := s.TransformFromStorage(t.Context(), []byte(bad), value.DefaultContext(prefix+"a")); err == nil {
			t.Errorf("%q opened", bad)
		}
	}
	// Plain values of the version before are read as they are.
	if p, stale := opened(t, s, prefix+"a", []byte("k8s\x00old")); p != "k8s\x00old" || !stale {
		t.Errorf("plain: %q, stale %v", p, stale)
	}
	// Another member with the same cluster key reads it, one with another does not.
	if p, _ := opened(t, newSealer(t, l, k), prefix+"a", b); p != "password123" {
		t.Errorf("another member reads %q", p)
	}
	foreign := newSealer(t, l, mustKey(t, ""))
	_, _, err = foreign.TransformFromStorage(t.Context(), b, value.DefaultContext(prefix+"a"))
	if err == nil || !strings.Contains(err.Error(), "cluster key "+k.ID()) {
		t.Errorf("with another cluster key: %v", err)
	}
	if _, err := foreign.TransformToStorage(t.Context(), nil, value.DefaultContext("x")); err == nil {
		t.Error("a host with another cluster key may write")
	}
	if err := foreign.Rotate(t.Context()); err == nil {
		t.Error("a host with another cluster key may rotate")
	}
	if st := foreign.Status(); !strings.Contains(st.Problem, "other servers") {
		t.Errorf("status %+v", st)
	}
}

func TestConcurrentFirstWritesAgreeOnOneKey(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	var wg sync.WaitGroup
	for i := range 8 {
		s := newSealer(t, l, k)
		wg.Go(func() {
			b, err := s.TransformToStorage(t.Context(), []byte("x"), value.DefaultContext("k"))
			if n, _ := Number(b); err != nil || n != 1 {
				t.Errorf("member %d: key %d, %v", i, n, err)
			}
		})
	}
	wg.Wait()
	if s := newSealer(t, l, k).Status(); len(s.DataKeys) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPlainValuesAreSealedByTheLeader(t *testing.T) {
	l := newLog()
	for i := range 3 * batchValues {
		l.put(t, fmt.Sprintf("%sns/%03d", prefix, i), []byte("k8s\x00plain secret"), 0)
	}
	l.put(t, "/registry/pods/a", []byte("k8s\x00plain pod"), 0)
	s := newSealer(t, l, mustKey(t, ""))
	duty(t, s, func() bool { st := s.Status(); return st.Plain == 0 && len(st.DataKeys) == 1 })
	for i := range 3 * batchValues {
		key := fmt.Sprintf("%sns/%03d", prefix, i)
		if p, stale := opened(t, s, key, l.get(t, key)); p != "k8s\x00plain secret" || stale {
			t.Fatalf("%s: %q, stale %v", key, p, stale)
		}
	}
	if string(l.get(t, "/registry/pods/a")) != "k8s\x00plain pod" {
		t.Error("something else was sealed")
	}
	// With nothing to do nothing is written.
	before := l.index
	duty(t, s, func() bool { return true })
	if l.index != before {
		t.Errorf("%d entries without need", l.index-before)
	}
}

func TestRotation(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	s := newSealer(t, l, k)
	const count = 3*batchValues + 7
	key := func(i int) string { return fmt.Sprintf("%sns/%03d", prefix, i) }
	for i := range count {
		l.put(t, key(i), sealed(t, s, key(i), fmt.Sprint("secret ", i)), 0)
	}
	expires := time.Now().Add(time.Hour).Unix()
	mortal := key(count)
	if _, err := l.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: mortal, Value: sealed(t, s, mortal, "short"), Expect: 0, Expires: expires})); err != nil {
		t.Fatal(err)
	}
	old := bytes.Clone(l.get(t, key(1)))
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Rotate(t.Context()); !errors.Is(err, ErrRotating) {
		t.Errorf("a second rotation: %v", err)
	}
	if _, stale := opened(t, s, key(1), old); !stale {
		t.Error("a value with the old key is not stale")
	}
	// Each interruption is another leader's, which knows only what is in the state.
	died := errors.New("died")
	steps := map[string]int{}
	for at := 1; ; at++ {
		leader := newSealer(t, l, k)
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		leader.step = func(what string) {
			if n++; n == 2 { // one step succeeds, the next never happens
				steps[what]++
				l.mu.Lock()
				l.fail = died
				l.mu.Unlock()
				cancel()
			}
		}
		clean := time.Time{}
		for ctx.Err() == nil && len(leader.Status().DataKeys) > 1 {
			_ = leader.tidy(ctx, &clean)
			time.Sleep(2 * time.Millisecond)
		}
		stopped := ctx.Err() != nil
		cancel()
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		for i := range count { // readable at every moment
			if p, _ := opened(t, newSealer(t, l, k), key(i), l.get(t, key(i))); p != fmt.Sprint("secret ", i) {
				t.Fatalf("after interruption %d %s reads %q", at, key(i), p)
			}
		}
		if !stopped {
			break
		}
		if at > 20 {
			t.Fatal("no end")
		}
	}
	if steps["rewrite"] == 0 || steps["drop"] == 0 {
		t.Errorf("interrupted at %v", steps)
	}
	st := s.Status()
	if len(st.DataKeys) != 1 || st.DataKeys[0].Number != 2 || st.DataKeys[0].Values != count+1 || st.Rotating {
		t.Errorf("status %+v", st)
	}
	if kv, _ := l.store().View().Get(mortal); kv.Expires != expires {
		t.Errorf("expiry %d became %d", expires, kv.Expires)
	}
	// A member that has had the old key open still reads past versions; one that
	// has not says which error it is.
	if p, _ := opened(t, s, key(1), old); p != "secret 1" {
		t.Errorf("past version: %q", p)
	}
	_, _, err := newSealer(t, l, k).TransformFromStorage(t.Context(), old, value.DefaultContext(key(1)))
	if !errors.Is(err, ErrKeyGone) {
		t.Errorf("past version on a new member: %v", err)
	}
	if !s.Lost(old) || s.Lost(l.get(t, key(1))) || s.Lost([]byte("k8s\x00")) {
		t.Error("Lost is wrong")
	}
}

func TestWritersDuringARotation(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	s := newSealer(t, l, k)
	key := func(i int) string { return fmt.Sprintf("%sns/%04d", prefix, i) }
	for i := range 300 {
		l.put(t, key(i), sealed(t, s, key(i), "v0"), 0)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	written := make([]int, 4)
	for w := range 4 {
		writer := newSealer(t, l, k)
		wg.Go(func() { // compare and update of its own key
			at := key(w * 50)
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for {
					kv, _ := l.store().View().Get(at)
					b, err := writer.TransformToStorage(t.Context(), []byte(fmt.Sprint("v", n)), value.DefaultContext(at))
					if err != nil {
						t.Error(err)
						return
					}
					r, err := l.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: at, Value: b, Expect: kv.ModRevision}))
					if err == nil && r.Err == nil {
						written[w] = n
						break
					}
				}
			}
		})
	}
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	duty(t, s, func() bool { return !s.Status().Rotating })
	close(stop)
	wg.Wait()
	for w := range 4 {
		if p, _ := opened(t, s, key(w*50), l.get(t, key(w*50))); p != fmt.Sprint("v", written[w]) {
			t.Errorf("writer %d wrote v%d, read %s", w, written[w], p)
		}
	}
	if st := s.Status(); st.DataKeys[0].Number != 2 || st.DataKeys[0].Values != 300 {
		t.Errorf("%+v", st)
	}
}

// A server that slept through a whole rotation creates a value with the dropped
// key and dies before it can write it again.
func TestUnconfirmedCreateWithADroppedKeyIsRemoved(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	s := newSealer(t, l, k)
	late := sealed(t, s, prefix+"late", "x")
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader := newSealer(t, l, k)
	duty(t, leader, func() bool { return !leader.Status().Rotating })
	if r := l.put(t, prefix+"late", late, 0); r.Err != nil {
		t.Fatal(r.Err)
	}
	next := newSealer(t, l, k)
	duty(t, next, func() bool { _, ok := l.store().View().Get(prefix + "late"); return !ok })
}

func TestDataKeyInUseElsewhereStays(t *testing.T) {
	l := newLog()
	s := newSealer(t, l, mustKey(t, ""))
	l.put(t, "/elsewhere/x", sealed(t, s, "/elsewhere/x", "x"), 0)
	l.put(t, TrustKey, sealed(t, s, TrustKey, "document"), 0)
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	clean := time.Time{}
	var err error
	for range 20 {
		err = s.tidy(t.Context(), &clean)
		time.Sleep(time.Millisecond)
	}
	if err == nil || !strings.Contains(err.Error(), "/elsewhere/x") || len(s.Status().DataKeys) != 2 {
		t.Errorf("%v, %+v", err, s.Status())
	}
	if n, _ := Number(l.get(t, TrustKey)); n != 2 {
		t.Errorf("skiff's own document has data key %d", n)
	}
}

func TestKeyUnderAPassphraseIsInTheState(t *testing.T) {
	l := newLog()
	k := mustKey(t, "pass")
	s := newSealer(t, l, k)
	has := func() bool { _, ok := l.store().View().Get(FileKey); return ok }
	duty(t, s, has)
	got, err := ParseKey(l.get(t, FileKey), []byte("pass"))
	if err != nil || got.ID() != k.ID() {
		t.Errorf("%v, %v", got, err)
	}
	if plain := newSealer(t, l, k.Plain()); !t.Failed() {
		duty(t, plain, func() bool { return !has() })
	}
}

func TestOpenWithoutAProcess(t *testing.T) {
	l := newLog()
	k := mustKey(t, "")
	s := newSealer(t, l, k)
	l.put(t, "/skiff/trust", sealed(t, s, "/skiff/trust", "document"), 0)
	state := map[string][]byte{}
	l.store().View().Ascend("/skiff/", "", func(kv *store.KeyValue) bool { state[kv.Key] = kv.Value; return true })
	if b, err := Open(k, state, "/skiff/trust"); string(b) != "document" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	for want, f := range map[string]func() error{
		"is needed":         func() error { _, err := Open(nil, state, "/skiff/trust"); return err },
		"sealed with clust": func() error { _, err := Open(mustKey(t, ""), state, "/skiff/trust"); return err },
		"not there":         func() error { _, err := Open(k, state, "/skiff/other"); return err },
		"is missing": func() error {
			_, err := Open(k, map[string][]byte{"/skiff/trust": state["/skiff/trust"]}, "/skiff/trust")
			return err
		},
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
