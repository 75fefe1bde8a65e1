package image

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLastUse(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, func(c *Config) { c.Dir = dir })
	ctx := context.Background()
	img := add(t, s, "app:1", false, plainLayer(t, entry{name: "a", body: "a"}))
	if got := s.LastUsed(img); !got.Equal(img.PulledAt) {
		t.Errorf("never used, but last at %s; pulled at %s", got, img.PulledAt)
	}
	if _, err := s.Mount(ctx, img.ID, "k"); err != nil {
		t.Fatal(err)
	}
	if in, err := s.InUse(); err != nil || !in[img.ID] {
		t.Errorf("in use: %v, %v", in, err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.usePath(img.ID), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount("k"); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.cfg) // a restart
	if err != nil {
		t.Fatal(err)
	}
	if got := again.LastUsed(img); time.Since(got) > time.Minute {
		t.Errorf("the end of its container is no use of an image: %s", got)
	}
	if in, err := again.InUse(); err != nil || len(in) != 0 {
		t.Errorf("in use: %v, %v", in, err)
	}
	if _, err := s.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "used")); err != nil || len(left) != 0 {
		t.Errorf("left of a removed image: %v, %v", left, err)
	}
}

// TestPruneOnAFullDisk is about a disk without room for the new index.
func TestPruneOnAFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, func(c *Config) { c.Dir = dir })
	ctx := context.Background()
	body := make([]byte, 300<<10)
	_, _ = rand.Read(body)
	shared := plainLayer(t, entry{name: "s", body: "s"})
	kept := add(t, s, "kept:1", true, shared)
	img := add(t, s, "app:1", false, shared, plainLayer(t, entry{name: "a", body: string(body)}))
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.WriteString(strings.Repeat("x", 4096)); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
	}
	if err := s.Pin("app:1", true); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	gone, err := s.Prune(ctx, nil)
	if err != nil || len(gone) != 1 || gone[0].ID != img.ID {
		t.Fatalf("pruned %v, %v", gone, err)
	}
	if s.hasLayer(img.Layers[1]) || !s.hasLayer(kept.Layers[0]) {
		t.Error("the layers of what was pruned must go, others stay")
	}
	if _, ok := s.Get("app:1"); ok {
		t.Error("the image is still there")
	}
	if _, err := s.Mount(ctx, kept.ID, "k"); err != nil {
		t.Error("there is room now:", err)
	}
}
