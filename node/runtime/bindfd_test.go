package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/unmount"
)

// A volume may hold other mounts of the host, and most hosts share their mounts:
// what is unmounted after the start of a container is only what was mounted for it.
func TestSubpathLeavesTheHostsMountsAlone(t *testing.T) {
	e := newEnv(t)
	disk := t.TempDir()
	mount := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	mount(disk)
	if err := unix.Mount("", disk, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(disk, "sub", "inner")
	mount(inner)
	for _, f := range []string{filepath.Join(disk, "sub", "outside"), filepath.Join(inner, "inside")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := e.sandbox()
	for _, p := range []Propagation{PropagationPrivate, PropagationHostToContainer, PropagationBidirectional} {
		f, err := os.Open(filepath.Join(disk, "sub"))
		if err != nil {
			t.Fatal(err)
		}
		c := e.sh("ls /v")
		c.Mounts = []Mount{{Destination: "/v", HostPath: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Propagation: p}}
		if got := e.output(s, c); got != "inner\noutside\n" {
			t.Errorf("propagation %d: the container sees %q", p, got)
		}
		f.Close()
		if _, err := os.Stat(filepath.Join(inner, "inside")); err != nil {
			t.Errorf("propagation %d: a mount of the host is gone: %v", p, err)
		}
	}
	// What a killed skiff left is taken away like that, too.
	left := filepath.Join(e.state, "left")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(disk, "sub"), left, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := unmount.Below(e.state + "/left"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(inner, "inside")); err != nil {
		t.Errorf("a mount of the host is gone: %v", err)
	}
}
