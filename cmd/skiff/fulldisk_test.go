package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/sys/unix"
)

// tmpfs mounts a small file system in memory.
func tmpfs(t *testing.T, size int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("skiff-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("can't mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fillDisk takes all space of a file system; the function that is returned gives
// it back.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := 1 << 20; chunk >= 512; chunk /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, chunk))
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk ended with %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestStartOnAFullDisk: a new server says what it lacks and leaves nothing that
// hinders the next start; one that was there serves what it has, and writes when
// there is room.
func TestStartOnAFullDisk(t *testing.T) {
	h := newHost(t)
	disk := tmpfs(t, 64<<20)
	h.dir = filepath.Join(disk, "data")
	free := fillDisk(t, disk)
	err := h.run(t, h.dir, func() { t.Error("a new server starts without any space") })
	t.Log(err)
	if err == nil || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), h.dir) {
		t.Errorf("a new server on a full disk: %v", err)
	}
	free()
	var want string
	if err := h.run(t, h.dir, func() { h.write(t, 0, 3); want = h.objects(t) }); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(h.dir, "raft", "reserve")); err != nil {
		t.Fatal(err)
	}
	free = fillDisk(t, disk)
	client := func() kubernetes.Interface {
		c, err := kubernetes.NewForConfig(h.client(t))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// It needs to write a little to lead: reads are served when there is room for
	// that, and before there is none it says so.
	go func() {
		time.Sleep(2 * time.Second)
		free()
	}()
	err = h.run(t, h.dir, func() {
		if got := h.objects(t); got != want {
			t.Errorf("it has\n%s\nwant\n%s", got, want)
		}
		end := time.Now().Add(20 * time.Second)
		for {
			_, err := client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Errorf("writes do not go on: %v", err)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStartOnAReadOnlyDisk: it is said at once, with the directory.
func TestStartOnAReadOnlyDisk(t *testing.T) {
	h := newHost(t)
	disk := tmpfs(t, 64<<20)
	h.dir = filepath.Join(disk, "data")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", disk, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	refused := func() {
		t.Helper()
		began := time.Now()
		err := h.run(t, h.dir, func() { t.Error("it starts") })
		t.Log(err)
		if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), disk) || time.Since(began) > 10*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	}
	refused() // new
	remount(0)
	var want string
	if err := h.run(t, h.dir, func() { h.write(t, 0, 2); want = h.objects(t) }); err != nil {
		t.Fatal(err)
	}
	remount(unix.MS_RDONLY)
	refused() // with a state
	remount(0)
	if err := h.run(t, h.dir, func() {
		if got := h.objects(t); got != want {
			t.Errorf("it has\n%s\nwant\n%s", got, want)
		}
	}); err != nil {
		t.Error(err)
	}
}
