package dev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The namespaces that a node has for itself, by their names in /proc/PID/ns.
// Entered in this order: from inside the mount namespace the others' files
// would not be seen.
var namespaces = []struct {
	name string
	flag int
}{
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"uts", unix.CLONE_NEWUTS},
	{"net", unix.CLONE_NEWNET},
	{"mnt", unix.CLONE_NEWNS},
}

// onThread runs fn on a thread that is thrown away afterwards, so that fn may
// change its namespaces. Goroutines that fn starts are elsewhere.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread stands for the process in /proc: spare it.
			inner := make(chan error, 1)
			go func() { inner <- onThread(fn) }()
			err := <-inner
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// inside runs fn on a thread in the named namespaces of a node; processes that
// fn starts are in them too.
func (p place) inside(node string, names []string, fn func() error) error {
	return onThread(func() error {
		if err := p.enter(node, names); err != nil {
			return err
		}
		return fn()
	})
}

var allNamespaces = []string{"cgroup", "uts", "net", "mnt"}

// enter moves the thread for good.
func (p place) enter(node string, names []string) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	var flags []int
	for _, n := range namespaces {
		for _, want := range names {
			if n.name != want {
				continue
			}
			fd, err := unix.Open(p.pin(node, n.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("%s has no %s namespace: %w", node, n.name, err)
			}
			fds, flags = append(fds, fd), append(flags, n.flag)
		}
	}
	for i, fd := range fds {
		if flags[i] == unix.CLONE_NEWNS {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave the shared working directory: %w", err)
			}
		}
		if err := unix.Setns(fd, flags[i]); err != nil {
			return fmt.Errorf("enter the namespaces of %s: %w", node, err)
		}
	}
	return nil
}

// preparePins makes the folder that keeps namespaces alive: a mount of our own
// that no other namespace gets a copy of, else a mount namespace could not be
// kept in it.
func (p place) preparePins() error {
	if err := os.MkdirAll(p.pins(), 0o700); err != nil {
		return err
	}
	if mounted, err := isMount(p.pins()); err != nil || mounted {
		return err
	}
	if err := unix.Mount("skiff-dev", p.pins(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", p.pins(), err)
	}
	if err := unix.Mount("", p.pins(), "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", p.pins(), err)
	}
	return nil
}

func isMount(dir string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Stat(dir, &a); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if err := unix.Stat(filepath.Dir(dir), &b); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
	}
	return a.Dev != b.Dev, nil
}

// keep pins a namespace, seen at path, as that of a node.
func (p place) keep(path, node, namespace string) error {
	pin := p.pin(node, namespace)
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(pin, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(path, pin, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("keep the %s namespace of %s: %w", namespace, node, err)
	}
	return nil
}

// kept says whether a namespace of a node is there.
func (p place) kept(node, namespace string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(p.pin(node, namespace), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// letGo drops the pins of a node; a namespace ends with its last process.
func (p place) letGo(node string) error {
	entries, err := os.ReadDir(filepath.Join(p.pins(), node))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pin := p.pin(node, e.Name())
		if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("let go of %s: %w", pin, err))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, os.RemoveAll(filepath.Join(p.pins(), node)))
	}
	return errors.Join(errs...)
}
