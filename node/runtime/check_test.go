package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCheckSeesAReadOnlyDisk: also one that the kernel has made read-only under
// those who use it, which access(2) does not tell.
func TestCheckSeesAReadOnlyDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	image, disk := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, disk}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r := &Runtime{cfg: Config{StateDir: t.TempDir(), DataDir: disk}, shim: "/bin/sh"}
	if err := os.Mkdir(r.root(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "abort"); err != nil {
		t.Skipf("can't make a file system fail here: %v", err)
	}
	if err := r.Check(); !errors.Is(err, unix.EROFS) {
		t.Errorf("on a disk that failed: %v", err)
	}
}
