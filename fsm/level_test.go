package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// nextDir holds what a program with the tag nextlevel writes at its highest level.
const nextDir = "testdata/nextlevel"

func TestLevels(t *testing.T) {
	if len(levels) != MaxLevel-MinLevel+1 {
		t.Fatalf("%d levels from %d to %d", len(levels), MinLevel, MaxLevel)
	}
	for i := 1; i < len(levels); i++ {
		before, l := levels[i-1], levels[i]
		if l == before || l.Command < before.Command || l.Snapshot < before.Snapshot || l.RPC < before.RPC || l.Gossip < before.Gossip || l.Shim < before.Shim {
			t.Errorf("level %d is %+v after %+v", MinLevel+i, l, before)
		}
	}
	last := levels[len(levels)-1]
	if last.Command != MaxCommandVersion || last.Snapshot != FormatVersion {
		t.Errorf("the last level is %+v, this program knows commands of version %d and snapshots of version %d", last, MaxCommandVersion, FormatVersion)
	}
	for typ, v := range commandVersions {
		if v > last.Command {
			t.Errorf("commands of type %d are of no level", typ)
		}
	}
	for _, level := range []int{MinLevel - 1, MinLevel, MaxLevel, MaxLevel + 1, unreadable} {
		known := level >= MinLevel && level <= MaxLevel
		if err := CheckLevel(level); (err == nil) != known || err != nil && !errors.Is(err, ErrLevel) {
			t.Errorf("level %d: %v", level, err)
		}
	}
}

func TestLevelIsInTheState(t *testing.T) {
	f := newFSM()
	if f.Level() != 1 {
		t.Errorf("a new state is at level %d", f.Level())
	}
	before := f.Store().View()
	for i, want := range []error{nil, errors.New("another was faster")} {
		if r := apply(t, f, uint64(1+i), SetLevel(before, 1)); (r[0].Err == nil) != (want == nil) {
			t.Errorf("set it from the same view for the %d. time: %v", i+1, r[0].Err)
		}
	}
	apply(t, f, 3, put(LevelKey, "nonsense", Any))
	if err := CheckLevel(f.Level()); !errors.Is(err, ErrLevel) {
		t.Errorf("a level that can't be read: %v", err)
	}
}

// TestLaterStateIsRefused: a snapshot of a level that is not known is not
// restored, and an entry that is not known says so with its level.
func TestLaterStateIsRefused(t *testing.T) {
	f := newFSM()
	apply(t, f, 1, put("/a", "1", Any), put(LevelKey, fmt.Sprint(MaxLevel+1), 0))
	later := snapshot(t, f)
	g := newFSM()
	apply(t, g, 1, put("/b", "1", Any))
	err := g.Restore(io.NopCloser(bytes.NewReader(later)))
	if !errors.Is(err, ErrSnapshotVersion) || !errors.Is(err, ErrLevel) {
		t.Errorf("a snapshot of a later level: %v", err)
	}
	if _, ok := g.Store().View().Get("/b"); !ok {
		t.Error("the state has changed")
	}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, ErrUnknownCommand) || !errors.Is(err, ErrLevel) {
			t.Errorf("an entry of a later level: %v", err)
		}
	}()
	f.Apply(&raft.Log{Index: 2, Data: appendFrame([]byte{entryVersion}, 99, nil)})
}

func TestClear(t *testing.T) {
	f := newFSM()
	for i := range MaxBatchOps/1000 + 2 {
		var ops []Op
		for j := range 1000 {
			ops = append(ops, Op{Type: Put, Key: fmt.Sprintf("/old/%d/%d", i, j), Expect: Any})
		}
		apply(t, f, uint64(i+1), Batch(ops...))
	}
	apply(t, f, 50, put("/new", "", Any), put("/older", "", Any))
	view := f.Store().View()
	apply(t, f, 51, put("/old/0/0", "changed", Any))
	for _, r := range apply(t, f, 52, Clear(view, "/old/")[1:]...) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	if first := apply(t, f, 53, Clear(view, "/old/")[0]); first[0].Err == nil {
		t.Error("a key that has changed was deleted")
	}
	if r := apply(t, f, 54, Clear(f.Store().View(), "/old/")...); r[0].Err != nil || f.Store().View().Len() != 2 {
		t.Errorf("%v, %d keys are left", r[0].Err, f.Store().View().Len())
	}
}

// TestNextLevelFiles reads what the tag nextlevel writes: with it they are
// understood, without they are refused.
func TestNextLevelFiles(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(nextDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	_, err := DecodeEntry(read("entry.bin"))
	f := newFSM()
	restored := f.Restore(io.NopCloser(bytes.NewReader(read("snapshot.bin"))))
	if nextLevels > 0 {
		if err != nil || restored != nil || f.Level() != 2 || !bytes.Equal(snapshot(t, f), read("snapshot.bin")) {
			t.Errorf("entry %v, snapshot %v, level %d", err, restored, f.Level())
		}
		return
	}
	if !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("entry: %v", err)
	}
	if !errors.Is(restored, ErrSnapshotVersion) || !strings.Contains(restored.Error(), "version 2") {
		t.Errorf("snapshot: %v", restored)
	}
}
