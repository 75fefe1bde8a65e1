package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
}

// findProcess gives the process that has the number now, and its state as the
// kernel writes it (R, S, D, T, Z).
func findProcess(pid int) (process, byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, 0, err
	}
	// The name, in parentheses, may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return process{}, 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{pid, start}, f[0][0], err
}

// state is 0 when the process has ended.
func (p process) state() byte {
	now, st, err := findProcess(p.PID)
	if err != nil || p.PID == 0 || now != p || st == 'Z' || st == 'X' {
		return 0
	}
	return st
}

// runs says that it has neither ended nor is paused.
func (p process) runs() bool {
	st := p.state()
	return st != 0 && st != 'T' && st != 't'
}

// signal sends nothing to a process that has taken over the number.
func (p process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if p.state() == 0 {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// wait returns when the process has ended.
func (p process) wait(limit time.Duration) error {
	for deadline := time.Now().Add(limit); p.state() != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d has not ended after %v", p.PID, limit)
		}
	}
	return nil
}

// skiff is the node's skiff process, or the one that ran last; zero if none ever
// did.
func (p place) skiff(node string) (process, error) {
	b, err := os.ReadFile(p.nodeFile(node, "pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return process{}, nil
	}
	if err != nil {
		return process{}, err
	}
	var out process
	if err := json.Unmarshal(b, &out); err != nil {
		return process{}, fmt.Errorf("%s: %w", p.nodeFile(node, "pid"), err)
	}
	if out.PID != 0 && out.state() == 0 {
		if now, err := p.successor(node); err == nil {
			return now, nil
		}
	}
	return out, nil
}

func (p place) setSkiff(node string, pid int) (process, error) {
	proc, _, err := findProcess(pid)
	if err != nil {
		return proc, fmt.Errorf("skiff of %s has ended at once: %w; see %s", node, err, p.nodeFile(node, "log"))
	}
	b, err := json.Marshal(proc)
	if err != nil {
		return proc, err
	}
	return proc, writeFile(p.nodeFile(node, "pid"), b)
}

// inMounts lists the processes in a node's mount namespace: they may have left
// its cgroups.
func (p place) inMounts(node string) ([]int, error) {
	var pin unix.Stat_t
	if !p.kept(node, "mnt") {
		return nil, nil
	}
	if err := unix.Stat(p.pin(node, "mnt"), &pin); err != nil {
		return nil, err
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, l := range links {
		var st unix.Stat_t
		if unix.Stat(l, &st) != nil || st.Ino != pin.Ino {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(l, "/")[2]); err == nil {
			out = append(out, pid)
		}
	}
	return out, nil
}

// killAll ends every process of a node, again and again until none is left;
// afterEach is called between the rounds.
func (p place) killAll(node string, afterEach func()) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		pids, err := p.inCgroups(node)
		if err != nil {
			return err
		}
		more, err := p.inMounts(node)
		if err != nil {
			return err
		}
		alive := 0
		for _, pid := range append(pids, more...) {
			if pid == os.Getpid() {
				continue
			}
			if _, st, err := findProcess(pid); err != nil || st == 'Z' {
				continue // it waits for its parent only
			}
			alive++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		afterEach()
		if alive == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s do not end though they were killed: %v", alive, node, append(pids, more...))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Processes lists all processes of a node: skiff, shims and containers.
func (c *Cluster) Processes(node string) ([]int, error) {
	s, err := c.p.load()
	if err != nil {
		return nil, err
	}
	if _, err := s.node(node); err != nil {
		return nil, err
	}
	return c.p.inCgroups(node)
}
