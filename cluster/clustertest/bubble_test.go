package clustertest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
)

// inBubble runs a seed on its own clock. When the run is over no goroutine of it
// may be left, but for waiters of futures that Raft has forgotten: it does that
// to those it has in hand when it is shut down.
func inBubble(t *testing.T, seed uint64, o options) (r Result) {
	t.Helper()
	root := filepath.Join(memoryDir(t), fmt.Sprintf("s%d", seed))
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("SKIFF_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	bubble := ""
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if !strings.Contains(fmt.Sprint(p), "main bubble goroutine has exited") {
			panic(p)
		}
		for _, stack := range goroutinesOf(bubble) {
			if !strings.Contains(stack, "raft.(*deferError).Error(") {
				r.Anomalies = append(r.Anomalies, "a goroutine did not end:\n"+stack)
			}
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		bubble = bubbleName.FindString(stacks(false))
		r = run(seed, o, root, logger)
	})
	return r
}

var bubbleName = regexp.MustCompile(`synctest bubble \d+\]`)

func stacks(all bool) string {
	b := make([]byte, 1<<16)
	for {
		if n := runtime.Stack(b, all); n < len(b) {
			return string(b[:n])
		}
		b = make([]byte, 2*len(b))
	}
}

func goroutinesOf(bubble string) (out []string) {
	for _, g := range strings.Split(stacks(true), "\n\n") {
		if head, _, _ := strings.Cut(g, "\n"); strings.Contains(head, bubble) {
			out = append(out, g)
		}
	}
	return out
}

// memoryDir is a directory in memory, if there is such a file system.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "skiff-clustertest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
