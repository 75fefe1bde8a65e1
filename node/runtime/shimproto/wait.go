package shimproto

import (
	"fmt"
	"os"
	"strconv"
	"strings"

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
	return rc.Read(func(fd uintptr) bool { return exited(fd) })
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

// Signal sends a signal to exactly this process.
func (p *Pidfd) Signal(sig unix.Signal) error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return serr
}

// Close wakes Wait and releases the descriptor.
func (p *Pidfd) Close() error { return p.f.Close() }

// StartTime is a process's start in clock ticks since boot; with the PID it
// names a process for the time of one boot.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	s := string(b)
	i := strings.LastIndexByte(s, ')') // the command name may hold anything
	f := strings.Fields(s[i+1:])
	const startTime = 22 - 3 // field 22, counted from field 3
	if i < 0 || len(f) <= startTime {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	return strconv.ParseUint(f[startTime], 10, 64)
}
