//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// devCLI runs skiff dev as a user does.
func devCLI(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), shared.binary, append([]string{"dev"}, args...)...)
	cmd.Env = append(os.Environ(), "SKIFF_DEV_DIR="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("skiff dev %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}

// TestDevCommands: what the commands of skiff dev say and do, on a cluster
// beside another one.
func TestDevCommands(t *testing.T) {
	tmp := t.TempDir()
	before := devInventory(t, tmp)
	dir, other := filepath.Join(tmp, "one"), filepath.Join(tmp, "other")
	for _, d := range []string{dir, other} {
		t.Cleanup(func() { _, _ = devCLI(t, d, "down") })
	}
	good := func(part string, args ...string) string {
		t.Helper()
		out, err := devCLI(t, dir, args...)
		if err == nil {
			err = wants(out, part)
		}
		if err != nil {
			t.Error(err)
		}
		return out
	}
	bad := func(code int, part string, args ...string) {
		t.Helper()
		_, err := devCLI(t, dir, args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != code {
			t.Errorf("skiff dev %v: %v, want exit code %d", args, err, code)
		} else if err := wants(err.Error(), part); err != nil {
			t.Error(err)
		}
	}
	bad(1, "no cluster is up here", "status")
	bad(2, "--servers 0", "up", "--servers", "0")
	bad(2, "--subnet", "up", "--subnet", "10.0.0.0/8")
	bad(1, "image folder", "up", "--image-dir", "/nowhere")
	good("nothing was removed", "down")

	good("KUBECONFIG", "up", "--servers", "1", "--agents", "0", "--disk-size", "1Gi")
	if _, err := devCLI(t, other, "up", "--servers", "1", "--agents", "0", "--plain-disks"); err != nil {
		t.Fatal(err)
	}
	if _, err := devCLI(t, other, "stall-disk", "server-1"); err == nil {
		t.Error("a plain disk was stalled")
	}
	bad(1, "is up in", "up")
	bad(1, `no node "nope"`, "kill", "nope")
	bad(2, "name one node", "kill")
	bad(2, "--signal", "kill", "server-1", "--signal", "HUP")
	bad(1, "up already", "start", "server-1")
	bad(1, "both sides", "partition", "server-1", "server-1")
	good("server-1", "exec", "server-1", "--", "hostname")
	bad(7, "", "exec", "server-1", "--", "sh", "-c", "exit 7")
	good("running", "status")
	good(`"state": "running"`, "status", "-o", "json")

	path := strings.TrimSpace(good("kubeconfig", "kubeconfig"))
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	good("", "kill", "server-1", "--signal", "STOP")
	eventually(t, 10*time.Second, func() error { // a process stops when it is its turn
		out, err := devCLI(t, dir, "status")
		if err == nil {
			err = wants(out, "paused")
		}
		return err
	})
	bad(1, "is paused", "start", "server-1")
	good("", "kill", "server-1")
	good("stopped", "status")
	good("", "start", "server-1")
	good("", "stall-disk", "server-1")
	good("stalled", "status")
	bad(1, "stalled already", "stall-disk", "server-1")
	good("", "kill", "server-1", "--host")
	good("off", "status")
	good("", "start", "server-1")
	good("", "partition", "server-1", "host")
	good("nothing passes from host to server-1", "status")
	good("", "stall-disk", "server-1")

	good("", "down")
	if out, err := devCLI(t, other, "status"); err != nil || !strings.Contains(out, "running") {
		t.Errorf("the other cluster after down: %v\n%s", err, out)
	}
	if _, err := devCLI(t, other, "down"); err != nil {
		t.Error(err)
	}
	nothingLeft(t, before, tmp)
}

// TestDevDownAfterCrash: whatever an interrupted up has made, down removes.
func TestDevDownAfterCrash(t *testing.T) {
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "cluster")
	t.Cleanup(func() { _, _ = devCLI(t, dir, "down") })
	before := devInventory(t, tmp)
	for i, after := range []time.Duration{60, 120, 200, 300, 500, 900} {
		cmd := exec.Command(shared.binary, "dev", "up", "--data-dir", dir, "--servers", "2", "--agents", "1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		sig := os.Interrupt
		if i%2 == 0 {
			sig = os.Kill
		}
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		if i == 4 { // even the folder is gone
			_ = os.Remove(filepath.Join(dir, "dev.json"))
		}
		if _, err := devCLI(t, dir, "down"); err != nil {
			t.Fatalf("after %d ms: %v", after, err)
		}
		t.Logf("interrupted after %d ms", after)
		nothingLeft(t, before, tmp)
	}
}

// nothingLeft wants no more on the machine than there was. The kernel takes some
// things away a moment after it was told to.
func nothingLeft(t *testing.T, before []string, dir string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		var left []string
		for _, line := range devInventory(t, dir) {
			if !slices.Contains(before, line) {
				left = append(left, line)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left behind: %s", strings.Join(left, "\n"))
		}
		return nil
	})
}

// devInventory lists what clusters below dir, or any, have on this machine.
func devInventory(t *testing.T, dir string) (out []string) {
	t.Helper()
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if err := network(add); err != nil {
		t.Fatal(err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		add("mount %s", m.Mountpoint)
	}
	for _, root := range []string{"/run/skiff-dev", dir, "/sys/fs/cgroup"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && root == "/sys/fs/cgroup" && !strings.Contains(p, "/skiff-dev") {
				return nil
			}
			if err == nil && (d.IsDir() || root != "/sys/fs/cgroup") {
				add("file %s", p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(b), dir) {
			add("loop device %s of %s", l, b)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), "/skiff-dev/") {
			// What has ended and waits for its parent has no command line.
			if name, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline")); len(name) > 0 {
				add("process %s %q", p, name)
			}
		}
	}
	return out
}
