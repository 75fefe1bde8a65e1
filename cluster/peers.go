package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm"
)

func portText(p uint16) string { return strconv.Itoa(int(p)) }

// self is how others reach this server.
func (s *Server) self() membership.Server {
	return membership.Server{Name: s.cfg.Name, ID: s.id, Address: s.cfg.AdvertiseAddress,
		APIPort: s.cfg.Port, RaftPort: s.cfg.RaftPort, GossipPort: s.cfg.GossipPort}
}

// peers is what gossip knows, this server included.
func (s *Server) peers() []membership.Peer {
	g := s.gossip.Load()
	if g == nil {
		return []membership.Peer{{Server: s.self(), Role: s.cfg.Role, NodePort: s.cfg.NodePort, Version: s.cfg.Version, State: membership.Alive, Since: s.started,
			MinLevel: fsm.MinLevel, MaxLevel: fsm.MaxLevel}}
	}
	return Peers(g)
}

// Peers gives the members of the gossip.
func Peers(g *gossip.Gossip) []membership.Peer {
	list := g.Members()
	out := make([]membership.Peer, len(list))
	for i, m := range list {
		out[i] = membership.Peer{
			Server: membership.Server{Name: m.Name, ID: m.Tags.ID, Address: m.Addr, APIPort: m.Tags.APIPort, RaftPort: m.Tags.RaftPort, GossipPort: m.Port},
			Role:   membership.Role(m.Tags.Role), NodePort: m.Tags.NodePort, Version: m.Tags.Version,
			State: membership.State(m.State), Since: m.Since, Load: m.Tags.Load, Trust: m.Tags.Trust,
			Epoch: m.Tags.Epoch, EpochHash: m.Tags.EpochHash,
			Orders: m.Tags.Orders, MinLevel: int(m.Tags.MinLevel), MaxLevel: int(m.Tags.MaxLevel), Free: m.Tags.Free,
		}
	}
	return out
}

// aliveUnknown is how long after its start a server takes members for alive that
// gossip does not know: who died before is unknown for ever, and was dead for long
// by then.
const aliveUnknown = time.Hour

// alive is what gossip says of a member.
func (s *Server) alive(id string) bool {
	g := s.gossip.Load()
	if g == nil {
		return true
	}
	if m, ok := g.ByID(id); ok {
		return m.State == gossip.Alive
	}
	return time.Since(s.started) < aliveUnknown
}

// hub tells several readers of changes. The zero value is ready.
type hub struct {
	mu   sync.Mutex
	subs map[chan struct{}]struct{}
}

// Changes gives a channel that is poked after every change, and holds one poke.
func (h *hub) Changes() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = map[chan struct{}]struct{}{}
	}
	h.subs[ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, ch)
	}
}

func (h *hub) poke() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// runGossip takes part in the gossip as soon as this server knows the cluster's
// ID and keys: from its last run or its join, or, in a new cluster, when the
// state has them.
func (s *Server) runGossip(ctx context.Context) error {
	id, keys, err := s.gossipIdentity(ctx)
	if err != nil {
		return nil // stopped meanwhile
	}
	select { // one that was removed while it was down must not seem to be back
	case <-s.members.Asked():
	case <-ctx.Done():
		return nil
	}
	if s.members.Membership().Err() != nil {
		return nil
	}
	generation, _ := s.trusted()
	g, err := gossip.New(gossip.Config{
		Name: s.cfg.Name, Bind: s.cfg.BindAddress, Advertise: s.cfg.AdvertiseAddress, Port: s.cfg.GossipPort, Keys: keys,
		Tags: gossip.Tags{ID: s.id, Role: gossip.Role(s.cfg.Role), ClusterID: id, Version: s.cfg.Version,
			APIPort: s.cfg.Port, RaftPort: s.cfg.RaftPort, NodePort: s.cfg.NodePort, Trust: generation, MinLevel: fsm.MinLevel, MaxLevel: fsm.MaxLevel,
			Epoch: s.epoch.Number, EpochHash: EpochHash(s.epoch)},
		Seeds: s.seeds, Timing: s.cfg.GossipTiming, Logger: s.cfg.Logger.With("component", "gossip"),
	})
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	s.gossip.Store(g)
	changes, cancel := g.Changes()
	defer cancel()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return g.Run(ctx) })
	tasks.Go(func() error { ReportLoad(ctx, g); return nil })
	tasks.Go(func() error { ReportSpace(ctx, g, s.cfg.DataDir); return nil })
	tasks.Go(func() error { s.followTrust(ctx, g); return nil })
	tasks.Go(func() error {
		s.upgrades.Follow(ctx, func() { g.SetTags(func(t *gossip.Tags) { t.Orders = s.upgrades.Newest() }) })
		return nil
	})
	tasks.Go(func() error {
		removals, cancel := s.members.Removals()
		defer cancel()
		for {
			s.forgetRemoved(g)
			s.bookkeeping(ctx, nil)
			s.peersChanged.poke()
			select {
			case <-changes:
			case <-removals:
			case <-time.After(kubeconfigCheck):
			case <-ctx.Done():
				return nil
			}
		}
	})
	return tasks.Wait()
}

