package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// Who interrupts a start does not know how far it is: what it mounts must stay, or a
// container could get an empty folder in place of its volume.
func TestSubpathStaysWhileAStartGoesOn(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(vol)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mount := []Mount{{Destination: "/v", HostPath: fmt.Sprintf("/proc/self/fd/%d", f.Fd())}}
	// The shim takes requests and does not get to them.
	if err := unix.Kill(s.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	c := e.sh("ls /v; exec sleep 1000")
	c.Mounts = mount
	if err := s.StartContainer(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("the start was not interrupted:", err)
	}
	left, err := filepath.Glob(filepath.Join(s.dir, bindsName, "*", "data"))
	if err != nil || len(left) != 1 {
		t.Errorf("%q, %v: the volume is gone while the container may be starting", left, err)
	}
	if err := unix.Kill(s.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Where there is an answer nothing is left, whatever it says.
	c = e.container("nosuch")
	c.Mounts = mount
	if err := s.StartContainer(context.Background(), c); err == nil {
		t.Error("it started")
	}
	if entries, err := os.ReadDir(filepath.Join(s.dir, bindsName)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := s.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(vol, "data")); err != nil {
		t.Error("the volume's files went with the sandbox:", err)
	}
}
