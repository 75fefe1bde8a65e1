package shimproto

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Pidfd refers to one process for good: it never means another process that
// got the same number later. Waiting on it occupies no thread.
type Pidfd struct{ f *os.File }

// OpenPidfd opens a process. A process that is gone gives unix.ESRCH.
func OpenPidfd(pid int) (*Pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return &Pidfd{os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))}, nil
}

// Wait returns when the process has ended (and possibly waits to be reaped),
// or with os.ErrClosed after Close.
func (p *Pidfd) Wait() error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	if err := rc.Read(exited); err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, err) // it has no other failure
	}
	return nil
}

// Exited reports whether the process has ended.
func (p *Pidfd) Exited() bool {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return true
	}
	var gone bool
	if err := rc.Control(func(fd uintptr) { gone = exited(fd) }); err != nil {
		return true
	}
	return gone
}

func exited(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return n > 0 || err != nil
	}
}

// Signal sends a signal to exactly this process; os.ErrClosed after Close.
func (p *Pidfd) Signal(sig unix.Signal) error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, err) // it has no other failure
	}
	return serr
}

// Close wakes Wait and releases the descriptor.
func (p *Pidfd) Close() error { return p.f.Close() }
