package backup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// A snapshot is restored into a directory that holds what belongs to no member, and
// leaves that alone. One that was interrupted is begun anew.
func TestRestoreIntoADirectory(t *testing.T) {
	path, _ := save(t, sample(t, 30))
	dir := t.TempDir()
	for _, other := range []string{"node", "raft.epoch-1"} {
		if err := os.Mkdir(filepath.Join(dir, other), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Restore(t.Context(), path, dir, RestoreOptions{NodeID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(t, dir), " "); got != "node node-id pki raft raft.epoch-1" {
		t.Errorf("there is %s", got)
	}
	if e, err := raftdir.LoadEpoch(dir); err != nil || !e.Same(r.Epoch) || !raftdir.Unasked(dir) {
		t.Errorf("epoch %s, %v", e, err)
	}
	if _, err := Restore(t.Context(), path, dir, RestoreOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}

	// Killed after each of the moves.
	for n := range len(made) + 1 {
		dir := t.TempDir()
		if err := raftdir.SetRestoring(dir, true); err != nil {
			t.Fatal(err)
		}
		for _, name := range made[:n] {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Restore(t.Context(), path, dir, RestoreOptions{NodeID: "b", DryRun: true}); err != nil || !raftdir.Restoring(dir) {
			t.Errorf("a dry run: %v", err)
		}
		if _, err := Restore(t.Context(), path, dir, RestoreOptions{NodeID: "b"}); err != nil {
			t.Fatalf("after %d moves: %v", n, err)
		}
		if raftdir.Restoring(dir) {
			t.Error("it is still under way")
		}
		if b, err := os.ReadFile(filepath.Join(dir, "node-id")); err != nil || string(b) != "b\n" {
			t.Errorf("after %d moves: %q, %v", n, b, err)
		}
		if got := strings.Join(names(t, dir), " "); got != "node-id pki raft" {
			t.Errorf("after %d moves there is %s", n, got)
		}
	}
}
