package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// Bits that the group of a volume gets.
const (
	groupFile = 0o660
	groupDir  = 0o110 | unix.S_ISGID
)

func groupID(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Gid), nil
}

// setOwnership gives all that is in a volume to a group, which may then read and
// write it; new files inherit the group. With OnRootMismatch nothing is done
// when the volume's root has the group and the rights already.
//
// Each file is opened and changed by its descriptor, so a container that swaps
// files for links meanwhile cannot have others changed. What is mounted inside
// is walked too.
func setOwnership(ctx context.Context, root string, group int64, policy *v1.PodFSGroupChangePolicy) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	if policy != nil && *policy == v1.FSGroupChangeOnRootMismatch {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return &os.PathError{Op: "stat", Path: root, Err: err}
		}
		const want = groupFile | groupDir
		if int64(st.Gid) == group && st.Mode&want == want {
			return nil
		}
	}
	// The root comes last: a walk that was cut short leaves a mismatch.
	if err := ownContents(ctx, fd, root, int(group)); err != nil {
		return err
	}
	return own(fd, root, int(group))
}

// ownContents changes what is in an open directory; name is for errors.
func ownContents(ctx context.Context, dir int, name string, group int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ownEntry(ctx, fd, n, name+"/"+n, group); err != nil {
			return err
		}
	}
	return nil
}

func ownEntry(ctx context.Context, dir int, name, path string, group int) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // it went while we looked
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := ownContents(ctx, fd, path, group); err != nil {
			return err
		}
	}
	return own(fd, path, group)
}

// own changes one file that was opened with O_PATH.
func own(fd int, path string, group int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Fchownat(fd, "", -1, group, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	mode := st.Mode & 0o7777
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return nil
	case unix.S_IFDIR:
		mode |= groupFile | groupDir
	default:
		mode |= groupFile
	}
	// chmod does not take such a descriptor itself before Linux 6.6.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}
