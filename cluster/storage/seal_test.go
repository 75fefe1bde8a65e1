package storage

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// sealedFixture is a storage of what is sealed. another makes one more, as another
// member would have it that has not opened a data key yet.
func sealedFixture(t testing.TB) (f *fixture, sealer *seal.Sealer, another func() *fixture) {
	t.Helper()
	key, err := seal.NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	db := store.New(store.Config{})
	log := &memoryLog{fsm: fsm.New(db)}
	member := func() (*fixture, *seal.Sealer) {
		s, err := seal.New(seal.Config{Key: key, Store: db, Log: log, Prefixes: SealedPrefixes(), Pause: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(Config{Store: db, Log: log, Sealer: s})
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.Resource(ResourceConfig{Prefix: "/secrets", Codec: exampleCodec(t), NewFunc: func() runtime.Object { return &example.Pod{} }})
		if err != nil {
			t.Fatal(err)
		}
		return &fixture{r, log, db}, s
	}
	f, sealer = member()
	return f, sealer, func() *fixture { f, _ := member(); return f }
}

func secret(name, content string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "u"}, Spec: example.PodSpec{NodeName: content}}
}

// rotate makes another data key and waits until everything is sealed with it
// and the old one is gone.
func rotate(t testing.TB, s *seal.Sealer) {
	t.Helper()
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Duty(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); s.Status().Rotating; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the rotation takes more than 10s")
		}
	}
	cancel()
	<-done
}

func TestSealedResource(t *testing.T) {
	f, sealer, another := sealedFixture(t)
	other := another()
	ctx := t.Context()
	const text = "the plain text of it"
	if err := f.Create(ctx, "/secrets/ns/a", secret("a", text), &example.Pod{}, 0); err != nil {
		t.Fatal(err)
	}
	raw := func(name string) *store.KeyValue {
		kv, ok := f.store.View().Get("/registry/secrets/ns/" + name)
		if !ok {
			t.Fatalf("%s is not stored", name)
		}
		return kv
	}
	if bytes.Contains(raw("a").Value, []byte(text)) {
		t.Fatalf("stored plain: %q", raw("a").Value)
	}
	read := func(when string, f *fixture, name, want string) {
		t.Helper()
		var out example.Pod
		if err := f.Get(ctx, "/secrets/ns/"+name, storage.GetOptions{}, &out); err != nil || out.Spec.NodeName != want {
			t.Errorf("%s: read %q, %v; want %q", when, out.Spec.NodeName, err, want)
		}
	}
	update := func(f *fixture, name, content string) (rev string) {
		t.Helper()
		var out example.Pod
		err := f.GuaranteedUpdate(ctx, "/secrets/ns/"+name, &out, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
			p := o.(*example.Pod)
			p.Spec.NodeName = content
			return p, nil
		}), nil)
		if err != nil || out.Spec.NodeName != content {
			t.Fatalf("update gave %q, %v", out.Spec.NodeName, err)
		}
		return out.ResourceVersion
	}
	read("created", f, "a", text)
	read("on another member", other, "a", text)

	// A change of nothing is no write, though each sealing differs.
	before := f.store.Revision()
	update(f, "a", text)
	if f.store.Revision() != before {
		t.Error("an update without a change was written")
	}
	update(other, "a", "second")
	read("updated by another", f, "a", "second")

	// The decoded form is shared in spite of the seal.
	kv := raw("a")
	obj, err := f.shared(kv)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.shared(kv); err != nil || again != obj {
		t.Errorf("decoded twice: %v", err)
	}

	// After a rotation a change of nothing is no write either: it is done.
	start := f.store.Revision()
	w, err := f.Watch(ctx, "/secrets", storage.ListOptions{ResourceVersion: fmt.Sprint(start), Recursive: true, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	rotate(t, sealer)
	if e := <-w.ResultChan(); e.Type != watch.Modified || e.Object.(*example.Pod).Spec.NodeName != "second" {
		t.Errorf("the watch saw %v %v", e.Type, e.Object)
	}
	read("after a rotation", f, "a", "second")
	read("after a rotation, elsewhere", other, "a", "second")

	// A member that never had the old key answers a watch from before with 410.
	late := another()
	w, err = late.Watch(ctx, "/secrets", storage.ListOptions{ResourceVersion: fmt.Sprint(start - 1), Recursive: true, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Type != watch.Error || e.Object.(*metav1.Status).Reason != metav1.StatusReasonExpired {
		t.Errorf("a past version with a dropped key: %v %v", e.Type, e.Object)
	}
	var list example.PodList
	err = late.GetList(ctx, "/secrets", storage.ListOptions{ResourceVersion: fmt.Sprint(start), ResourceVersionMatch: metav1.ResourceVersionMatchExact, Recursive: true, Predicate: storage.Everything}, &list)
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("a list of a past revision with a dropped key: %v", err)
	}

	// Values can't be exchanged.
	if err := f.Create(ctx, "/secrets/ns/b", secret("b", "of b"), nil, 0); err != nil {
		t.Fatal(err)
	}
	f.log.mustPut(t, "/registry/secrets/ns/b", raw("a").Value)
	var out example.Pod
	if err := f.Get(ctx, "/secrets/ns/b", storage.GetOptions{}, &out); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a value in another's place: %v, %q", err, out.Spec.NodeName)
	}
	if err := f.Delete(ctx, "/secrets/ns/a", &out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil || out.Spec.NodeName != "second" {
		t.Errorf("delete: %q, %v", out.Spec.NodeName, err)
	}
}

func (l *memoryLog) mustPut(t testing.TB, key string, v []byte) {
	t.Helper()
	r, err := l.Propose(context.Background(), fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: v, Expect: fsm.Any}))
	if err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
}

