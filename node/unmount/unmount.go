// Package unmount takes away mounts without harm to what they show: that a folder
// is deleted must not delete what somebody has mounted in it, and a copy of the
// host's mounts must not take these with it.
package unmount

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Tree unmounts what is mounted at path and below, and only there: a bind of a
// shared mount is its peer, so that mounts below it, which came with it or since,
// would take with them those of the host that they were copied from. No error when
// nothing is mounted there.
func Tree(path string) error {
	if err := unix.Mount("", path, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // nothing is mounted there
		}
		return fmt.Errorf("make %s private: %w", path, err)
	}
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// Below unmounts everything in a directory, and what is mounted on it. It fails
// when something stays mounted, so that the directory can be deleted safely when it
// does not.
func Below(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // the kernel lists mounts by their real paths
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for i := range infos { // parents first: they make what is below them private
		if err := Tree(infos[i].Mountpoint); err != nil {
			return err
		}
	}
	if len(infos) == 0 {
		return nil
	}
	if infos, err = mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if len(infos) > 0 {
		return fmt.Errorf("%s is still mounted", infos[0].Mountpoint)
	}
	return nil
}
