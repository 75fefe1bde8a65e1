package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/node"
)

func agentCommand() *cli.Command {
	return &cli.Command{
		Name:  "agent",
		Usage: "run a node: this host's pods, in a cluster whose servers are elsewhere",
		Description: "The first start needs --join and --token; later ones find what they need in the data directory. The agent\n" +
			"knows all servers, and goes on with another when one fails.\n\n" + flagsDescription,
		Flags: hostFlags(),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := loadConfigFile(c); err != nil {
				return err
			}
			o, err := parseAgent(c)
			if err != nil {
				return err
			}
			if err := o.findAddress(); err != nil {
				return err
			}
			return runAgent(c.Context, o)
		},
	}
}

func parseAgent(c *cli.Context) (hostOptions, error) {
	o, err := parseHost(c, "gossip-port", "node-port")
	if err != nil {
		return o, err
	}
	return o, o.checkLabels(false)
}

// runAgent runs until ctx ends. What servers say, and that none answers, ends
// nothing.
func runAgent(ctx context.Context, o hostOptions) error {
	started := time.Now()
	keepHeadroom()
	if err := needRoot("skiff agent"); err != nil {
		return err
	}
	if err := checkHost(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := consensus.LockDir(o.dataDir)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := o.keepName(); err != nil {
		return err
	}
	_, upgrades, err := openUpgrades(o)
	if err != nil {
		return err
	}
	if err := cluster.CheckProgram(o.dataDir, version, false); err != nil {
		return err
	}
	a := &agent{o: o, servers: servers.New(o.name), orders: make(bell, 1), roster: cluster.OpenRoster(o.dataDir, o.logger), unfit: make(chan string, 1)}
	a.member, a.leave = context.WithCancelCause(ctx)
	defer a.leave(nil)
	if err := a.open(ctx); err != nil {
		return err
	}
	n, err := newNodePart(o, a.access())
	if err != nil {
		return explain(err, o)
	}
	g, ctx2 := errgroup.WithContext(ctx)
	g.Go(func() error { settleMemory(ctx2); return nil })
	g.Go(func() error { return o.watchAddress(ctx2) })
	g.Go(func() error { return a.run(ctx2) })
	g.Go(func() error {
		select {
		case why := <-a.unfit:
			return errors.New(why)
		case <-ctx2.Done():
			return nil
		}
	})
	reached := a.reachable(ctx2)
	g.Go(func() error { return n.run(ctx2, reached) })
	g.Go(func() error { n.sayReady(ctx2, started); return nil })
	g.Go(func() error { return notifyReady(ctx2, o.logger, n.node.Ready(), "no server answers yet") })
	g.Go(func() error {
		return upgrades.Run(ctx2, allOf(ctx2, reached, n.node.Ready()), &binary.HTTP{Client: a.client(0), Base: servers.Host}, a.orders)
	})
	err = g.Wait()
	leaving(ctx, o, upgrades, err)
	return ending(ctx, err)
}

// agent is a host's part in a cluster whose servers are elsewhere: identity,
// gossip, and the way to the servers.
type agent struct {
	o        hostOptions
	id       string
	identity *membership.Identity
	servers  *servers.Balancer
	gossip   *gossip.Gossip
	roster   *cluster.Roster
	unfit    chan string             // of one place: why this program does not work here, as a server said at the start
	orders   bell                    // rings when there may be a new order of a roll-out
	member   context.Context         // ends when this node was removed from the cluster
	leave    context.CancelCauseFunc // ends member

	asked bool // a server has answered; for take alone

	mu    sync.Mutex
	known membership.Cluster // as on disk; guarded by mu
}

// open makes or reads the identity, joins if need be, and opens the gossip port.
func (a *agent) open(ctx context.Context) (err error) {
	o := a.o
	server, err := exists(o.dataDir, "pki", pki.CACertFile)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if server {
		return fmt.Errorf("this host is a server of its cluster (%s): run skiff leave and skiff reset --delete-data before it becomes an agent", filepath.Join(o.dataDir, "pki"))
	}
	if a.id, err = cluster.NodeID(o.dataDir); err != nil {
		return err
	}
	a.identity, err = membership.OpenIdentity(membership.IdentityConfig{
		Dir: filepath.Join(o.dataDir, "agent"), Name: o.name, NodeID: a.id, Address: func() string { return o.advertise.String() },
		Dial: a.servers.Dial, OnConfig: a.take, Program: membership.ThisProgram(version), Logger: o.logger.With("component", "identity"),
	})
	if err != nil {
		return err
	}
	if err := a.join(ctx); err != nil {
		return err
	}
	a.aim(nil)
	c := &a.known
	a.gossip, err = gossip.New(gossip.Config{
		Name: o.name, Bind: o.bind, Advertise: o.advertise, Port: o.gossipPort, Keys: c.GossipKeys,
		Tags: gossip.Tags{ID: a.id, Role: gossip.RoleAgent, ClusterID: c.ClusterID, Version: version, NodePort: o.nodePort, Trust: c.Generation,
			MinLevel: fsm.MinLevel, MaxLevel: fsm.MaxLevel},
		Seeds: a.seeds, Logger: o.logger.With("component", "gossip"),
	})
	if err != nil {
		return explain(err, o)
	}
	return nil
}

func (a *agent) join(ctx context.Context) error {
	o := a.o
	known, err := membership.LoadCluster(o.dataDir)
	if err != nil {
		return err
	}
	switch {
	case a.identity.Joined() && known != nil:
		a.known = *known
		o.join.sayUnused(o.logger, o.dataDir)
		return o.join.sameCluster(a.identity.CA(), known, o.dataDir)
	case o.join.host == "":
		return usagef("this host is in no cluster yet: start it with --join HOST --token T (skiff token create --role agent, on a server, makes a token)")
	}
	csr, err := a.identity.CSR()
	if err != nil {
		return err
	}
	answer, err := o.join.ask(ctx, membership.JoinRequest{Role: membership.RoleAgent, Name: o.name, NodeID: a.id, Version: version,
		Address: o.advertise.String(), GossipPort: o.gossipPort, NodePort: o.nodePort, CSR: csr}, o.logger)
	if err != nil {
		return err
	}
	// The certificate comes last: it tells that the join is complete.
	if err := membership.SaveCluster(o.dataDir, &answer.Cluster); err != nil {
		return err
	}
	a.known = answer.Cluster
	return a.identity.Install(answer.Cert, answer.CA)
}

// access is how the node on this host reaches the cluster.
func (a *agent) access() access {
	c := &rest.Config{Host: servers.Host, Transport: &memberTransport{member: a.member,
		RoundTripper: &watchful{RoundTripper: a.servers.Wrap(servers.DynamicTransport(a.identity)), refused: a.identity.Refresh}}}
	asNode(c)
	serving := pki.ServerTLS(a.identity, pki.TLSOptions{Protos: []string{"http/1.1"}})
	return access{api: c, tls: serving, settings: a.known.Settings, contact: func() node.Contact {
		return node.Contact{Removed: a.removed(), AliveFraction: a.roster.AliveFraction(cluster.Peers(a.gossip), a.id)}
	}}
}

// watchful calls refused when a server answers that it does not know this node,
// as when it was removed, at most once in refusedEvery.
type watchful struct {
	http.RoundTripper
	refused func()

	mu   sync.Mutex
	last time.Time
}

const refusedEvery = 10 * time.Second

// WrappedRoundTripper lets client-go find the transport below.
func (w *watchful) WrappedRoundTripper() http.RoundTripper { return w.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (w *watchful) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		w.mu.Lock()
		due := time.Since(w.last) > refusedEvery
		if due {
			w.last = time.Now()
		}
		w.mu.Unlock()
		if due {
			w.refused()
		}
	}
	return resp, err
}

