package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// paceStep is how much is written before the disk is told to begin with it.
// Twice as much may be waiting.
const paceStep = 4 << 20

// Pace keeps little of a large file that is being written, from its start to its
// end, waiting for the disk. Else the kernel gathers hundreds of megabytes, and
// whoever syncs a file on the same disk meanwhile, such as the log of a server,
// waits for all of them. It makes nothing last: that is Sync's business. Where the
// file system can't be told it does nothing. Not for concurrent use.
type Pace struct {
	f        *os.File
	n        int64
	from, to int64 // what the disk was told to begin with last
}

// NewPace is for a file that is written from its start on; f may be another
// descriptor of it than the one that writes.
func NewPace(f *os.File) *Pace { return &Pace{f: f} }

// Wrote is called after n more bytes were written. It waits for the disk.
func (p *Pace) Wrote(n int) error {
	p.n += int64(n)
	if p.n-p.to < paceStep {
		return nil
	}
	fd := int(p.f.Fd())
	var err error
	if p.to > p.from { // a length of 0 would be the whole file
		err = unix.SyncFileRange(fd, p.from, p.to-p.from, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	p.from, p.to = p.to, p.n
	if err == nil {
		err = unix.SyncFileRange(fd, p.from, p.to-p.from, unix.SYNC_FILE_RANGE_WRITE)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) {
		return nil
	}
	return err
}
