package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// parsed gives the options of a host that is started with args.
func parsed(t *testing.T, args ...string) (o hostOptions, err error) {
	t.Helper()
	cmd := agentCommand()
	cmd.Action = func(c *cli.Context) error {
		if o, err = parseHost(c, "gossip-port", "node-port"); err == nil {
			err = o.findAddress()
		}
		return nil
	}
	app := &cli.App{Commands: []*cli.Command{cmd}}
	if e := app.Run(append([]string{"skiff", "agent", "--config", "/dev/null", "--name", "a"}, args...)); e != nil {
		t.Fatal(e)
	}
	return o, err
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		args            []string
		advertise, bind string // "" is not looked at
		refused         string
	}{
		{args: []string{"--advertise-address", "10.1.2.3"}, advertise: "10.1.2.3", bind: "0.0.0.0"},
		{args: []string{"--bind-address", "10.1.2.3"}, advertise: "10.1.2.3", bind: "10.1.2.3"},
		{args: []string{"--bind-address", "10.1.2.3", "--advertise-address", "192.0.2.1"}, advertise: "192.0.2.1", bind: "10.1.2.3"},
		{args: []string{"--bind-address", "", "--advertise-address", "192.0.2.1"}, bind: "0.0.0.0"},
		{args: []string{"--bind-address", "::", "--advertise-address", "192.0.2.1"}, bind: "::"},
		{args: []string{"--bind-address", "fd00::1"}, refused: "--bind-address fd00::1: only IPv4"},
		{args: []string{"--bind-address", "here"}, refused: `--bind-address "here" is no IP address`},
		{args: []string{"--advertise-address", "fd00::1"}, refused: "--advertise-address fd00::1: only IPv4"},
		{args: []string{"--advertise-address", "0.0.0.0"}, refused: "--advertise-address 0.0.0.0: others cannot"},
		{args: []string{"--advertise-address", "224.0.0.1"}, refused: "--advertise-address 224.0.0.1: others cannot"},
		{args: []string{"--gossip-port", "10250"}, refused: "--gossip-port and --node-port are both 10250"},
		{args: []string{"--token", "x"}, refused: "--token goes with --join"},
	} {
		o, err := parsed(t, tc.args...)
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%v: %v, want %q", tc.args, err, tc.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
			continue
		}
		if tc.advertise != "" && o.advertise != netip.MustParseAddr(tc.advertise) || o.bind != netip.MustParseAddr(tc.bind) || o.detected {
			t.Errorf("%v: advertise %s (found: %v), bind %s", tc.args, o.advertise, o.detected, o.bind)
		}
	}
}

// A port that another has is found before anything runs, and the flags of this
// command are named.
func TestPortOfAnother(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	o, err := parsed(t, "--bind-address", "127.0.0.1", "--node-port", port)
	if err != nil {
		t.Fatal(err)
	}
	_, err = newNodePart(o, access{})
	if err = explain(err, o); err == nil || !strings.Contains(err.Error(), "the port of the node's API") || !strings.HasSuffix(err.Error(), "choose another with --gossip-port or --node-port") {
		t.Errorf("%v", err)
	}
}

func TestEvictionText(t *testing.T) {
	since := time.Unix(0, 0).UTC()
	for want, e := range map[string]membership.EvictionStatus{
		"none waiting":                      {},
		"pods of 2 nodes wait":              {Waiting: 2},
		"pods of 2 nodes wait: slowed down": {Waiting: 2, Reason: "slowed down"},
		"FROZEN: why (pods of 2 nodes wait) since 1970-01-01T00:00:00Z": {Waiting: 2, Frozen: true, Reason: "why", Since: &since},
	} {
		if got := evictionText(&e); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