// removed tells whether this host is no member any more; that the process is
// stopped is no removal.
func (a *agent) removed() bool {
	var r *membership.Refusal
	return errors.As(context.Cause(a.member), &r) && r.Removed
}

// reachable gives a channel that is closed when a server has answered.
func (a *agent) reachable(ctx context.Context) <-chan struct{} {
	out := make(chan struct{})
	client := a.client(readyPatience)
	go func() {
		defer client.CloseIdleConnections()
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, servers.Host+"/livez", nil)
			if err == nil {
				var resp *http.Response
				if resp, err = client.Do(req); err == nil {
					resp.Body.Close()
					close(out)
					return
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return out
}

// client asks any server, as this node.
func (a *agent) client(timeout time.Duration) *http.Client {
	return &http.Client{Transport: a.servers.Wrap(servers.DynamicTransport(a.identity)), Timeout: timeout}
}

// run takes part in the gossip and follows what the servers say.
func (a *agent) run(ctx context.Context) error {
	changes, cancel := a.gossip.Changes()
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.gossip.Run(ctx) })
	g.Go(func() error { cluster.ReportLoad(ctx, a.gossip); return nil })
	g.Go(func() error { cluster.ReportSpace(ctx, a.gossip, a.o.dataDir); return nil })
	g.Go(func() error {
		if err := a.identity.Run(ctx); err != nil && ctx.Err() == nil {
			a.o.logger.Error("this node is no member of the cluster any more; its pods go on until skiff reset, but those of StatefulSets, which must not run twice", "error", err)
			a.leave(err)
			if err := a.gossip.Leave(ctx); err != nil && ctx.Err() == nil {
				a.o.logger.Warn("gossip was not told that this node leaves: the others see it die", "error", err)
			}
		}
		return nil
	})
	g.Go(func() error {
		orders := uint64(0)
		for {
			peers := cluster.Peers(a.gossip)
			for _, p := range peers {
				if p.Orders > orders {
					orders = p.Orders
					a.orders.ring()
				}
			}
			a.roster.Update(peers, nil)
			a.aim(peers)
			if a.behind(peers) {
				a.identity.Refresh()
			}
			select {
			case <-changes:
			case <-time.After(behindCheck):
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// behindCheck is how often behind is asked when gossip is silent.
const behindCheck = 15 * time.Second

// behind tells whether the servers may have newer keys: one of them says so, or
// begins another epoch, whose keys may be older, or none is heard of, as when the
// key of the gossip was replaced while this host was cut off.
func (a *agent) behind(peers []membership.Peer) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	latest := latestEpoch(peers)
	if latest > max(a.known.Epoch.Number, 1) {
		return true
	}
	heard := false
	for _, p := range peers {
		if p.Role.Votes() && p.State == membership.Alive && max(p.Epoch, 1) == latest {
			if heard = true; p.Trust > a.known.Generation {
				return true
			}
		}
	}
	return !heard
}

// latestEpoch is the number of the latest that a living server has.
func latestEpoch(peers []membership.Peer) uint64 {
	latest := uint64(1)
	for _, p := range peers {
		if p.Role.Votes() && p.State == membership.Alive {
			latest = max(latest, p.Epoch)
		}
	}
	return latest
}

// take keeps what a server said, unless the cluster goes on without that server.
func (a *agent) take(c *membership.NodeConfig) {
	if latest := latestEpoch(cluster.Peers(a.gossip)); max(c.Epoch.Number, 1) < latest {
		a.o.logger.Debug("the settings of a server that was left behind are not taken", "epoch", c.Epoch, "latest", latest)
		return
	}
	switch {
	case c.Unfit != "" && !a.asked: // it must not begin
		a.unfit <- c.Unfit
	case c.Unfit != "":
		a.o.logger.Error("this version does not fit the cluster any more", "reason", c.Unfit)
	default:
		cluster.NoteProgram(a.o.dataDir, version, c.FeatureLevel, a.o.logger)
	}
	a.asked = true
	if err := a.gossip.SetKeys(c.GossipKeys); err != nil {
		a.o.logger.Error("the keys of the gossip are not replaced", "error", err)
		return
	}
	a.mu.Lock()
	a.known.GossipKeys, a.known.Generation, a.known.Settings, a.known.Servers = c.GossipKeys, c.Generation, c.Settings, c.Servers
	if !c.Epoch.Same(a.known.Epoch) && c.Epoch.Number > 1 {
		a.o.logger.Info("the cluster goes on in another epoch of its log; pods go on", "epoch", c.Epoch)
	}
	a.known.Epoch = c.Epoch
	a.save()
	a.mu.Unlock()
	a.gossip.SetTags(func(t *gossip.Tags) { t.Trust = c.Generation })
	a.aim(cluster.Peers(a.gossip))
}

// save writes cluster.json. a.mu is held. A full disk must not end the agent.
func (a *agent) save() {
	if err := membership.SaveCluster(a.o.dataDir, &a.known); err != nil {
		a.o.logger.Error("what this host knows of the cluster is not saved", "error", err)
	}
}

// aim tells the balancer which servers there are: those that are known, as gossip
// sees them. Those of an epoch that was left behind count as dead.
func (a *agent) aim(peers []membership.Peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	byID := map[string]membership.Server{}
	var order []string
	put := func(s membership.Server) {
		if _, have := byID[s.ID]; !have {
			order = append(order, s.ID)
		}
		byID[s.ID] = s
	}
	for _, s := range a.known.Servers {
		put(s)
	}
	dead, latest := map[string]bool{}, latestEpoch(peers)
	for _, p := range peers {
		if !p.Role.Votes() {
			continue
		}
		if p.State == membership.Left {
			delete(byID, p.ID)
			continue
		}
		put(p.Server)
		dead[p.ID] = p.State == membership.Dead || max(p.Epoch, 1) < latest
	}
	var known []membership.Server
	var list []servers.Server
	for _, id := range order {
		if s, have := byID[id]; have {
			known = append(known, s)
			list = append(list, servers.Server{Address: s.API(), Dead: dead[id]})
		}
	}
	if len(list) == 0 {
		return
	}
	a.servers.Set(list)
	if !reflect.DeepEqual(known, a.known.Servers) {
		a.known.Servers = known
		a.save()
	}
}

// seeds are where gossip looks for others.
func (a *agent) seeds() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, s := range a.known.Servers {
		out = append(out, s.Gossip())
	}
	return out
}
