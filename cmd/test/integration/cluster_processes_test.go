//go:build integration

package integration

import (
	"fmt"
	"os"
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
	var on []string
	for _, n := range st.Nodes {
		pids, err := w.c.Processes(n.Name)
		if err != nil {
			continue
		}
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if args := strings.Split(string(b), "\x00"); err == nil && len(args) > 1 && args[1] == w.mark {
				on = append(on, n.Name)
			}
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