// forgetRemoved drops former members, whichever server has removed them, unless
// another host has their name by now.
func (s *Server) forgetRemoved(g *gossip.Gossip) {
	for _, m := range g.Members() {
		if m.State != gossip.Alive && s.members.Removed(m.Tags.ID) {
			g.Forget(m.Name)
		}
	}
}

// kubeconfigCheck is how often the age of the administrator's certificate is
// looked at.
const kubeconfigCheck = time.Hour

// identityPoll is how often a server of a new cluster looks for its ID.
const identityPoll = time.Second

// gossipIdentity waits for the cluster's ID and the gossip keys.
func (s *Server) gossipIdentity(ctx context.Context) (id string, keys [][]byte, err error) {
	s.known.mu.Lock()
	id, keys = s.known.cluster.ClusterID, s.known.cluster.GossipKeys
	s.known.mu.Unlock()
	if id != "" && len(keys) > 0 {
		return id, keys, nil
	}
	changes, cancel := s.trust.Changes()
	defer cancel()
	for {
		if id = s.node.Stats().ClusterID; id != "" {
			if _, keys = s.trusted(); len(keys) > 0 {
				return id, keys, nil
			}
		}
		select {
		case <-changes:
		case <-time.After(identityPoll): // the ID comes without a word
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
}

// checkGossipPort finds out early that another program has the port. The gossip
// opens it when it begins.
func (s *Server) checkGossipPort() error {
	at := hostPort(s.cfg.BindAddress, s.cfg.GossipPort)
	l, err := net.Listen("tcp", at)
	if err != nil {
		return fmt.Errorf("open the port of the gossip: %w", err)
	}
	p, err := net.ListenPacket("udp", at)
	if err != nil {
		return errors.Join(fmt.Errorf("open the port of the gossip: %w", err), l.Close())
	}
	return errors.Join(l.Close(), p.Close())
}

// trusted gives the generation of certificates and keys that this server has
// installed, and the keys of the gossip.
func (s *Server) trusted() (uint64, [][]byte) {
	if s.trust == nil {
		return 0, nil
	}
	generation, _, keys := s.trust.Document()
	return generation, keys
}

// followTrust gives new keys to the gossip, and tells the others what this
// server has installed.
func (s *Server) followTrust(ctx context.Context, g *gossip.Gossip) {
	changes, cancel := s.trust.Changes()
	defer cancel()
	var told uint64
	for {
		if generation, keys := s.trusted(); len(keys) > 0 && generation != told {
			if err := g.SetKeys(keys); err != nil {
				s.cfg.Logger.Error("the keys of the gossip are not replaced", "error", err)
			} else {
				s.bookkeeping(ctx, keys)
				g.SetTags(func(t *gossip.Tags) { t.Trust = generation })
				told = generation
			}
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}
