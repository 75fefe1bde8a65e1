package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
)

func serverCommand() *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "run a server: API, store, scheduler, controllers, and this host's pods",
		Description: "The first server is a cluster; others join it with --join and --token, and need neither when they start\n" +
			"again. With three or more servers the cluster goes on when one is lost.\n\n" + flagsDescription,
		Flags: hostFlags(append([]cli.Flag{
			numberFlag("api-port", "port of the Kubernetes API", cluster.DefaultPort),
			numberFlag("raft-port", "port of the servers among themselves", cluster.DefaultRaftPort),
			stringFlag("cluster-cidr", "where pods get their addresses; that of the cluster, if it is joined", "10.42.0.0/16"),
			stringFlag("service-cidr", "where services get their addresses; that of the cluster, if it is joined", "10.43.0.0/16"),
			stringFlag("cluster-domain", "DNS domain of services; that of the cluster, if it is joined", "cluster.local"),
			&cli.DurationFlag{Name: "pod-eviction-timeout", Usage: "how long pods stay bound to a lost node, unless they say otherwise, 0 for no time at all; given, it is set for the whole cluster, and each server uses it from its next start on (default: that of the cluster, at first 5m0s)", EnvVars: env("pod-eviction-timeout"), DefaultText: "none"},
			listFlag("tls-san", "further names and addresses of the API, for its certificate"),
			boolFlag("disable-agent", "run no pods on this host"),
			boolFlag("witness", "only vote: run no pods, and lead only while no other server can"),
			stringFlag("passphrase-file", "file with the passphrase of the cluster key, if it has one", ""),
			boolFlag("profiling", "serve /debug/pprof on the API port to administrators"),
		}, snapshotFlags()...)...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := loadConfigFile(c); err != nil {
				return err
			}
			o, err := parseServer(c)
			if err != nil {
				return err
			}
			return runServer(c.Context, o)
		},
	}
}

// controlPlaneLabel is on the nodes of servers: kubectl get nodes shows it as
// their role. It says nothing of what may run there; no taint goes with it.
const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// serverOptions are those of a server and the node on its host.
type serverOptions struct {
	hostOptions
	cluster      cluster.Config
	disableAgent bool
	// given are the settings of the cluster that were asked for; zero where none
	// was.
	given membership.Settings
}

