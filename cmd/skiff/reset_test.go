package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A data directory that is reached through a link has its mounts, and its data,
// where the link leads.
func TestResetFollowsLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for name, path := range map[string]string{"the directory is a link": "link", "a parent is one": "parent/data"} {
		t.Run(name, func(t *testing.T) {
			base, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			data := filepath.Join(base, "disk", "data")
			mount := filepath.Join(data, "node", "volume")
			if err := os.MkdirAll(mount, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("disk/data", filepath.Join(base, "link")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("disk", filepath.Join(base, "parent")); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("skiff", mount, "tmpfs", 0, "mode=0700"); err != nil {
				t.Fatal(err)
			}
			mounted := true
			unmount := func() {
				if mounted {
					mounted = false
					if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				}
			}
			defer unmount()
			r := &reset{dataDir: filepath.Join(base, path), stateDir: filepath.Join(base, "state")}
			if mounts, err := r.findMounts(); err != nil || !slices.Equal(mounts, []string{mount}) {
				t.Errorf("mounts %v, %v; want %s", mounts, err, mount)
			}
			unmount()
			if err := r.deleteData(); err != nil {
				t.Error(err)
			}
			for _, p := range []string{data, r.dataDir} {
				if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", p, err)
				}
			}
			if _, err := os.Stat(filepath.Join(base, "disk")); err != nil {
				t.Errorf("what the directory was in: %v", err)
			}
			if mounts, err := r.findMounts(); err != nil || len(mounts) > 0 {
				t.Errorf("without data: %v, %v", mounts, err)
			}
		})
	}
}
