package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/utils/ptr"
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

// A label that the API would not let a node give itself is refused at once.
func TestLabelsOfAdministrators(t *testing.T) {
	for _, tc := range []struct {
		label         string
		server, agent bool // may
	}{
		{"disk=ssd", true, true},
		{"topology.kubernetes.io/zone=a", true, true},
		{"node-role.kubernetes.io/etcd=", true, false},
		{"node-restriction.kubernetes.io/pci=yes", false, false},
	} {
		for _, as := range []struct {
			cmd   *cli.Command
			parse func(*cli.Context) error
			may   bool
		}{
			{serverCommand(), func(c *cli.Context) error { _, err := parseServer(c); return err }, tc.server},
			{agentCommand(), func(c *cli.Context) error { _, err := parseAgent(c); return err }, tc.agent},
		} {
			as.cmd.Action = as.parse
			app := &cli.App{Commands: []*cli.Command{as.cmd}, ExitErrHandler: func(*cli.Context, error) {}}
			err := app.Run([]string{"skiff", as.cmd.Name, "--name", "a", "--advertise-address", "127.0.0.1", "--node-label", tc.label})
			if as.may != (err == nil) || err != nil && !strings.Contains(err.Error(), "kubectl label node a") {
				t.Errorf("%s %s: %v", as.cmd.Name, tc.label, err)
			}
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

// No time at all is a timeout; none given is that of the cluster.
func TestPodEvictionTimeout(t *testing.T) {
	for _, tc := range []struct {
		flag, env, file string
		want            *time.Duration
		refused         bool
	}{
		{},
		{flag: "0", want: ptr.To(time.Duration(0))},
		{env: "0s", want: ptr.To(time.Duration(0))},
		{file: "0", want: ptr.To(time.Duration(0))},
		{file: "0s", want: ptr.To(time.Duration(0))},
		{flag: "7s", env: "0s", file: "1s", want: ptr.To(7 * time.Second)},
		{env: "0", file: "1s", want: ptr.To(time.Duration(0))},
		{flag: "-1s", refused: true},
		{flag: "10ms", refused: true},
	} {
		args := []string{"skiff", "server", "--name", "a", "--advertise-address", "127.0.0.1"}
		file := filepath.Join(t.TempDir(), "config.yaml")
		content := "max-pods: 5\n"
		if tc.file != "" {
			content = "pod-eviction-timeout: " + tc.file + "\n"
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", file)
		if tc.flag != "" {
			args = append(args, "--pod-eviction-timeout", tc.flag)
		}
		t.Setenv("SKIFF_POD_EVICTION_TIMEOUT", tc.env)
		cmd := serverCommand()
		var got *time.Duration
		var err error
		cmd.Action = func(c *cli.Context) error {
			if err := loadConfigFile(c); err != nil {
				return err
			}
			var o serverOptions
			o, err = parseServer(c)
			got = o.cluster.PodEvictionTimeout
			return nil
		}
		if err := (&cli.App{Commands: []*cli.Command{cmd}}).Run(args); err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		if tc.refused {
			if err == nil || !strings.Contains(err.Error(), "want 0 or at least 1s") {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%+v: %v, %v", tc, got, err)
		}
	}
}