func parseServer(c *cli.Context) (o serverOptions, err error) {
	if o.hostOptions, err = parseHost(c, "api-port", "raft-port", "gossip-port", "node-port"); err != nil {
		return o, err
	}
	if _, given := o.labels[controlPlaneLabel]; !given {
		o.labels[controlPlaneLabel] = ""
	}
	if err := o.checkLabels(true); err != nil {
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
	if cidrs["cluster-cidr"].Overlaps(cidrs["service-cidr"]) {
		return o, usagef("--cluster-cidr %s and --service-cidr %s overlap", cidrs["cluster-cidr"], cidrs["service-cidr"])
	}
	if c.IsSet("cluster-cidr") {
		o.given.ClusterCIDR = cidrs["cluster-cidr"]
	}
	if c.IsSet("service-cidr") {
		o.given.ServiceCIDR = cidrs["service-cidr"]
	}
	if c.IsSet("cluster-domain") {
		o.given.ClusterDomain = c.String("cluster-domain")
	}
	var timeout *time.Duration // nil: that of the cluster
	if c.IsSet("pod-eviction-timeout") {
		t := c.Duration("pod-eviction-timeout")
		if t < 0 || t > 0 && t < time.Second {
			return o, usagef("--pod-eviction-timeout %s: want 0 or at least 1s", t)
		}
		timeout = &t
	}
	role := membership.RoleServer
	if c.Bool("witness") {
		role = membership.RoleWitness
	}
	o.disableAgent = c.Bool("disable-agent") || c.Bool("witness")
	var passphrase []byte
	if path := c.String("passphrase-file"); path != "" {
		if passphrase, err = seal.ReadPassphrase(path); err != nil {
			return o, usagef("--passphrase-file: %v", err)
		}
	}
	snapshots, err := parseSnapshots(c, o.dataDir)
	if err != nil {
		return o, err
	}
	if err := o.findAddress(); err != nil {
		return o, err
	}
	o.cluster = cluster.Config{
		Name: o.name, DataDir: o.dataDir, Role: role, AdvertiseAddress: o.advertise, BindAddress: o.bind,
		Port: uint16(c.Int("api-port")), RaftPort: uint16(c.Int("raft-port")), GossipPort: o.gossipPort, ServerNames: c.StringSlice("tls-san"),
		ClusterCIDR: cidrs["cluster-cidr"], ServiceCIDR: cidrs["service-cidr"], ClusterDomain: c.String("cluster-domain"),
		PodEvictionTimeout: timeout, Passphrase: passphrase, Snapshots: snapshots,
		Version: version, Profiling: c.Bool("profiling"), Logger: o.logger,
	}
	if !o.disableAgent {
		o.cluster.NodePort = o.nodePort
	} else if idle := slices.DeleteFunc(slices.Clone(podFlags), func(f string) bool { return !c.IsSet(f) }); len(idle) > 0 {
		o.logger.Warn("flags without effect: this host runs no pods", "flags", "--"+strings.Join(idle, " --"))
	}
	return o, nil
}

// podFlags are those of a host that runs pods.
var podFlags = append([]string{"node-port", "node-label", "node-taint", "max-pods", "image-dir", "local-path-dir", "pod-log-dir", staticPodPath, "seccomp-default", "allowed-unsafe-sysctls", "resolv-conf"}, flagNames(slices.Concat(reserveFlags(), houseFlags(), shutdownFlags()))...)

func flagNames(flags []cli.Flag) (out []string) {
	for _, f := range flags {
		out = append(out, f.Names()[0])
	}
	return out
}

// runServer opens everything before it starts anything, so that whatever is
// wrong is said at once. It closes in this order: the node and the proxy, which
// leave pods and rules as they are, then the cluster server.
func runServer(ctx context.Context, o serverOptions) error {
	started := time.Now()
	keepHeadroom()
	if err := needRoot("skiff server"); err != nil && !o.disableAgent {
		return fmt.Errorf("%w, or --disable-agent to run no pods", err)
	}
	if !o.disableAgent {
		if err := checkHost(); err != nil {
			return fmt.Errorf("%w; use --disable-agent to run without pods", err)
		}
	}
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := consensus.LockDir(o.dataDir)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	o.cluster.Lock = lock
	if err := o.mendKnown(); err != nil {
		return err
	}
	if err := o.keepName(); err != nil {
		return err
	}
	o.cluster.Name = o.name
	programs, upgrades, err := openUpgrades(o.hostOptions)
	if err != nil {
		return err
	}
	o.cluster.Programs = programs
	if err := joinServer(ctx, &o); err != nil {
		return err
	}
	server, err := cluster.New(o.cluster)
	if err != nil {
		return explain(err, o.hostOptions)
	}
	var n *nodePart
	if !o.disableAgent {
		if n, err = newNodePart(o.hostOptions, serverAccess(server, o)); err != nil {
			return errors.Join(explain(err, o.hostOptions), server.Close())
		}
	}
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Run(serverCtx) }()

	g, nodeCtx := errgroup.WithContext(ctx)
	g.Go(func() error { settleMemory(nodeCtx); return nil })
	g.Go(func() error { return o.watchAddress(nodeCtx) })
	g.Go(func() error {
		select {
		case err := <-ended:
			ended <- nil
			if err == nil {
				err = errors.New("the server ended")
			}
			return err
		case <-nodeCtx.Done():
			return nil
		}
	})
	g.Go(func() error {
		select {
		case <-server.Ready():
			o.logger.Info("the API is ready", "url", server.URL(), "after", time.Since(started).Round(time.Millisecond), "kubeconfig", server.KubeconfigPath())
		case <-nodeCtx.Done():
		}
		return nil
	})
	g.Go(func() error {
		return notifyReady(nodeCtx, o.logger, server.Ready(), "the API waits for the other servers")
	})
	healthy := []<-chan struct{}{server.Ready()}
	if n != nil {
		g.Go(func() error { return n.run(nodeCtx, server.Ready()) })
		g.Go(func() error { n.sayReady(nodeCtx, started); return nil })
		healthy = append(healthy, n.node.Ready())
	}
	g.Go(func() error { return runServerUpgrades(nodeCtx, upgrades, server, healthy) })
	err = g.Wait()
	leaving(ctx, o.hostOptions, upgrades, err)
	stopServer()
	return ending(ctx, errors.Join(err, <-ended))
}

// leaving is what there is to say when the parts on this host have ended with err.
func leaving(ctx context.Context, o hostOptions, upgrades *binary.Executor, err error) {
	if ctx.Err() != nil {
		o.logger.Info("stopping; pods go on running")
		upgrades.Stopped()
	}
	notifyEnding(o.logger, ending(ctx, err))
}

// ending gives what a command returns for what its parts ended with.
func ending(ctx context.Context, err error) error {
	var other *binary.Exec
	switch {
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)) || errors.As(err, &other)):
		return nil // we were asked to stop
	case errors.As(err, &other):
		return other
	case ctx.Err() == nil && (errors.Is(err, cluster.ErrRestart) || errors.Is(err, errAddressGone)):
		return errAgain
	}
	return err
}

// explain turns what the operating system says into what to do.
func explain(err error, o hostOptions) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has the port; stop it, or choose another with --%s", err, strings.Join(o.ports, " or --"))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: --bind-address %s is no address of this host", err, o.bind)
	}
	return err
}
