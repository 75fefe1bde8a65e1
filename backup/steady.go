package backup

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// steadyStep is how much is written before the disk is told to begin with it.
// Twice as much may be waiting.
const steadyStep = 4 << 20

// steady writes a file so that little of it is ever waiting for the disk. Else
// the kernel gathers hundreds of megabytes, and whoever syncs a file on the same
// disk meanwhile, such as the log of a server, waits for all of them.
type steady struct {
	f        *os.File
	n        int64
	from, to int64 // what the disk was told to begin with last
}

func (s *steady) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.n += int64(n)
	if err == nil && s.n-s.to >= steadyStep {
		err = s.step()
	}
	return n, err
}

func (s *steady) step() error {
	fd := int(s.f.Fd())
	var err error
	if s.to > s.from { // a length of 0 would be the whole file
		err = unix.SyncFileRange(fd, s.from, s.to-s.from, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	s.from, s.to = s.to, s.n
	if err == nil {
		err = unix.SyncFileRange(fd, s.from, s.to-s.from, unix.SYNC_FILE_RANGE_WRITE)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) {
		return nil // the file system can't; the sync at the end can
	}
	return err
}
