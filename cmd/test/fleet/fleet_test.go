//go:build integration || soak

package fleet

import (
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

// TestFleet is the short form in CI and the long one in make soak. A failure
// names the seed; SKIFF_FLEET_SEED repeats its churn, though not its timing.
func TestFleet(t *testing.T) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	c := long
	c.Servers, c.PodsPerNode, c.Dir, c.Say = 3, 3, t.TempDir(), t.Logf
	c.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	c.Seed = uint64(time.Now().UnixNano())
	if s := os.Getenv("SKIFF_FLEET_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SKIFF_FLEET_SEED: %v", err)
		}
		c.Seed = seed
	}
	t.Logf("seed %d", c.Seed)
	if _, err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// TestIdle holds the goal that an idle cluster writes nothing to its log.
func TestIdle(t *testing.T) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	r, err := Run(t.Context(), Config{Servers: 3, Nodes: 20, PodsPerNode: 3, Idle: idleFor, Dir: t.TempDir(), Say: t.Logf,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		t.Fatal(err)
	}
	if r.IdleAppends > 0 {
		t.Errorf("%.1f log appends per minute while nothing happens", r.IdleAppends)
	}
	if r.IdleCPU > 50 {
		t.Errorf("%.1f %% of a core while nothing happens", r.IdleCPU)
	}
}
