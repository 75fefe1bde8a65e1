package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/golden"
	"github.com/skiff-sh/skiff/fsm/store"
)

func aRestore(file string) *Restore {
	return &Restore{File: file, Size: 7, Keep: []string{"/skiff/", "/node/"}, Except: []string{"/skiff/reserved/"},
		Expect: []Expectation{{"/skiff/restore", 0}, {"/skiff/keys/1", 7}},
		Ops:    []Op{{Type: Put, Key: "/skiff/restore", Value: []byte("done"), Expect: Any}, {Type: Put, Key: "/skiff/x", Expect: Any, Expires: 4}}}
}

func TestRestoreEncoding(t *testing.T) {
	want := aRestore(strings.Repeat("0f", 32))
	e := entry(t, Command{Restore: want})
	if golden.Update(t) {
		writeGolden(t, "restore.bin", e)
	}
	if !bytes.Equal(e, readGolden(t, "restore.bin")) {
		t.Error("a restore is encoded in another way than in version 1")
	}
	got, err := DecodeEntry(e)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	got[0].Restore.Ops[1].Value = nil // is empty
	if !reflect.DeepEqual(got[0].Restore, want) || !reflect.DeepEqual(RestoreIn(e).File, want.File) || !IsRestore(e[1:]) || CommandVersion(e[1:]) != 1 {
		t.Errorf("got %+v", got[0].Restore)
	}
	if RestoreIn(entry(t, put("/a", "b", 0))) != nil || IsRestore(nil) {
		t.Error("a put is taken for a restore")
	}
	for name, e := range map[string][]byte{
		"with another command before": append(entry(t, put("/a", "b", 0)), e[1:]...),
		"with another command behind": append(bytes.Clone(e), entry(t, put("/a", "b", 0))[1:]...),
		"twice":                       append(bytes.Clone(e), e[1:]...),
		"cut":                         e[:len(e)-1],
		"with a field of later":       {entryVersion, typeRestore, 3, 99, 1, 0},
	} {
		if _, err := DecodeEntry(e); err == nil || RestoreIn(e) != nil {
			t.Errorf("%s: decoded", name)
		}
	}
	for name, change := range map[string]func(*Restore){
		"no file":               func(r *Restore) { r.File = "" },
		"a path":                func(r *Restore) { r.File = "../" + r.File[3:] },
		"upper case":            func(r *Restore) { r.File = strings.ToUpper(r.File) },
		"no size":               func(r *Restore) { r.Size = 0 },
		"a delete":              func(r *Restore) { r.Ops[0] = Op{Type: Delete, Key: "/a", Expect: Any} },
		"an operation that may": func(r *Restore) { r.Ops[0].Expect = 3 },
		"a negative revision":   func(r *Restore) { r.Expect[0].ModRevision = -1 },
	} {
		r := aRestore(strings.Repeat("0f", 32))
		change(r)
		if _, err := EncodeEntry(Command{Restore: r}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := EncodeEntry(Command{Restore: want, Ops: []Op{{}}}); !errors.Is(err, ErrInvalid) {
		t.Error("a restore with operations beside it was encoded")
	}
}

// restored gives a snapshot with some keys at revision rev, and its hash.
func restored(t testing.TB, rev int64, keys ...string) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{ClusterID: "c", Revision: rev, Index: 3, Term: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if err := w.Add(&store.KeyValue{Key: k, Value: []byte("old " + k), CreateRevision: int64(i + 1), ModRevision: int64(i + 2), Expires: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := newFSM().Preload(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), s.Hash
}

func state(f *FSM) string {
	var b strings.Builder
	f.Store().View().Ascend("", "", func(kv *store.KeyValue) bool {
		fmt.Fprintf(&b, "%s=%s@%d ", kv.Key, kv.Value, kv.ModRevision)
		return true
	})
	return strings.TrimSpace(b.String())
}

func source(file []byte) FileSource {
	return func(string, int64, error) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(file)), nil }
}

// TestRestoreCommand restores between other changes, in each way in which entries
// can be applied together, from memory and from the file.
func TestRestoreCommand(t *testing.T) {
	file, hash := restored(t, 40, "/node/a", "/registry/a", "/registry/b", "/registry/same", "/skiff/keys/1", "/skiff/reserved/r")
	r := &Restore{File: hash, Size: int64(len(file)), Keep: []string{"/skiff/", "/node/"}, Except: []string{"/skiff/reserved/"},
		Expect: []Expectation{{"/skiff/lock", 4}, {"/none", 0}},
		Ops:    []Op{{Type: Put, Key: "/skiff/lock", Value: []byte("done"), Expect: Any}}}
	log := func(i uint64, c Command) *raft.Log { return &raft.Log{Index: i, Term: 1, Data: entry(t, c)} }
	logs := []*raft.Log{
		log(1, Batch(Op{Type: Put, Key: "/registry/b", Value: []byte("new")}, Op{Type: Put, Key: "/registry/z", Value: []byte("new"), Expires: 9},
			Op{Type: Put, Key: "/skiff/lock", Value: []byte("begun")}, Op{Type: Put, Key: "/skiff/reserved/s"}, Op{Type: Put, Key: "/registry/same", Value: []byte("old /registry/same"), Expires: 3})),
		log(2, Command{Restore: r}),
		log(3, put("/registry/b", "refused", 2)),
		log(4, put("/registry/b", "later", 40)),
	}
	want := "/registry/a=old /registry/a@40 /registry/b=later@42 /registry/same=old /registry/same@6 /skiff/lock=done@41 /skiff/reserved/r=old /skiff/reserved/r@40"
	for _, preload := range []bool{true, false} {
		for name, groups := range map[string][][]*raft.Log{
			"one by one": {logs[:1], logs[1:2], logs[2:3], logs[3:]},
			"together":   {logs}, "first with restore": {logs[:2], logs[2:]}, "restore with rest": {logs[:1], logs[1:]},
		} {
			f := newFSM()
			f.SetFiles(source(file))
			if preload {
				if _, err := f.Preload(bytes.NewReader(file)); err != nil {
					t.Fatal(err)
				}
				f.SetFiles(func(string, int64, error) (io.ReadCloser, error) {
					t.Fatal("the file was opened again")
					return nil, nil
				})
			}
			told := f.Store().Watch("/registry/", 1)
			slept := make(chan error, 1)
			go func() {
				var err error
				for w := f.Store().Watch("/quiet/", 1); err == nil; {
					_, _, err = w.Next(t.Context())
				}
				slept <- err
			}()
			var out []any
			for _, g := range groups {
				out = append(out, f.ApplyBatch(g)...)
			}
			if got := state(f); got != want {
				t.Errorf("%s, %v: %s, want %s", name, preload, got, want)
			}
			res := func(i int) Result { return out[i].([]Result)[0] }
			if res(1).Err != nil || res(1).Revision != 41 || !errors.Is(res(2).Err, store.ErrConflict) || res(3).Err != nil || f.Store().Revision() != 42 {
				t.Errorf("%s: results %v, revision %d", name, out, f.Store().Revision())
			}
			if f.Preloaded(hash) {
				t.Error("what was used is still kept")
			}
			if name == "together" || name == "first with restore" {
				if _, _, err := told.Next(t.Context()); !errors.Is(err, store.ErrCompacted) {
					t.Errorf("%s: a watch from before: %v", name, err)
				}
			}
			if err := <-slept; !errors.Is(err, store.ErrCompacted) {
				t.Errorf("%s: a watch that slept: %v", name, err)
			}
			evs, upto, err := f.Store().Watch("/registry/", 40).Next(t.Context())
			if err != nil || len(evs) != 1 || string(evs[0].Prev.Value) != "old /registry/b" || upto != 42 {
				t.Errorf("%s: from the restore on: %v, %d, %v", name, evs, upto, err)
			}
			if got := f.Store().Expired(5, 9); len(got) != 3 || got[1].Key != "/registry/same" || got[2].Key != "/skiff/reserved/r" {
				t.Errorf("%s: expiring: %v", name, got)
			}
			if v, err := f.Store().ViewAt(3); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("%s: a view from before: %v, %v", name, v, err)
			}
		}
	}
}

func TestRestoreExpects(t *testing.T) {
	file, hash := restored(t, 4, "/registry/a")
	for _, e := range []Expectation{{"/k", 0}, {"/k", 3}, {"/none", 2}} {
		f := newFSM()
		f.SetFiles(source(file))
		apply(t, f, 1, put("/k", "v", 0))
		before := state(f)
		r := apply(t, f, 2, Command{Restore: &Restore{File: hash, Size: 1, Expect: []Expectation{e}}})[0]
		if !errors.Is(r.Err, store.ErrConflict) || state(f) != before || r.Revision != 2 {
			t.Errorf("%v: %+v, %s", e, r, state(f))
		}
	}
	// The revision goes on from the file's if that is later, else from the state's.
	for rev, want := range map[int64]int64{4: 12, 50: 50} {
		file, hash := restored(t, rev, "/registry/a")
		f := newFSM()
		f.SetFiles(source(file))
		for i := range 10 {
			apply(t, f, uint64(i+1), put("/k", "v", Any))
		}
		if r := apply(t, f, 11, Command{Restore: &Restore{File: hash, Size: 1}})[0]; r.Err != nil || r.Revision != want || f.Store().Revision() != want {
			t.Errorf("file at %d: %+v, want %d", rev, r, want)
		}
	}
}

// TestRestoreWaitsForTheFile: readers go on while the file is not there; a member
// that stops meanwhile applies nothing, and writes no snapshot that would say so.
func TestRestoreWaitsForTheFile(t *testing.T) {
	file, hash := restored(t, 4, "/registry/a")
	for _, stops := range []bool{false, true} {
		f := newFSM()
		asked, come := make(chan bool), make(chan bool)
		f.SetFiles(func(name string, size int64, _ error) (io.ReadCloser, error) {
			if name != hash || size != 9 {
				t.Errorf("asked for %s of %d", name, size)
			}
			asked <- true
			<-come
			if stops {
				return nil, errors.New("stopped")
			}
			return io.NopCloser(bytes.NewReader(file)), nil
		})
		apply(t, f, 1, put("/k", "v", 0))
		done := make(chan any)
		go func() {
			done <- f.Apply(&raft.Log{Index: 2, Term: 1, Data: entry(t, Command{Restore: &Restore{File: hash, Size: 9}})})
		}()
		<-asked
		if i, _ := f.Applied(); i != 1 || f.Capture().Keys() != 1 {
			t.Errorf("while it waits: %d applied", i)
		}
		close(come)
		select {
		case out := <-done:
			if stops != (out == nil) {
				t.Errorf("result %v", out)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it does not go on")
		}
		if !stops {
			continue
		}
		if out := f.Apply(&raft.Log{Index: 3, Term: 1, Data: entry(t, put("/k", "w", Any))}); out != nil || state(f) != "/k=v@2" {
			t.Errorf("applied behind what is missing: %v, %s", out, state(f))
		}
		if _, err := f.Snapshot(); err == nil {
			t.Error("a snapshot of it was made")
		}
		if i, _ := f.Applied(); i != 1 {
			t.Errorf("says that %d was applied", i)
		}
	}
}

func TestRestoreOfADamagedFile(t *testing.T) {
	file, hash := restored(t, 4, "/registry/a")
	other, _ := restored(t, 4, "/registry/b")
	f := newFSM()
	var wrongs []error
	f.SetFiles(func(_ string, _ int64, wrong error) (io.ReadCloser, error) {
		wrongs = append(wrongs, wrong)
		return io.NopCloser(bytes.NewReader([][]byte{file[:len(file)-3], other, file}[len(wrongs)-1])), nil
	})
	apply(t, f, 1, Command{Restore: &Restore{File: hash, Size: 9}})
	if len(wrongs) != 3 || wrongs[0] != nil || !errors.Is(wrongs[1], ErrTruncated) || !errors.Is(wrongs[2], ErrDamaged) || state(f) != "/registry/a=old /registry/a@4" {
		t.Errorf("%v, %s", wrongs, state(f))
	}
}

func TestForget(t *testing.T) {
	file, hash := restored(t, 4, "/registry/a")
	f := newFSM()
	if _, err := f.Preload(bytes.NewReader(file[:len(file)-1])); !errors.Is(err, ErrTruncated) || f.Preloaded(hash) {
		t.Error(err)
	}
	if _, err := f.Preload(bytes.NewReader(file)); err != nil || !f.Preloaded(hash) {
		t.Error(err)
	}
	f.Forget("other")
	if !f.Preloaded(hash) {
		t.Error("another file was forgotten")
	}
	if f.Forget(hash); f.Preloaded(hash) {
		t.Error("not forgotten")
	}
}
