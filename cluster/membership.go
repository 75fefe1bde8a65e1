package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/cluster/trust"
	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// leaf issues a certificate and keeps it for the status under its purpose.
func (s *Server) leaf(purpose string, r pki.Request) (*pki.Leaf, error) {
	l, err := s.pki.Leaf(r)
	if err != nil {
		return nil, fmt.Errorf("certificate: %s: %w", purpose, err)
	}
	s.leaves[purpose] = l
	return l, nil
}

// openTrust makes what seals secrets and what follows the cluster's keys.
func (s *Server) openTrust() (err error) {
	log := s.cfg.Logger.With("component", "trust")
	s.sealer, err = seal.New(seal.Config{Key: s.pki.ClusterKey(), Store: s.state, Log: s.node, Prefixes: storage.SealedPrefixes(), Logger: log})
	if err != nil {
		return err
	}
	s.trust, err = trust.New(trust.Config{Node: s.node, Store: s.state, PKI: s.pki, Sealer: s.sealer, Name: s.cfg.Name,
		GossipKeys: s.known.cluster.GossipKeys, Members: s.trustMembers, Logger: log})
	return err
}

// trustMembers tells how far the others are with new keys.
func (s *Server) trustMembers() []trust.Member {
	var out []trust.Member
	for _, p := range s.peers() {
		if p.State == membership.Left {
			continue
		}
		m := trust.Member{Name: p.Name, Trust: p.Trust, Alive: p.State == membership.Alive, Ports: map[string]string{}}
		if p.Role.Votes() {
			m.Ports["api"], m.Ports["raft"] = p.API(), p.Raft()
		}
		if p.NodePort != 0 {
			m.Ports["node"] = hostPort(p.Address, p.NodePort)
		}
		out = append(out, m)
	}
	return out
}

func (s *Server) openMembership() (err error) {
	s.leases, err = nodehealth.NewLeases(nodehealth.LeasesConfig{Verify: s.verifyLeading, Revision: func() uint64 { return uint64(s.state.Revision()) }})
	if err != nil {
		return err
	}
	s.members, err = membership.New(membership.Config{
		Self: s.self, Role: s.cfg.Role, Version: s.cfg.Version, Started: s.started,
		Store: s.state, Log: s.node, Raft: raftMembers{s.node}, Authority: s.pki,
		Peers: s.peers, Servers: s.servers, Forget: s.forget, LeaveGossip: s.leaveGossip, Leaves: s.trust.Leaves,
		Settings: s.Settings, Trust: s.trusted, Epoch: func() raftdir.Epoch { return s.epoch }, EpochWarnings: s.epochWarnings, Upgrade: func() string { return s.upgrades.Line() },
		ServerFiles: func() (map[string][]byte, error) { return s.pki.Files(), nil },
		Client:      s.client,
		Duties:      func() []string { return s.leader.Running() }, Evictions: s.evictionStatus, Certificates: s.certificates,
		Snapshots: s.askSnapshots,
		Logger:    s.cfg.Logger.With("component", "membership"),
	})
	return err
}

// verifyLeading proves that this server leads and gives its term. A term that
// ended meanwhile gives another number, never an older one.
func (s *Server) verifyLeading(ctx context.Context) (uint64, error) {
	if err := s.node.Barrier(ctx); err != nil {
		return 0, err
	}
	return s.node.Stats().Term, nil
}

// client is an administrator in this process.
func (s *Server) client() kubernetes.Interface {
	c, err := kubernetes.NewForConfig(s.api.LoopbackClientConfig())
	if err != nil {
		s.cfg.Logger.Error("client of the own API", "error", err)
		return nil
	}
	return c
}

func (s *Server) isRemoved(id string) bool { return s.members.Removed(id) }

func (s *Server) forget(name string) {
	if g := s.gossip.Load(); g != nil {
		g.Forget(name)
	}
}

func (s *Server) leaveGossip(ctx context.Context) error {
	if g := s.gossip.Load(); g != nil {
		return g.Leave(ctx)
	}
	return nil
}

// rpcHandlers are what other servers may call on this one.
func (s *Server) rpcHandlers() map[string]consensus.Handler {
	late := func(f func() consensus.Handler) consensus.Handler { // the parts are made after the log
		return func(ctx context.Context, from string, body []byte) ([]byte, error) { return f()(ctx, from, body) }
	}
	out := map[string]consensus.Handler{
		nodehealth.LeaseMethod:     late(func() consensus.Handler { return s.leases.Handle }),
		nodehealth.EndMethod:       late(func() consensus.Handler { return s.leases.HandleEnd }),
		membership.MethodSnapshots: s.snapshotStatus,
		membership.MethodStatus:    late(func() consensus.Handler { return s.members.Methods()[membership.MethodStatus] }),
		membership.MethodRemove:    late(func() consensus.Handler { return s.members.Methods()[membership.MethodRemove] }),
	}
	for _, m := range upgrade.MethodNames() {
		out[m] = late(func() consensus.Handler { return s.upgrades.Methods()[m] })
	}
	return out
}

