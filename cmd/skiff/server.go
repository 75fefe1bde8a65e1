package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/node/image"
)

func serverCommand() *cli.Command {
	str := func(name, usage, value string) cli.Flag {
		return &cli.StringFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
	}
	number := func(name, usage string, value int) cli.Flag {
		return &cli.IntFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
	}
	list := func(name, usage string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, Usage: usage, EnvVars: env(name)}
	}
	return &cli.Command{
		Name:  "server",
		Usage: "run a server: API, store, scheduler, controllers, and this host's pods",
		Description: "Every flag can also be set by an environment variable, SKIFF_ and the flag's name in capitals with\n" +
			"underscores, or in the YAML file of --config under its own name. The command line wins over the\n" +
			"environment, and that over the file.",
		Flags: []cli.Flag{
			configFlag(),
			dataDirFlag(),
			str("name", "name of this host in the cluster (default: the host name)", ""),
			str("advertise-address", "address by which others reach this host (default: that of the default route)", ""),
			str("bind-address", "address the API and Raft ports listen on", "0.0.0.0"),
			number("api-port", "port of the Kubernetes API", cluster.DefaultPort),
			number("raft-port", "port of the servers among themselves", cluster.DefaultRaftPort),
			number("node-port", "port of this node's own API", 10250),
			str("cluster-cidr", "where pods get their addresses", "10.42.0.0/16"),
			str("service-cidr", "where services get their addresses", "10.43.0.0/16"),
			str("cluster-domain", "DNS domain of services", "cluster.local"),
			list("tls-san", "further names and addresses of the API, for its certificate"),
			list("node-label", "KEY=VALUE label of this node, when it registers first"),
			list("node-taint", "KEY=VALUE:EFFECT taint of this node, when it registers first"),
			number("max-pods", "pods that this node takes", 110),
			&cli.BoolFlag{Name: "disable-agent", Usage: "run no pods on this host", EnvVars: env("disable-agent")},
			str("image-dir", "folder of image archives to load at start (default: DATA-DIR/images)", ""),
			str("resolv-conf", "resolvers for names outside of the cluster", "/etc/resolv.conf"),
			str("log-format", "text or json", "text"),
			&cli.IntFlag{Name: "v", Usage: "log level: 0 for what matters, 1 for detail, 4 and more for the Kubernetes libraries too", EnvVars: env("v")},
			&cli.BoolFlag{Name: "profiling", Usage: "serve /debug/pprof on the API port to administrators", EnvVars: env("profiling")},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := loadConfigFile(c); err != nil {
				return err
			}
			o, err := serverOptions(c)
			if err != nil {
				return err
			}
			return runServer(c.Context, o)
		},
	}
}

// options of a server and the agent in it.
type options struct {
	cluster      cluster.Config
	nodePort     int
	labels       map[string]string
	taints       []corev1.Taint
	maxPods      int
	disableAgent bool
	imageDir     string
	resolvConf   string
	registries   map[string]image.Registry
	logger       *slog.Logger
}

func serverOptions(c *cli.Context) (o options, err error) {
	if o.logger, err = newLogger(os.Stderr, c.String("log-format"), c.Int("v")); err != nil {
		return o, err
	}
	name := c.String("name")
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("host name: %w; choose one with --name", err)
		}
		name = strings.ToLower(host)
	}
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		return o, usagef("--name %q: %s", name, msgs[0])
	}
	advertise, err := parseAddr(c, "advertise-address")
	if err != nil {
		return o, err
	}
	if !advertise.IsValid() {
		if advertise, err = hostAddress(); err != nil {
			return o, err
		}
	}
	if !advertise.Is4() {
		return o, usagef("--advertise-address %s: only IPv4 is supported yet", advertise)
	}
	bind, err := parseAddr(c, "bind-address")
	if err != nil {
		return o, err
	}
	cidrs := map[string]netip.Prefix{}
	for _, f := range []string{"cluster-cidr", "service-cidr"} {
		p, err := netip.ParsePrefix(c.String(f))
		if err != nil || !p.Addr().Is4() {
			return o, usagef("--%s %q: want an IPv4 range such as 10.42.0.0/16", f, c.String(f))
		}
		cidrs[f] = p.Masked()
	}
	ports := map[string]uint16{}
	for _, f := range []string{"api-port", "raft-port", "node-port"} {
		p := c.Int(f)
		if p < 1 || p > 65535 {
			return o, usagef("--%s %d: want 1 to 65535", f, p)
		}
		for other, q := range ports {
			if int(q) == p {
				return o, usagef("--%s and --%s are both %d", other, f, p)
			}
		}
		ports[f] = uint16(p)
	}
	if o.labels, err = parseLabels(c.StringSlice("node-label")); err != nil {
		return o, err
	}
	if o.taints, err = parseTaints(c.StringSlice("node-taint")); err != nil {
		return o, err
	}
	if o.registries, err = loadRegistries(c); err != nil {
		return o, err
	}
	if o.maxPods = c.Int("max-pods"); o.maxPods < 1 {
		return o, usagef("--max-pods %d: want at least 1", o.maxPods)
	}
	o.nodePort, o.disableAgent, o.resolvConf = int(ports["node-port"]), c.Bool("disable-agent"), c.String("resolv-conf")
	o.imageDir = c.String("image-dir")
	o.cluster = cluster.Config{
		Name: name, DataDir: c.String("data-dir"), AdvertiseAddress: advertise, BindAddress: bind,
		Port: ports["api-port"], RaftPort: ports["raft-port"], ServerNames: c.StringSlice("tls-san"),
		ClusterCIDR: cidrs["cluster-cidr"], ServiceCIDR: cidrs["service-cidr"], ClusterDomain: c.String("cluster-domain"),
		Version: version, Profiling: c.Bool("profiling"), Logger: o.logger,
	}
	return o, nil
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

