package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Subpath opens a path inside a volume for mounting and makes it a directory
// when nothing is there. Symbolic links that lead out of the volume are
// refused by the kernel, at the time of the open, so a container that swaps
// links meanwhile gains nothing. The file must stay open until the mount is
// done; Source gives the path to mount.
func Subpath(volumePath, sub string) (*os.File, error) {
	fd, err := openBeneath(volumePath, sub)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeBeneath(volumePath, sub); err == nil {
			fd, err = openBeneath(volumePath, sub)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("subPath %q: %w", sub, err)
	}
	return os.NewFile(uintptr(fd), sub), nil
}

// ExistingSubpath is Subpath for volumes in which nothing is made, such as images.
func ExistingSubpath(volumePath, sub string) (*os.File, error) {
	fd, err := openBeneath(volumePath, sub)
	if err != nil {
		return nil, fmt.Errorf("subPath %q: %w", sub, err)
	}
	return os.NewFile(uintptr(fd), sub), nil
}

// ReadFile reads a regular file inside a volume, by the rules of Subpath. One of
// more than limit bytes is an error.
func ReadFile(volumePath, sub string, limit int64) ([]byte, error) {
	fd, err := openBeneath(volumePath, sub)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG { // opening a pipe would wait for ever
		return nil, errors.New("it is no regular file")
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return b, err
}

// Source is a path by which other processes reach an open file.
func Source(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

func openBeneath(root, sub string) (int, error) {
	r, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(r)
	for {
		fd, err := unix.Openat2(r, sub, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) { // something moved meanwhile
			continue
		}
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
			return -1, fmt.Errorf("%w: it leads out of the volume", err)
		}
		return fd, err
	}
}

// makeBeneath makes directories that look like the volume's own root.
func makeBeneath(root, sub string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	info, err := r.Stat(".")
	if err != nil {
		return err
	}
	mode := info.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky) | 0o750
	dir := ""
	for part := range strings.SplitSeq(filepath.Clean(sub), "/") {
		dir = filepath.Join(dir, part)
		err := r.Mkdir(dir, 0o750)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = r.Chmod(dir, mode) // whatever the umask is
		}
		if err != nil {
			return err
		}
	}
	return nil
}
