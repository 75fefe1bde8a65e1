package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeStateDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	onTmpfs := func(dir string) bool {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		return fs.Type == unix.TMPFS_MAGIC
	}
	base := t.TempDir()
	if onTmpfs(base) { // /tmp is in memory on many machines; the checkout seldom is
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		if base, err = os.MkdirTemp(wd, "state-"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		if onTmpfs(base) {
			t.Skip("every folder here is in memory")
		}
	}
	dir := filepath.Join(base, "a", "state")
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	for range 2 { // the second time it is there
		if err := makeStateDir(dir); err != nil {
			t.Fatal(err)
		}
		if !onTmpfs(dir) {
			t.Fatal("the state directory is on disk")
		}
		if err := os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := (&reset{dataDir: filepath.Join(base, "data"), stateDir: dir}).findMounts()
	if err != nil || len(mounts) != 1 || mounts[0] != dir {
		t.Errorf("reset finds the mounts %v, %v", mounts, err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("it was mounted twice, or not at all: %v", err)
	}
	if onTmpfs(dir) {
		t.Error("it was mounted twice")
	}

	used := filepath.Join(base, "used")
	if err := os.MkdirAll(filepath.Join(used, "p"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := makeStateDir(used); err != nil {
		t.Fatal(err)
	}
	if onTmpfs(used) {
		t.Error("what was there is hidden")
	}
}