// newLogger logs to w. The Kubernetes libraries log through it as well, their
// errors always, the rest from level 4 on.
func newLogger(w io.Writer, format string, level int) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if level > 0 {
		o.Level = slog.LevelDebug
	}
	var h slog.Handler
	switch format {
	case "text":
		h = slog.NewTextHandler(w, o)
	case "json":
		h = slog.NewJSONHandler(w, o)
	default:
		return nil, usagef("--log-format is %q, want text or json", format)
	}
	l := slog.New(h)
	library := slog.New(atLeast{h, slog.LevelError})
	if level >= 4 {
		library = l
	}
	klog.SetSlogLogger(library)
	return l, nil
}

// atLeast drops records below a level.
type atLeast struct {
	slog.Handler
	min slog.Level
}

func (a atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= a.min && a.Handler.Enabled(ctx, l)
}
func (a atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{a.Handler.WithAttrs(attrs), a.min}
}
func (a atLeast) WithGroup(name string) slog.Handler {
	return atLeast{a.Handler.WithGroup(name), a.min}
}

// runServer opens everything before it starts anything, so that whatever is
// wrong is said at once. It closes in this order: the agent and the proxy, which
// leave pods and rules as they are, then the cluster server.
func runServer(ctx context.Context, o options) error {
	started := time.Now()
	keepHeadroom()
	if err := needRoot("skiff server"); err != nil && !o.disableAgent {
		return fmt.Errorf("%w, or --disable-agent to run no pods", err)
	}
	if !o.disableAgent {
		if err := checkHost(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.cluster.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	server, err := cluster.New(o.cluster)
	if err != nil {
		return explain(err, o)
	}
	var a *agent
	if !o.disableAgent {
		if a, err = newAgent(server, o); err != nil {
			return errors.Join(err, server.Close())
		}
	}
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Run(serverCtx) }()

	g, agentCtx := errgroup.WithContext(ctx)
	g.Go(func() error { settleMemory(agentCtx); return nil })
	g.Go(func() error {
		select {
		case err := <-ended:
			ended <- nil
			if err == nil {
				err = errors.New("the server ended")
			}
			return err
		case <-agentCtx.Done():
			return nil
		}
	})
	g.Go(func() error {
		select {
		case <-server.Ready():
			o.logger.Info("the API is ready", "url", server.URL(), "after", time.Since(started).Round(time.Millisecond), "kubeconfig", server.KubeconfigPath())
		case <-agentCtx.Done():
		}
		return nil
	})
	if a != nil {
		g.Go(func() error { return a.run(agentCtx, server.Ready()) })
		g.Go(func() error {
			select {
			case <-a.node.Ready():
				o.logger.Info("the node is ready", "node", o.cluster.Name, "after", time.Since(started).Round(time.Millisecond))
			case <-agentCtx.Done():
			}
			return nil
		})
	}
	err = g.Wait()
	if ctx.Err() != nil {
		o.logger.Info("stopping; pods go on running")
	}
	stopServer()
	err = errors.Join(err, <-ended)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		return nil // we were asked to stop
	}
	return err
}

// explain turns what the operating system says into what to do.
func explain(err error, o options) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has the port; choose others with --api-port and --raft-port, or stop it", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: --bind-address %s is no address of this host", err, o.cluster.BindAddress)
	}
	return err
}
