package main

import (
	"maps"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestRoles: servers show their role, agents none, and what the user says counts.
func TestRoles(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want map[string]string
	}{
		{nil, map[string]string{controlPlaneLabel: ""}},
		{[]string{"--node-label", "disk=ssd"}, map[string]string{controlPlaneLabel: "", "disk": "ssd"}},
		{[]string{"--node-label", controlPlaneLabel + "=true"}, map[string]string{controlPlaneLabel: "true"}},
	} {
		cmd := serverCommand()
		cmd.Action = func(c *cli.Context) error {
			o, err := parseServer(c)
			if err != nil {
				return err
			}
			if !maps.Equal(o.labels, tc.want) {
				t.Errorf("%v: labels %v, want %v", tc.args, o.labels, tc.want)
			}
			if len(o.taints) > 0 {
				t.Errorf("%v: taints %v", tc.args, o.taints)
			}
			return nil
		}
		app := &cli.App{Commands: []*cli.Command{cmd}}
		if err := app.Run(append([]string{"skiff", "server", "--name", "a", "--advertise-address", "127.0.0.1"}, tc.args...)); err != nil {
			t.Errorf("%v: %v", tc.args, err)
		}
	}
}
