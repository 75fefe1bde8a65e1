package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/shutdown"
)

const flagsDescription = "Every flag can also be set by an environment variable, SKIFF_ and the flag's name in capitals with\n" +
	"underscores, or in the YAML file of --config under its own name. The command line wins over the\n" +
	"environment, and that over the file."

func stringFlag(name, usage, value string) cli.Flag {
	return &cli.StringFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
}

func numberFlag(name, usage string, value int) cli.Flag {
	return &cli.IntFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
}

func listFlag(name, usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

func boolFlag(name, usage string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

// hostFlags are those of servers and agents; more come after the address.
func hostFlags(more ...cli.Flag) []cli.Flag {
	return slices.Concat([]cli.Flag{
		configFlag(),
		dataDirFlag(),
		stringFlag("name", "name of this host in the cluster, for as long as it is a member (default: the one it has, at first the host name)", ""),
		stringFlag("join", "HOST or HOST:PORT of the API of any server of the cluster to join; needed once", ""),
		stringFlag("token", "what skiff token create has printed, with --join; needed once", ""),
		stringFlag("advertise-address", "address by which others reach this host (default: --bind-address if that is one address, else that of the default route, followed when it changes)", ""),
		stringFlag("bind-address", "address the ports for other hosts listen on", "0.0.0.0"),
	}, more, []cli.Flag{
		numberFlag("gossip-port", "port, UDP and TCP, by which all hosts watch over each other", cluster.DefaultGossipPort),
		numberFlag("node-port", "port of this node's own API", 10250),
		listFlag("node-label", "KEY=VALUE label of this node, put on it at every start"),
		listFlag("node-taint", "KEY=VALUE:EFFECT taint of this node, when it registers first"),
		numberFlag("max-pods", "pods that this node takes", 110),
		stringFlag("image-dir", "folder of image archives to load at start (default: DATA-DIR/images)", ""),
		stringFlag("local-path-dir", "folder of the volumes that are provisioned on this node (default: DATA-DIR/storage)", ""),
		podLogFlag(),
		manifestFlag(),
		&cli.BoolFlag{Name: "seccomp-default", Usage: "containers that name no seccomp profile have the runtime's; with false they have none", EnvVars: env("seccomp-default"), Value: true},
		listFlag("allowed-unsafe-sysctls", "kernel settings beyond the safe ones that pods may change for themselves, such as net.core.somaxconn or kernel.msg*"),
		stringFlag("resolv-conf", "resolvers for names outside of the cluster", "/etc/resolv.conf"),
	}, reserveFlags(), houseFlags(), shutdownFlags(), []cli.Flag{
		upgradeKeyFlag(),
		stringFlag("log-format", "text or json", "text"),
		&cli.IntFlag{Name: "v", Usage: "log level: 0 for what matters, 1 for detail, 4 and more for the Kubernetes libraries too", EnvVars: env("v")},
	})
}

// hostOptions are those of a host, whatever it does in the cluster.
type hostOptions struct {
	name, dataDir        string
	named                bool // name was given
	join                 joinOptions
	advertise            netip.Addr
	detected             bool // advertise was found, not given: it may change
	bind                 netip.Addr
	gossipPort, nodePort uint16
	ports                []string // flags of all ports that are opened
	labels               map[string]string
	taints               []corev1.Taint
	maxPods              int
	sysctls              pod.Sysctls
	seccompDefault       bool
	imageDir, resolvConf string
	localPathDir         string
	podLogDir            string              // "": the node's own
	reserved             corev1.ResourceList // kept back from pods
	manifests            string              // "": no static pods
	shutdown             shutdown.Periods
	house                houseOptions
	registries           map[string]image.Registry
	upgradeKeys          binary.Keys // none: binaries need no signature
	logger               *slog.Logger
}

// parseHost reads hostFlags. ports are the port flags of the command, which must
// differ.
func parseHost(c *cli.Context, ports ...string) (o hostOptions, err error) {
	if o.logger, err = newLogger(os.Stderr, c.String("log-format"), c.Int("v")); err != nil {
		return o, err
	}
	o.name = c.String("name")
	if o.named = o.name != ""; !o.named {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("host name: %w; choose one with --name", err)
		}
		o.name = strings.ToLower(host)
	}
	if msgs := validation.IsDNS1123Subdomain(o.name); len(msgs) > 0 {
		return o, usagef("--name %q: %s", o.name, msgs[0])
	}
	if o.advertise, err = parseAddr(c, "advertise-address"); err != nil {
		return o, err
	}
	switch a := o.advertise; {
	case a.IsValid() && !a.Is4():
		return o, usagef("--advertise-address %s: only IPv4 is supported yet", a)
	case a.IsValid() && (a.IsUnspecified() || a.IsMulticast()):
		return o, usagef("--advertise-address %s: others cannot reach a host by that", a)
	}
	if o.bind, err = parseAddr(c, "bind-address"); err != nil {
		return o, err
	}
	switch {
	case !o.bind.IsValid():
		o.bind = netip.IPv4Unspecified()
	case !o.bind.Is4() && !o.bind.IsUnspecified():
		return o, usagef("--bind-address %s: only IPv4 is supported yet", o.bind)
	}
	if err := differentPorts(c, ports); err != nil {
		return o, err
	}
	o.ports = ports
	if o.labels, err = parseLabels(c.StringSlice("node-label")); err != nil {
		return o, err
	}
	if o.taints, err = parseTaints(c.StringSlice("node-taint")); err != nil {
		return o, err
	}
	if o.registries, err = loadRegistries(c); err != nil {
		return o, err
	}
	if o.upgradeKeys, err = parseUpgradeKeys(c); err != nil {
		return o, err
	}
	o.seccompDefault = c.Bool("seccomp-default")
	if o.sysctls, err = pod.ParseSysctls(c.StringSlice("allowed-unsafe-sysctls")); err != nil {
		return o, usagef("--allowed-unsafe-sysctls: %v", err)
	}
	if o.maxPods = c.Int("max-pods"); o.maxPods < 1 {
		return o, usagef("--max-pods %d: want at least 1", o.maxPods)
	}
	if o.reserved, err = parseReserved(c); err != nil {
		return o, err
	}
	if o.house, err = parseHouse(c); err != nil {
		return o, err
	}
	if o.join, err = parseJoin(c); err != nil {
		return o, err
	}
	o.dataDir, o.imageDir, o.resolvConf = c.String("data-dir"), c.String("image-dir"), c.String("resolv-conf")
	if o.localPathDir = c.String("local-path-dir"); o.localPathDir == "" {
		o.localPathDir = filepath.Join(o.dataDir, "storage")
	}
	if o.shutdown, err = parseShutdown(c); err != nil {
		return o, err
	}
	if err := o.parseManifests(c); err != nil {
		return o, err
	}
	if o.localPathDir, err = filepath.Abs(o.localPathDir); err != nil || o.localPathDir == "/" {
		return o, usagef("--local-path-dir %q: want a folder other than /", c.String("local-path-dir"))
	}
	if o.podLogDir, err = parsePodLogDir(c.String("pod-log-dir"), o.dataDir); err != nil {
		return o, err
	}
	o.gossipPort, o.nodePort = uint16(c.Int("gossip-port")), uint16(c.Int("node-port"))
	return o, nil
}

// findAddress sets the address that was not given. It is looked for as late as
// possible, and last among the things that can be wrong.
func (o *hostOptions) findAddress() (err error) {
	if o.advertise.IsValid() {
		return nil
	}
	if !o.bind.IsUnspecified() {
		o.advertise = o.bind // nothing listens on another
		return nil
	}
	o.advertise, err = hostAddress()
	o.detected = err == nil && !o.advertise.IsLoopback()
	return err
}

func differentPorts(c *cli.Context, flags []string) error {
	taken := map[int]string{}
	for _, f := range flags {
		p := c.Int(f)
		if p < 1 || p > 65535 {
			return usagef("--%s %d: want 1 to 65535", f, p)
		}
		if other := taken[p]; other != "" {
			return usagef("--%s and --%s are both %d", other, f, p)
		}
		taken[p] = f
	}
	return nil
}

func parseAddr(c *cli.Context, flag string) (netip.Addr, error) {
	s := c.String(flag)
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, usagef("--%s %q is no IP address", flag, s)
	}
	return a, nil
}

func parseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usagef("--node-label %q: want KEY=VALUE", s)
		}
		if msgs := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(msgs) > 0 {
			return nil, usagef("--node-label %q: %s", s, msgs[0])
		}
		out[k] = v
	}
	return out, nil
}

// checkLabels refuses what the API would not let this host's node have.
func (o hostOptions) checkLabels(server bool) error {
	for _, k := range slices.Sorted(maps.Keys(o.labels)) {
		if !auth.MayLabel(k, server) {
			return usagef("--node-label %q: the node may not give itself this label; an administrator may, by kubectl label node %s", k, o.name)
		}
	}
	return nil
}

func parseTaints(list []string) ([]corev1.Taint, error) {
	var out []corev1.Taint
	for _, s := range list {
		kv, effect, ok := strings.Cut(s, ":")
		switch e := corev1.TaintEffect(effect); {
		case !ok || e != corev1.TaintEffectNoSchedule && e != corev1.TaintEffectPreferNoSchedule && e != corev1.TaintEffectNoExecute:
			return nil, usagef("--node-taint %q: want KEY=VALUE:NoSchedule, :PreferNoSchedule or :NoExecute", s)
		}
		k, v, _ := strings.Cut(kv, "=")
		if msgs := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(msgs) > 0 {
			return nil, usagef("--node-taint %q: %s", s, msgs[0])
		}
		out = append(out, corev1.Taint{Key: k, Value: v, Effect: corev1.TaintEffect(effect)})
	}
	return out, nil
}
