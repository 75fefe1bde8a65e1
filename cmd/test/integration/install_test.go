//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnit: systemd has nothing against the units that skiff install writes.
func TestUnit(t *testing.T) {
	for _, role := range []string{"server", "agent"} {
		dir := t.TempDir()
		out, err := exec.Command(shared.binary, "install", role, "--no-start", "--bin-dir", filepath.Join(dir, "bin"), "--unit-dir", dir,
			"--config", filepath.Join(dir, "config.yaml"), "--data-dir", filepath.Join(dir, "data")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		unit := filepath.Join(dir, "skiff.service")
		if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", role, err, out)
		}
		// It would have said so.
		text, err := os.ReadFile(unit)
		must(t, err)
		must(t, os.WriteFile(unit, []byte(strings.Replace(string(text), "KillMode=process", "KillMode=gently", 1)), 0o644))
		if out, _ := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); !strings.Contains(string(out), "gently") {
			t.Errorf("%s: systemd-analyze finds no fault with KillMode=gently: %s", role, out)
		}
	}
}
