package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestSweepKeepsWhatCannotBeUnmounted: of a pod that is no more, files are deleted
// only when nothing is mounted among them any longer.
func TestSweepKeepsWhatCannotBeUnmounted(t *testing.T) {
	w := newWorld(t)
	w.stop()
	file, mem := filepath.Join(w.dir, "pods", "uid-old", "volumes", "v", "file"), filepath.Join(w.dir, "mem")
	// A file in place of the folder of volumes in memory makes unmounting fail.
	err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600), os.RemoveAll(mem), os.WriteFile(mem, nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	w.start(nil)
	w.stop()
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("deleted: %v", err)
	}
	if err := os.Remove(mem); err != nil {
		t.Fatal(err)
	}
	w.start(nil)
	if _, err := os.Stat(filepath.Join(w.dir, "pods", "uid-old")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("not deleted by the next start: %v", err)
	}
}
