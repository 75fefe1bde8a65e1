package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/skiff-sh/skiff/netproxy/dns"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/skiff-sh/skiff/netproxy/service"
	"golang.org/x/sync/errgroup"
)

// Proxy is the network of one node.
type Proxy struct {
	cfg      Config
	caches   *caches
	table    *ruleset.Table
	network  *podnet.Network
	services *service.Controller
	dns      *dns.Server
	ready    chan struct{}
}

// New checks the config and makes a Proxy. Of the host it only reads.
func New(cfg Config) (*Proxy, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, ready: make(chan struct{})}
	if p.caches, err = newCaches(cfg.Client); err != nil {
		return nil, fmt.Errorf("netproxy: %w", err)
	}
	p.table = ruleset.New(cfg.TableName, cfg.params(), cfg.Logger)
	p.network, err = podnet.New(podnet.Config{
		NodeIP: cfg.NodeIP, ServiceCIDR: cfg.ServiceCIDR, DNSAddr: cfg.DNSAddr, Domain: cfg.ClusterDomain,
		Dir: cfg.networkDir(), Table: p.table, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("netproxy: %w", err)
	}
	p.services, err = service.New(service.Config{
		Services: p.caches.services, Slices: p.caches.slices, Table: p.table, Logger: cfg.Logger,
		Self: service.Self{NodeName: cfg.NodeName, DNSAddr: cfg.DNSAddr},
	})
	if err != nil {
		return nil, fmt.Errorf("netproxy: %w", err)
	}
	p.dns, err = dns.New(dns.Config{
		Addr: cfg.DNSAddr, Domain: cfg.ClusterDomain, Ranges: []netip.Prefix{cfg.ClusterCIDR, cfg.ServiceCIDR},
		Services: p.caches.services, Slices: p.caches.slices, ResolvConf: cfg.UpstreamResolvConf, Listen: cfg.ListenDNS, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("netproxy: %w", err)
	}
	return p, nil
}

func (c Config) params() ruleset.Params {
	return ruleset.Params{ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, DNSAddr: c.DNSAddr,
		HostAddr: podnet.HostAddr(c.NodeIP)}
}

// Network attaches pods; it is node/pod's Network. Attach waits until the node
// has a pod range.
func (p *Proxy) Network() *podnet.Network { return p.network }

// Ready is closed when the rules and every Service are in the kernel and DNS
// listens.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Run keeps the node's network right until ctx ends. What it made stays: pods
// and services go on without it, and the next Run takes over.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.network.Close()
	defer p.table.Close()
	upgrade, err := p.prepare()
	if err != nil {
		return fmt.Errorf("netproxy: %w", err)
	}
	p.warnForeignRules()
	g, ctx := errgroup.WithContext(ctx)
	p.caches.factory.Start(ctx.Done())
	g.Go(func() error { return p.services.Run(ctx) })
	g.Go(func() error {
		// Questions that waited in the socket for our return deserve an answer
		// from full caches.
		select {
		case <-p.services.Ready():
		case <-time.After(dnsPatience):
		case <-ctx.Done():
			return ctx.Err()
		}
		return p.dns.Run(ctx)
	})
	g.Go(func() error { return p.runNodes(ctx) })
	g.Go(func() error { return p.watchLinks(ctx) })
	g.Go(func() error {
		if err := await(ctx, p.services.Ready()); err != nil {
			return err
		}
		if upgrade {
			if _, err := p.table.Ensure(); err != nil {
				return fmt.Errorf("netproxy: %w", err)
			}
		}
		return p.watchTable(ctx)
	})
	g.Go(func() error {
		if err := await(ctx, p.services.Ready(), p.dns.Ready()); err != nil {
			return err
		}
		close(p.ready)
		return nil
	})
	err = g.Wait()
	p.endCaches()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// cachesPatience is how long the end of the caches is waited for. One that pauses
// before it asks for a watch again, as while no server answers, does not hear that
// it is to end (client-go 0.37, up to 30 s), and does nothing more afterwards.
const cachesPatience = time.Second

func (p *Proxy) endCaches() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.caches.factory.Shutdown()
	}()
	select {
	case <-ended:
	case <-time.After(cachesPatience):
	}
}

// dnsPatience is how long DNS waits for the first Services before it answers
// without them: with no API server, names outside of the cluster still resolve.
const dnsPatience = 2 * time.Second

func await(ctx context.Context, chans ...<-chan struct{}) error {
	for _, ch := range chans {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// prepare makes rules, routes and addresses. After an upgrade that changed what
// the maps hold, rules follow later: the old ones work until the new maps are
// filled.
func (p *Proxy) prepare() (upgrade bool, err error) {
	if upgrade, err = p.table.EnsureSets(); err == nil && !upgrade {
		_, err = p.table.Ensure()
	}
	if err != nil {
		return upgrade, fmt.Errorf("nftables: %w (the kernel needs nf_tables with nat, fib and numgen)", err)
	}
	return upgrade, p.network.Prepare()
}

// driftCheck is how often the ruleset's generation is read: one system call.
const driftCheck = 15 * time.Second

// watchTable repairs the table after somebody else changed it, as firewalls do
// that flush everything when they are reloaded.
func (p *Proxy) watchTable(ctx context.Context) error {
	tick := time.NewTicker(driftCheck)
	defer tick.Stop()
	last, err := ruleset.Generation()
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		gen, err := ruleset.Generation()
		if err == nil && gen == last {
			continue
		}
		if err == nil {
			err = p.repair()
		}
		if err != nil {
			p.cfg.Logger.Error("ruleset is not checked", "error", err)
			continue
		}
		last = gen
	}
}

// repair restores the static rules and, if they were damaged, all elements.
func (p *Proxy) repair() error {
	changed, err := p.table.Ensure()
	if err != nil || !changed {
		return err
	}
	p.cfg.Logger.Warn("somebody changed skiff's rules; they are restored", "table", p.cfg.TableName)
	p.services.Resync()
	return p.network.Resync()
}

// Reset removes what this package has made on the host, also when the process
// that made it is gone: the table, links, routes and addresses. Only TableName
// of the config is used. Kernel parameters stay, and DataDir.
func Reset(cfg Config) error {
	name := cfg.TableName
	if name == "" {
		name = DefaultTableName
	}
	return errors.Join(ruleset.Remove(name), podnet.Reset())
}
