package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestThrottlesOfAllProcessors(t *testing.T) {
	sys := t.TempDir()
	for _, d := range []string{"cpu0/thermal_throttle", "cpu1/topology", "cpu11/thermal_throttle", "cpufreq/thermal_throttle"} {
		if err := os.MkdirAll(filepath.Join(sys, "devices/system/cpu", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cpu := filepath.Join(sys, "devices/system/cpu")
	if got, want := throttles(sys), []string{cpu + "/cpu0/thermal_throttle", cpu + "/cpu11/thermal_throttle"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
