//go:build integration || soak

package clustertest

import (
	"strings"
	"testing"
	"time"
)

// TestCrashAtEachStep lets servers crash at one step of writing, over and over,
// for each of the steps.
func TestCrashAtEachStep(t *testing.T) {
	t.Parallel()
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			o := standard
			o.faults, o.step, o.snapshotEntries, o.trailing = 20*time.Second, step, 8, 2
			for seed := uint64(1); seed <= 30; seed++ {
				r := inBubble(t, seed, o)
				for _, a := range r.Anomalies {
					t.Errorf("seed %d: %s", seed, a)
				}
				if len(r.Anomalies) > 0 {
					t.Log("story:\n" + strings.Join(r.Story, "\n"))
				}
				if n := r.Stats.Crashes[step]; n > 0 {
					t.Logf("seed %d: %d crashes", seed, n)
					return
				}
			}
			t.Error("30 seeds have not come there")
		})
	}
}