func TestPlainSecretsAreReadAndSealedByTheNextWrite(t *testing.T) {
	f, _, _ := sealedFixture(t)
	data, err := f.encode(secret("old", "plain"))
	if err != nil {
		t.Fatal(err)
	}
	f.log.mustPut(t, "/registry/secrets/ns/old", data)
	var out example.Pod
	if err := f.Get(t.Context(), "/secrets/ns/old", storage.GetOptions{}, &out); err != nil || out.Spec.NodeName != "plain" {
		t.Fatalf("%q, %v", out.Spec.NodeName, err)
	}
	same := storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) { return o, nil })
	if err := f.GuaranteedUpdate(t.Context(), "/secrets/ns/old", &out, false, nil, same, nil); err != nil {
		t.Fatal(err)
	}
	kv, _ := f.store.View().Get("/registry/secrets/ns/old")
	if n, err := seal.Number(kv.Value); n == 0 || err != nil {
		t.Errorf("still plain after a write: %v", err)
	}
}

// A member that missed a whole rotation creates with the old key: the log takes
// it, and the writer notices and writes again before it answers.
func TestCreateByAMemberThatMissedARotation(t *testing.T) {
	for name, cleaned := range map[string]bool{"at once": false, "after the leader has removed it": true} {
		t.Run(name, func(t *testing.T) {
			f, sealer, another := sealedFixture(t)
			other := another()
			if err := f.Create(t.Context(), "/secrets/ns/a", secret("a", "x"), nil, 0); err != nil {
				t.Fatal(err)
			}
			const key = "/registry/secrets/ns/late"
			data, err := other.encode(secret("late", "kept"))
			if err != nil {
				t.Fatal(err)
			}
			stored, err := other.seal(t.Context(), key, data)
			if err != nil {
				t.Fatal(err)
			}
			rotate(t, sealer)
			res, err := other.put(t.Context(), key, stored, 0, 0)
			if err != nil || res.Err != nil {
				t.Fatal(err, res.Err)
			}
			if cleaned {
				if _, err := f.log.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Delete, Key: key, Expect: fsm.Any})); err != nil {
					t.Fatal(err)
				}
			}
			rev, err := other.keep(t.Context(), key, data, stored, 0, res.Revision)
			if err != nil {
				t.Fatal(err)
			}
			kv, ok := f.store.View().Get(key)
			if !ok || kv.ModRevision != rev {
				t.Fatalf("stored %v at another revision than %d", ok, rev)
			}
			var out example.Pod
			if err := f.Get(t.Context(), "/secrets/ns/late", storage.GetOptions{}, &out); err != nil || out.Spec.NodeName != "kept" {
				t.Errorf("%q, %v", out.Spec.NodeName, err)
			}
		})
	}
}

// BenchmarkCreateSealed is what sealing adds to a create, without a disk.
func BenchmarkCreateSealed(b *testing.B) {
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%v", sealed), func(b *testing.B) {
			f, _, _ := sealedFixture(b)
			if !sealed {
				f.sealer = nil
			}
			content := strings.Repeat("x", 1024)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := f.Create(b.Context(), fmt.Sprintf("/secrets/ns/%d", i), secret("a", content), &example.Pod{}, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
