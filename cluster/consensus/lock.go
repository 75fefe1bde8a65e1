package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DirLock keeps other processes out of a data dir. The kernel drops it when the
// process ends, however it ends.
type DirLock struct {
	dir  string
	file *os.File
}

// LockDir locks a data dir through the file "lock" in it. If another process
// holds it the error is ErrLocked.
func LockDir(dir string) (*DirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock data dir: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data dir: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		by := "another process"
		if pid := readPID(f); pid > 0 {
			by = fmt.Sprintf("process %d", pid)
		}
		return nil, fmt.Errorf("%w: %s is locked by %s; stop it first, or use another --data-dir", ErrLocked, dir, by)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The number is for the message above only; without room for it the lock
	// holds just as well.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &DirLock{dir: dir, file: f}, nil
}

// Unlock releases the lock. It is safe to call twice. The file stays: removing
// it would let two processes each lock a file of that name.
func (l *DirLock) Unlock() { l.file.Close() }

func readPID(f *os.File) int {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}
