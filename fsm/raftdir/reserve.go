package raftdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reserve is a file that takes up space so that it can be given to the log when
// there is no other. Its state is lazily mended by those who ask: nothing runs
// while nobody writes.
type reserve struct {
	path string
	size int64

	mu   sync.Mutex
	full bool      // the space is given up, or could not be had
	next time.Time // when to try again
}

// retryEvery limits how often a full disk is asked for space.
const retryEvery = 200 * time.Millisecond

// acquire takes the space.
func (r *reserve) acquire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.full = r.allocate() != nil
	r.next = time.Now().Add(retryEvery)
}

// release gives the space up. It returns false when there was none left to give.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := os.Stat(r.path)
	had := err == nil && st.Size() > 0
	r.full, r.next = true, time.Now().Add(retryEvery)
	return os.Remove(r.path) == nil && had
}

// check returns nil when the reserve is there, and tries now and then to take it
// again when it is not.
func (r *reserve) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return nil
	}
	if now := time.Now(); now.After(r.next) {
		r.next = now.Add(retryEvery)
		if r.allocate() == nil {
			r.full = false
			return nil
		}
	}
	return fmt.Errorf("%w: %d MiB must be free beside %s", ErrNoSpace, r.size>>20, r.path)
}

// allocate makes the file take its full size on the disk, or removes it.
func (r *reserve) allocate() (err error) {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(r.path)
		}
	}()
	if err := f.Truncate(r.size); err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, r.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = io.CopyN(f, zeros{}, r.size)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