// handlers are the paths of skiff's own API.
func (s *Server) handlers() map[string]http.Handler {
	log := s.cfg.Logger.With("component", "api")
	out := snapshotHandlers(s.Snapshot, s.node.SnapshotHere, log)
	maps.Copy(out, s.restoreHandlers())
	maps.Copy(out, s.members.Handlers())
	maps.Copy(out, s.trust.Handlers())
	maps.Copy(out, s.sealer.Handlers())
	maps.Copy(out, s.upgrades.Handlers())
	out[RecoverPath] = http.HandlerFunc(s.serveRecover)
	out[nodehealth.LeasePath] = nodehealth.Handler(s.node.CallLeader, log)
	return out
}

// joinAddresses are the Raft addresses of the other servers that this one knew
// of when it was opened.
func (s *Server) joinAddresses() []string {
	var out []string
	for _, m := range s.known.cluster.Servers {
		if m.ID != s.id {
			out = append(out, m.Raft())
		}
	}
	return out
}

// evictionStatus is what the node lifecycle controller shows on the leader.
func (s *Server) evictionStatus() *membership.EvictionStatus {
	st, ok := s.evictions.Status()
	if !ok {
		return nil
	}
	out := &membership.EvictionStatus{Frozen: st.Frozen, Reason: st.Reason, Waiting: st.Waiting}
	if !st.Since.IsZero() {
		out.Since = &st.Since
	}
	return out
}

// certificates are those that this server uses, and the CAs that are trusted.
func (s *Server) certificates() []membership.Certificate {
	var out []membership.Certificate
	for purpose, l := range s.leaves {
		cert, err := l.Certificate()
		if err != nil || cert.Leaf == nil {
			continue
		}
		out = append(out, membership.Certificate{Name: purpose, Issuer: cert.Leaf.Issuer.CommonName,
			Issued: pki.IssuedAt(cert.Leaf), NotBefore: cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter, RenewAt: timePointer(l.RenewAt())})
	}
	slices.SortFunc(out, func(a, b membership.Certificate) int { return cmp.Compare(a.Name, b.Name) })
	for _, ca := range s.pki.CAs() {
		out = append(out, membership.Certificate{Name: "CA " + ca.Subject.CommonName, Issuer: ca.Issuer.CommonName, Issued: pki.IssuedAt(ca), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter})
	}
	return out
}

func timePointer(t time.Time) *time.Time { return &t }

// raftMembers fits the log to membership.
type raftMembers struct{ *consensus.Node }

func (r raftMembers) Members() []membership.RaftMember {
	var out []membership.RaftMember
	for _, m := range r.Node.Members() {
		out = append(out, membership.RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter, LastContact: -1})
	}
	return out
}

// HandOver implements membership.Raft.
func (r raftMembers) HandOver(ctx context.Context) error {
	if !r.IsLeader() {
		return nil
	}
	return r.TransferLeadership(ctx, "")
}

func (r raftMembers) MemberStats(ctx context.Context) ([]membership.RaftMember, error) {
	all, err := r.Node.MemberStats(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]membership.RaftMember, len(all))
	for i, m := range all {
		out[i] = raftMember(m)
	}
	return out, nil
}

// raftMember is a server as membership shows it.
func raftMember(m consensus.MemberStats) membership.RaftMember {
	out := membership.RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter, Healthy: m.Healthy, Term: m.Term, LastIndex: m.LastIndex,
		Applied: m.Applied, Lag: m.Lag, LastContact: m.LastContact, FsyncP99: m.FsyncP99, Version: m.Version, Problem: m.Problem}
	if m.LastContact == consensus.Never {
		out.LastContact = -1
	}
	if m.Error != "" {
		out.Problem = m.Error
	}
	return out
}

// nodeGossip is what the parts that watch over nodes are told: members that run
// pods.
type nodeGossip struct{ s *Server }

var nodeStates = map[gossip.State]nodehealth.State{gossip.Alive: nodehealth.Alive, gossip.Dead: nodehealth.Dead, gossip.Left: nodehealth.Left}

func (n nodeGossip) Members() []nodehealth.Member {
	var out []nodehealth.Member
	for _, p := range n.s.peers() {
		if p.NodePort != 0 {
			out = append(out, nodehealth.Member{Name: p.Name, State: nodeStates[gossip.State(p.State)], Since: p.Since})
		}
	}
	return out
}

func (n nodeGossip) Changes() (<-chan struct{}, func()) { return n.s.peersChanged.Changes() }
