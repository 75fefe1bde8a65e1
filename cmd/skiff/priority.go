package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// niceness leaves a third of what an equal would get to who gives way.
const niceness = 5

// giveWay lets other processes of this host go first, for work that may take all
// of a core and of a disk and is not urgent. What the system refuses is left.
func giveWay() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads { // later ones inherit it
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, niceness)
		}
	}
}
