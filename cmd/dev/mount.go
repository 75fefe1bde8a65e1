package dev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, target, err)
	}
	return nil
}

// unmountBelow unmounts what is mounted below dir in the thread's mount
// namespace, and dir itself too if asked to.
func unmountBelow(dir string, self bool) error {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, m := range slices.Backward(infos) {
		if !strings.HasPrefix(m.Mountpoint, dir+"/") && !(self && m.Mountpoint == dir) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// prepareMounts makes the mounts of a node. To be called on a thread inside all
// of its namespaces, right after they were made; hs are the machine's
// hierarchies, device is empty where the data directory is no disk of its own.
func (p place) prepareMounts(hs []hierarchy, dataDir, device string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	// Copies of other nodes' pins would keep those nodes alive.
	if err := unmountBelow(runDir, false); err != nil {
		return err
	}
	if err := mountCgroups(hs); err != nil {
		return err
	}
	// What a host has in memory is the node's own, and gone with its power.
	if err := os.MkdirAll("/run/skiff", 0o700); err != nil {
		return err
	}
	if err := unmountBelow("/run/skiff", true); err != nil {
		return err
	}
	if err := mount("skiff", "/run/skiff", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return err
	}
	if device != "" {
		if err := mount(device, dataDir, "ext4", unix.MS_NOATIME, ""); err != nil {
			return err
		}
		_ = os.Remove(filepath.Join(dataDir, "lost+found"))
	}
	// As systemd has it on hosts: pods may ask for mount propagation. No other
	// node is a peer, since all was private before.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with containers: %w", err)
	}
	return nil
}
