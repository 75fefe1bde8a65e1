package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gcHeadroom is how much is allocated at least between two collections. A
	// small heap would else be collected dozens of times a second under load.
	gcHeadroom = 64 << 20
	// settleStep is how often the server looks whether it has become quiet.
	settleStep = 5 * time.Second
	// settleQuiet is the share of a core below which it is.
	settleQuiet = 0.05
	// settleWorth is how much must have come in since the last time for settling
	// again to be worth its while.
	settleWorth = 24 << 20
)

// keepHeadroom sets the collector's percentage after each collection so that
// the heap may grow by its own size, as by default, or by gcHeadroom if that is
// more. GOGC in the environment wins.
func keepHeadroom() {
	if os.Getenv("GOGC") != "" {
		return
	}
	percent := 100
	var adjust func()
	adjust = func() {
		if want := gcPercent(readMetric("/gc/heap/live:bytes")); want > percent+percent/8 || want < percent-percent/8 {
			debug.SetGCPercent(want)
			percent = want
		}
		// The next collection finds this garbage and comes back here.
		runtime.AddCleanup(new([16]byte), func(f func()) { f() }, adjust)
	}
	adjust()
}

// gcPercent is the percentage for so many live bytes.
func gcPercent(live uint64) int {
	return int(max(100, 100*gcHeadroom/max(live, 4<<20)))
}

func readMetric(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// settleMemory gives memory back to the system whenever the server has become
// quiet after it has worked, its start included: garbage, and the pages of the
// executable that only that work needed. What is needed again comes back page
// by page from the page cache.
func settleMemory(ctx context.Context) {
	tick := time.NewTicker(settleStep)
	defer tick.Stop()
	var settled uint64 // resident bytes after the last time
	for last := cpuTime(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := cpuTime()
		quiet := float64(now-last) < settleQuiet*float64(settleStep)
		last = now
		if quiet && resident() > settled+settleWorth {
			debug.FreeOSMemory()
			_ = dropText() // only memory is lost if it fails
			settled, last = resident(), cpuTime()
		}
	}
}

// resident is how many bytes of this process are in memory.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// dropText unmaps the pages of the executable's code and constants, which are
// in the page cache and come back when touched. Mappings with pages of their own
// are left alone: a dynamic linker has written there what no file has.
func dropText() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the executable: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("find the executable in memory: %w", err)
	}
	defer f.Close()
	var from, to uintptr // of the mapping that is being read, if it is one of ours
	ours := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if key, value, ok := strings.Cut(line, ":"); ok && !strings.Contains(key, " ") {
			if !ours || key != "Anonymous" || strings.TrimSpace(value) != "0 kB" {
				continue
			}
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("give back pages of the executable: %w", errno)
			}
			continue
		}
		from, to, ours = textMapping(line, exe)
	}
	return lines.Err()
}

// textMapping parses the first line of a mapping in /proc/PID/smaps and says
// whether it is of exe and cannot be written.
func textMapping(line, exe string) (from, to uintptr, ok bool) {
	fields, path, found := strings.Cut(line, "/")
	if !found || "/"+path != exe {
		return 0, 0, false
	}
	var perms string
	if n, err := fmt.Sscanf(fields, "%x-%x %s", &from, &to, &perms); err != nil || n != 3 {
		return 0, 0, false
	}
	return from, to, (perms == "r--p" || perms == "r-xp") && from < to
}
