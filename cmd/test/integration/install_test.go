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
	// It says what is wrong with other units too, on which ours depend.
	verify := func(unit string) string {
		out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput()
		if err != nil && len(out) == 0 {
			return err.Error()
		}
		var ours []string
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "skiff") {
				ours = append(ours, line)
			}
		}
		return strings.Join(ours, "")
	}
	for _, role := range []string{"server", "agent"} {
		dir := t.TempDir()
		out, err := exec.Command(shared.binary, "install", role, "--no-start", "--bin-dir", filepath.Join(dir, "bin"), "--unit-dir", dir,
			"--config", filepath.Join(dir, "config.yaml"), "--data-dir", filepath.Join(dir, "data")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		unit := filepath.Join(dir, "skiff.service")
		if problems := verify(unit); problems != "" {
			t.Errorf("%s: %s", role, problems)
		}
		// It would have said so.
		text, err := os.ReadFile(unit)
		must(t, err)
		must(t, os.WriteFile(unit, []byte(strings.Replace(string(text), "KillMode=process", "KillMode=gently", 1)), 0o644))
		if problems := verify(unit); !strings.Contains(problems, "gently") {
			t.Errorf("%s: systemd-analyze finds no fault with KillMode=gently: %s", role, problems)
		}
	}
}
