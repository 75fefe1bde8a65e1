//go:build integration

package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// processWatch looks without a pause on which nodes a process runs whose
// command line has the mark.
type processWatch struct {
	c     *devCluster
	mark  string
	stop  chan struct{}
	done  chan struct{}
	once  sync.Once
	mu    sync.Mutex // guards what follows
	on    []string
	twice []string
	looks int
}

func watchProcesses(c *devCluster, mark string) *processWatch {
	w := &processWatch{c: c, mark: mark, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(20 * time.Millisecond):
				w.look()
			}
		}
	}()
	return w
}

func (w *processWatch) end() { w.once.Do(func() { close(w.stop) }); <-w.done }

func (w *processWatch) now() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.on
}

func (w *processWatch) look() {
	st, err := w.c.Status()
	if err != nil {
		return
	}
	marked := func(pid int) bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(b), "\x00")
		return err == nil && len(args) > 1 && args[1] == w.mark
	}
	var on []string
	var found []int
	for _, n := range st.Nodes {
		pids, err := w.c.Processes(n.Name)
		if err != nil {
			continue
		}
		for _, pid := range pids {
			if marked(pid) {
				on, found = append(on, n.Name), append(found, pid)
			}
		}
	}
	// What ended while the other nodes were looked at was not there with the others.
	for i := len(found) - 2; i >= 0; i-- {
		if !marked(found[i]) {
			on = slices.Delete(on, i, i+1)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	w.on = on
	if len(on) > 1 {
		w.twice = append(w.twice, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), on))
	}
}
