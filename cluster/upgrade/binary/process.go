package binary

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names one process for all time: its number alone may be given to
// another.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the machine's start
	Boot  string `json:"boot"`
}

// findProcess gives the process that has the number now; none that has ended.
func findProcess(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	// The name, in parentheses, may hold anything.
	f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	if len(f) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	if f[0] == "Z" || f[0] == "X" {
		return process{}, unix.ESRCH
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{pid, start, strings.TrimSpace(string(boot))}, err
}

// processOf gives the process of a pidfd.
func processOf(pidfd int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return process{}, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				return process{}, err
			}
			if pid <= 0 {
				return process{}, unix.ESRCH
			}
			p, err := findProcess(pid)
			if errors.Is(err, fs.ErrNotExist) {
				err = unix.ESRCH
			}
			return p, err
		}
	}
	return process{}, fmt.Errorf("descriptor %d is of no process", pidfd)
}

// lives is false when the process has ended.
func (p process) lives() bool {
	if p.PID == 0 {
		return false
	}
	now, err := findProcess(p.PID)
	return err == nil && now == p
}

// ended waits so long for the end of the process of a pidfd. It holds over an
// execution of another program.
func ended(pidfd *os.File, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if left == 0 || err != nil && err != unix.EINTR {
			return false
		}
	}
}
