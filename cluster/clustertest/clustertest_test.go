package clustertest

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed, and tell its story; also $SKIFF_SEED")
	seedsFlag = flag.Int("seeds", 0, "number of seeds to run; also $SKIFF_SEEDS")
	firstFlag = flag.Uint64("first", 1, "the first of them")
)

func number(flag uint64, env string) (n uint64) {
	if s := os.Getenv(env); s != "" && flag == 0 {
		if _, err := fmt.Sscan(s, &n); err != nil {
			panic(fmt.Sprintf("%s=%s: %v", env, s, err))
		}
		return n
	}
	return flag
}

// inBubble runs a seed on its own clock.
func inBubble(t *testing.T, seed uint64, o options) (r Result) {
	t.Helper()
	root := filepath.Join(memoryDir(t), fmt.Sprintf("s%d", seed))
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("SKIFF_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	synctest.Test(t, func(t *testing.T) { r = run(seed, o, root, logger) })
	return r
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

func report(t *testing.T, r Result, story bool) {
	t.Helper()
	s := r.Stats
	t.Logf("seed %d: %d ops (%d unknown, %d failed), %d events, %d watched, %d faults, %d members; after the faults: writes after %v, equal after %v",
		r.Seed, s.Ops, s.Unknown, s.Failed, s.Events, s.Watched, s.Faults, s.Members, s.Recovery, s.Converged)
	if story || len(r.Anomalies) > 0 {
		t.Log("story:\n" + strings.Join(r.Story, "\n"))
	}
	for _, a := range r.Anomalies {
		t.Errorf("seed %d: %s", r.Seed, a)
	}
	if len(r.Anomalies) > 0 {
		t.Logf("again: go test ./cluster/clustertest -run TestSeeds -seed %d", r.Seed)
	}
}

var standard = options{faults: 30 * time.Second, clients: 6, watchers: 4}

// TestSeeds runs some seeds, always the same.
func TestSeeds(t *testing.T) {
	first, n := *firstFlag, number(uint64(*seedsFlag), "SKIFF_SEEDS")
	if n == 0 {
		n = 4
	}
	only := number(*seedFlag, "SKIFF_SEED")
	if only != 0 {
		first, n = only, 1
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			report(t, inBubble(t, seed, standard), only != 0)
		})
	}
}

var _ = io.Discard
