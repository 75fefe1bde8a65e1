//go:build nextlevel

package fsm

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// TestNextLevel raises the level: from then on there are the new command and the
// new form of snapshots, and before there are not.
func TestNextLevel(t *testing.T) {
	f := newFSM()
	apply(t, f, 1, put("/old/a", "1", Any), put("/old/b", "1", Any), put("/keep", "1", Any))
	before := snapshot(t, f)
	if before[len(snapshotMagic)] != 1 {
		t.Error("a snapshot at level 1 is of another format")
	}
	if c := Clear(f.Store().View(), "/old/"); len(c) != 1 || c[0].further != nil {
		t.Errorf("at level 1: %+v", c)
	}
	apply(t, f, 2, SetLevel(f.Store().View(), 2))
	c := Clear(f.Store().View(), "/old/")
	e := entry(t, c...)
	if len(c) != 1 || c[0].further == nil || CommandVersion(e[1:]) != 2 || CheckCommand(e[1:]) != nil {
		t.Fatalf("at level 2: %+v", c)
	}
	if r := apply(t, f, 3, c...); r[0].Err != nil || r[0].Revision != 7 || f.Store().View().Len() != 2 {
		t.Errorf("%+v, %d keys", r[0], f.Store().View().Len())
	}
	after := snapshot(t, f)
	if after[len(snapshotMagic)] != 2 {
		t.Error("a snapshot at level 2 is of the old format")
	}
	if golden.Update(t) {
		if err := os.MkdirAll(nextDir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"entry.bin": e, "snapshot.bin": after} {
			if err := os.WriteFile(filepath.Join(nextDir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	g := newFSM()
	for _, s := range [][]byte{before, after} { // the old form is read as well
		if err := g.Restore(io.NopCloser(bytes.NewReader(s))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshot(t, g), s) {
			t.Error("the snapshot of what was restored differs")
		}
	}
}
