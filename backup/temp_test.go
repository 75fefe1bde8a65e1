package backup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLeftovers of killed processes are removed, and what another writes is not.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	busy, err := tempFile(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	busyDir, release, err := tempDir(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	// A killed process holds no lock.
	for _, name := range []string{".s.tmp-1", ".other.tmp-1", "s.tmp-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, ".s.tmp-2", "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, ".s.tmp-3")); err != nil {
		t.Fatal(err)
	}
	if _, err := Save(t.Context(), source(sample(t, 3)), path, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	got := names(t, dir)
	for name, want := range map[string]bool{
		filepath.Base(busy.Name()): true, filepath.Base(busyDir): true, ".other.tmp-1": true, "s.tmp-1": true,
		".s.tmp-3": true, "s": true, ".s.tmp-1": false, ".s.tmp-2": false,
	} {
		if slices.Contains(got, name) != want {
			t.Errorf("%s there: %v, want %v: %v", name, !want, want, got)
		}
	}
	release()
	if _, err := os.Stat(busyDir); err == nil {
		t.Error("release left the directory")
	}
}

func TestSaveIn(t *testing.T) {
	dir := t.TempDir()
	path, info, err := SaveIn(t.Context(), source(sample(t, 30)), dir, SaveOptions{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	n, ok := ParseName(filepath.Base(path))
	if !ok || n.Revision != info.Revision || n.Cluster != "testclus" || !n.Compressed || n.Encrypted {
		t.Errorf("saved as %s: %+v", path, n)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("there is %v", got)
	}
	if _, _, err := SaveIn(t.Context(), source(sample(t, 1)), filepath.Join(dir, "none"), SaveOptions{}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("into nothing: %v", err)
	}
}
