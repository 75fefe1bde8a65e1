package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/imagegc"
)

func TestHouseFlags(t *testing.T) {
	address := []string{"--advertise-address", "192.0.2.1"}
	o, err := parsed(t, address...)
	if err != nil {
		t.Fatal(err)
	}
	want := eviction.Default()
	if h := o.house; len(h.eviction.Thresholds) != len(want.Thresholds) || h.eviction.Transition != want.Transition || h.imageGC != imagegc.Default ||
		h.logMaxSize != 10<<20 || h.logMaxFiles != 5 || h.podPids != 0 {
		t.Errorf("defaults: %+v", h)
	}
	o, err = parsed(t, append(address, "--eviction-hard", "memory.available<1Gi,nodefs.available<5%", "--eviction-soft", "nodefs.available<20%",
		"--eviction-soft-grace-period", "nodefs.available=1m", "--eviction-max-pod-grace-period", "30", "--eviction-pressure-transition-period", "10s",
		"--image-gc-high-threshold", "70", "--image-gc-low-threshold", "60", "--minimum-image-ttl-duration", "1m", "--image-maximum-gc-age", "24h",
		"--container-log-max-size", "1Mi", "--container-log-max-files", "3", "--pod-max-pids", "100")...)
	if err != nil {
		t.Fatal(err)
	}
	h := o.house
	if len(h.eviction.Thresholds) != 4 || h.eviction.MaxPodGrace != 30 || h.eviction.Transition != 10*time.Second ||
		h.imageGC != (imagegc.Policy{High: 70, Low: 60, MinAge: time.Minute, MaxAge: 24 * time.Hour}) || h.logMaxSize != 1<<20 || h.logMaxFiles != 3 || h.podPids != 100 {
		t.Errorf("given: %+v", h)
	}
	if o, err = parsed(t, append(address, "--eviction-hard", "")...); err != nil || len(o.house.eviction.Thresholds) != 0 {
		t.Errorf("turned off: %+v, %v", o.house.eviction.Thresholds, err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--eviction-hard", "disk<10%"}, `--eviction-hard "disk<10%": no signal "disk"`},
		{[]string{"--eviction-soft", "nodefs.available<10%"}, "give its grace period too"},
		{[]string{"--eviction-minimum-reclaim", "nodefs.available=-5"}, "--eviction-minimum-reclaim"},
		{[]string{"--eviction-pressure-transition-period", "-1s"}, "--eviction-pressure-transition-period -1s"},
		{[]string{"--eviction-max-pod-grace-period", "-1"}, "--eviction-max-pod-grace-period -1"},
		{[]string{"--image-gc-high-threshold", "50"}, "--image-gc-low-threshold 80: want less than --image-gc-high-threshold, which is 50"},
		{[]string{"--container-log-max-size", "many"}, `--container-log-max-size "many"`},
		{[]string{"--container-log-max-size", "1"}, `--container-log-max-size "1": want a size of at least 4Ki`},
		{[]string{"--container-log-max-files", "1"}, "--container-log-max-files 1: want at least 2"},
		{[]string{"--pod-max-pids", "0"}, "--pod-max-pids 0"},
	} {
		if _, err := parsed(t, append(address, tc.args...)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.args, err, tc.want)
		}
	}
}

// Thresholds may be a map in the file, as in kubelet's.
func TestHouseFlagsInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("eviction-hard:\n  memory.available: 1Gi\n  nodefs.available: 5%\ncontainer-log-max-files: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var o hostOptions
	cmd := agentCommand()
	cmd.Action = func(c *cli.Context) (err error) {
		if err = loadConfigFile(c); err == nil {
			o, err = parseHost(c, "gossip-port", "node-port")
		}
		return err
	}
	if err := (&cli.App{Commands: []*cli.Command{cmd}}).Run([]string{"skiff", "agent", "--config", path, "--name", "a"}); err != nil {
		t.Fatal(err)
	}
	if len(o.house.eviction.Thresholds) != 3 || o.house.logMaxFiles != 7 {
		t.Errorf("%+v", o.house)
	}
}
