package static

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxManifest = 10 << 20 // bytes, as upstream
	settled     = 2 * time.Second
)

// errBusy: somebody is writing the file.
var errBusy = errors.New("the file is being written")

// fileID changes whenever a file's contents do.
type fileID struct {
	dev, ino       uint64
	size           int64
	changed, wrote int64
}

func identify(info fs.FileInfo) fileID {
	id := fileID{size: info.Size(), wrote: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino, id.changed = st.Dev, st.Ino, st.Ctim.Nano()
	}
	return id
}

// readWhole reads a file that nobody writes meanwhile: half of a manifest is
// often a good manifest of less. While somebody does, it returns errBusy.
func readWhole(path string) ([]byte, fileID, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not hold us up
	if err != nil {
		return nil, fileID{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileID{}, err
	}
	before := identify(info)
	if !info.Mode().IsRegular() {
		return nil, before, errors.New("not a regular file")
	}
	if info.Size() > maxManifest {
		return nil, before, fmt.Errorf("%d bytes are more than a manifest may have (%d)", info.Size(), maxManifest)
	}
	if written(f, info) {
		return nil, before, errBusy
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, before, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, before, err
	}
	after := identify(info)
	after.changed = before.changed // by another name, or other rights
	if after != before || written(f, info) {
		return nil, before, errBusy
	}
	return b, before, nil
}

// written says that somebody has the file open for writing. The kernel gives no
// read lease on such a file. Where there are no leases, a file that has just
// changed counts as one that is still being written.
func written(f *os.File, info fs.FileInfo) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK) // closing the file does it too
		return false
	case errors.Is(err, unix.EAGAIN):
		return true
	}
	age := time.Since(info.ModTime())
	return age >= 0 && age < settled
}
