package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/node"
)

// Ports of all members; each has an address of its own.
const (
	apiPort    = 26443
	raftPort   = 26444
	gossipPort = 26445
	nodePort   = 26250
)

const kubeletVersion = "v1.37.2+fleet" // of all nodes

// host is a machine with an agent. What is in it survives the agent.
type host struct {
	name string
	addr netip.Addr
	dir  string
	log  *slog.Logger

	containers *containers
	images     *images
	network    *network

	mu   sync.Mutex
	stop context.CancelFunc // nil: the agent is down
	done chan error
}

func newHost(i int, addr netip.Addr, dir string, log *slog.Logger) *host {
	name := fmt.Sprintf("node-%03d", i)
	return &host{name: name, addr: addr, dir: filepath.Join(dir, name), log: log.With("host", name),
		containers: newContainers(), images: newImages(), network: newNetwork(byte(i))}
}

// up starts the agent; the first time it joins with the token.
func (h *host) up(ctx context.Context, seed string, token membership.Token) error {
	a, err := h.open(ctx, seed, token)
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	run, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(run) }()
	h.mu.Lock()
	h.stop, h.done = stop, done
	h.mu.Unlock()
	return nil
}

// down ends the agent without a goodbye. Its containers go on.
func (h *host) down() error {
	h.mu.Lock()
	stop, done := h.stop, h.done
	h.stop = nil
	h.mu.Unlock()
	if stop == nil {
		return nil
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return nil
}

func (h *host) isUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stop != nil
}

// agent is one run of a host's part in the cluster.
type agent struct {
	identity *membership.Identity
	balancer *servers.Balancer
	gossip   *gossip.Gossip
	node     *node.Agent
	idle     func()
}

func (h *host) open(ctx context.Context, seed string, token membership.Token) (_ *agent, err error) {
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, err
	}
	id, err := cluster.NodeID(h.dir)
	if err != nil {
		return nil, err
	}
	a := &agent{balancer: servers.New(h.name, servers.Server{Address: seed})}
	a.identity, err = membership.OpenIdentity(membership.IdentityConfig{
		Dir: filepath.Join(h.dir, "agent"), Name: h.name, NodeID: id, Address: func() string { return h.addr.String() }, Logger: h.log,
		Dial: a.balancer.Dial,
	})
	if err != nil {
		return nil, err
	}
	known, err := membership.LoadCluster(h.dir)
	if err != nil {
		return nil, err
	}
	if !a.identity.Joined() || known == nil {
		if known, err = h.join(ctx, a.identity, id, seed, token); err != nil {
			return nil, err
		}
	}
	a.knowServers(known.Servers, nil)
	a.gossip, err = gossip.New(gossip.Config{Name: h.name, Bind: h.addr, Port: gossipPort, Keys: known.GossipKeys, Logger: h.log,
		Tags: gossip.Tags{ID: id, Role: gossip.RoleAgent, ClusterID: known.ClusterID, Version: Version, NodePort: nodePort, Trust: known.Generation},
		Seeds: func() []string {
			var out []string
			for _, s := range known.Servers {
				out = append(out, s.Gossip())
			}
			return out
		}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.gossip.Close())
		}
	}()
	base := servers.DynamicTransport(a.identity)
	a.idle = base.CloseIdleConnections
	a.node, err = node.New(node.Config{
		Name: h.name, RESTConfig: &rest.Config{Host: servers.Host, Transport: a.balancer.Wrap(base), UserAgent: "skiff-node"},
		TLS: pki.ServerTLS(a.identity, pki.TLSOptions{Protos: []string{"http/1.1"}}), ListenAddr: netip.AddrPortFrom(h.addr, nodePort).String(),
		DataDir: filepath.Join(h.dir, "node"), StateDir: filepath.Join(h.dir, "state"), NodeIP: h.addr,
		Network: h.network, Runtime: h.containers, Images: h.images, Contact: func() node.Contact { return contact(a.gossip) },
		Version: kubeletVersion, RuntimeVersion: Version, Logger: h.log,
	})
	return a, err
}

func (h *host) join(ctx context.Context, identity *membership.Identity, id, seed string, token membership.Token) (*membership.Cluster, error) {
	csr, err := identity.CSR()
	if err != nil {
		return nil, err
	}
	answer, err := membership.Join(ctx, seed, token, membership.JoinRequest{Role: membership.RoleAgent, Name: h.name, NodeID: id, Version: Version,
		Address: h.addr.String(), GossipPort: gossipPort, NodePort: nodePort, CSR: csr})
	if err != nil {
		return nil, err
	}
	if err := identity.Install(answer.Cert, answer.CA); err != nil {
		return nil, err
	}
	return &answer.Cluster, membership.SaveCluster(h.dir, &answer.Cluster)
}

// contact is what a node knows of the others without the API.
func contact(g *gossip.Gossip) node.Contact {
	all, alive := 0, 0
	for _, m := range g.Members() {
		if m.Tags.NodePort == 0 {
			continue
		}
		if all++; m.State == gossip.Alive {
			alive++
		}
	}
	return node.Contact{AliveFraction: float64(alive) / float64(max(all, 1))}
}

// knowServers tells the balancer of the servers of the cluster, and of those in
// the gossip.
func (a *agent) knowServers(known []membership.Server, members []gossip.Member) {
	var list []servers.Server
	for _, s := range known {
		list = append(list, servers.Server{Address: s.API()})
	}
	for _, m := range members {
		if m.Tags.APIPort == 0 || m.State == gossip.Left {
			continue
		}
		s := servers.Server{Address: netip.AddrPortFrom(m.Addr, m.Tags.APIPort).String(), Dead: m.State != gossip.Alive}
		list = slices.DeleteFunc(list, func(o servers.Server) bool { return o.Address == s.Address })
		list = append(list, s)
	}
	if len(list) > 0 {
		a.balancer.Set(list)
	}
}

func (a *agent) run(ctx context.Context) error {
	defer a.idle()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.identity.Run(ctx) })
	g.Go(func() error { return a.gossip.Run(ctx) })
	g.Go(func() error { return a.node.Run(ctx) })
	g.Go(func() error {
		changes, cancel := a.gossip.Changes()
		defer cancel()
		var last []gossip.Member
		for {
			now := slices.DeleteFunc(a.gossip.Members(), func(m gossip.Member) bool { return m.Tags.APIPort == 0 })
			if len(now) > 0 && !slices.EqualFunc(now, last, func(x, y gossip.Member) bool { return x.Addr == y.Addr && x.State == y.State && x.Name == y.Name }) {
				a.knowServers(nil, now)
				last = now
			}
			select {
			case <-changes:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}
