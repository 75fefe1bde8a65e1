package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPropagationNeedsSharedMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	mounted := func(name string, flags ...uintptr) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", p, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		for _, f := range flags {
			if err := unix.Mount("", p, "", f, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(p+"/sub", 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	private := mounted("private", unix.MS_PRIVATE)
	shared := mounted("shared", unix.MS_SHARED)
	slave := filepath.Join(dir, "slave")
	if err := os.Mkdir(slave, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(shared, slave, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(slave, unix.MNT_DETACH) })
	if err := unix.Mount("", slave, "", unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(private, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		mode Propagation
		want string
	}{
		{private, PropagationPrivate, ""},
		{private + "/sub", PropagationHostToContainer, "is mounted on \"" + private + "\" but it is not a shared or slave mount; on the host, mount --make-rshared " + private},
		{private, PropagationBidirectional, "not a shared mount"},
		{dir + "/link/sub", PropagationBidirectional, "not a shared mount"},
		{slave + "/sub", PropagationHostToContainer, ""},
		{slave, PropagationBidirectional, "not a shared mount"},
		{shared, PropagationHostToContainer, ""},
		{shared + "/sub", PropagationBidirectional, ""},
		{dir + "/gone", PropagationBidirectional, "no such file"},
	} {
		err := checkPropagation(Mount{Destination: "/v", HostPath: tc.path, Propagation: tc.mode})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s, %d: %v, want %q", tc.path, tc.mode, err, tc.want)
		}
	}
}
