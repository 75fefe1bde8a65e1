package main

import (
	"io"
	"maps"
	"os"
	"strings"
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

// What only concerns pods is not ignored without a word where none run.
func TestFlagsWithoutEffect(t *testing.T) {
	for _, tc := range []struct {
		args []string
		says string // "": nothing
	}{
		{[]string{"--witness"}, ""},
		{[]string{"--max-pods", "5"}, ""},
		{[]string{"--witness", "--max-pods", "5", "--node-label", "a=b"}, "--node-label --max-pods"},
		{[]string{"--disable-agent", "--node-port", "10251"}, "--node-port"},
	} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		stderr := os.Stderr
		os.Stderr = write
		cmd := serverCommand()
		cmd.Action = func(c *cli.Context) error { _, err := parseServer(c); return err }
		app := &cli.App{Commands: []*cli.Command{cmd}}
		err = app.Run(append([]string{"skiff", "server", "--name", "a", "--advertise-address", "127.0.0.1"}, tc.args...))
		os.Stderr = stderr
		write.Close()
		said, rerr := io.ReadAll(read)
		read.Close()
		if err != nil || rerr != nil {
			t.Errorf("%v: %v, %v", tc.args, err, rerr)
		}
		if got := string(said); tc.says == "" && got != "" || !strings.Contains(got, tc.says) {
			t.Errorf("%v: said %q, want %q", tc.args, got, tc.says)
		}
	}
}
