package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// known is what this server knows of the cluster without it: cluster.json.
type known struct {
	mu      sync.Mutex
	cluster membership.Cluster // as on disk; guarded by mu

	kubeconfig sync.Mutex // held while the file is written, so that the newest stays
}

// servers are those that were not removed, alive or not, this one included.
func (s *Server) servers() []membership.Server {
	s.known.mu.Lock()
	list := slices.Clone(s.known.cluster.Servers)
	s.known.mu.Unlock()
	put := func(m membership.Server) {
		// Who takes a dead one's name takes its place.
		list = append(slices.DeleteFunc(list, func(o membership.Server) bool { return o.ID == m.ID || o.Name == m.Name }), m)
	}
	for _, p := range s.peers() {
		if p.Role.Votes() && p.State != membership.Left {
			put(p.Server)
		}
	}
	put(s.self())
	list = slices.DeleteFunc(list, func(m membership.Server) bool { return m.ID != s.id && s.members.Removed(m.ID) })
	slices.SortFunc(list, func(a, b membership.Server) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// remember writes cluster.json if it is out of date. keys, if there are any, are
// new ones for the gossip.
func (s *Server) remember(keys [][]byte) error {
	list := s.servers()
	generation, _ := s.trusted()
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	next := s.known.cluster
	next.Servers, next.Settings, next.Generation, next.Epoch = list, s.Settings(), generation, s.epoch
	if id := s.node.Stats().ClusterID; id != "" {
		next.ClusterID = id
	}
	if len(keys) > 0 {
		next.GossipKeys = keys
	}
	if next.ClusterID == "" || reflect.DeepEqual(next, s.known.cluster) {
		return nil
	}
	if err := membership.SaveCluster(s.cfg.DataDir, &next); err != nil {
		return err
	}
	s.known.cluster = next
	return nil
}

// others gives an address of every other server that this one knows of.
func (s *Server) others(address func(membership.Server) string) []string {
	var out []string
	for _, m := range s.servers() {
		if m.ID != s.id {
			out = append(out, address(m))
		}
	}
	return out
}

// seeds are where gossip looks for others: the servers that are known, and who
// takes part in the log.
func (s *Server) seeds() []string {
	out := s.others(membership.Server.Gossip)
	for _, m := range s.node.Members() {
		if host, _, err := net.SplitHostPort(m.Address); err == nil && m.ID != s.id {
			out = append(out, net.JoinHostPort(host, portText(s.cfg.GossipPort)))
		}
	}
	s.known.mu.Lock()
	out = append(out, s.known.cluster.Seeds...)
	s.known.mu.Unlock()
	slices.Sort(out)
	return slices.Compact(out)
}

// writeKubeconfig writes the administrator's kubeconfig if it is out of date: it
// follows the servers, the CAs and the administrator's certificate.
func (s *Server) writeKubeconfig() error {
	s.known.kubeconfig.Lock()
	defer s.known.kubeconfig.Unlock()
	cert, key, err := s.admin.PEM()
	if err != nil {
		return err
	}
	k := servers.Kubeconfig{CA: s.pki.Bundle(), Cert: cert, Key: key}
	self := s.self()
	k.Servers = append(k.Servers, servers.Named{Name: self.Name, Address: self.API()})
	for _, m := range s.servers() {
		if m.ID != s.id {
			k.Servers = append(k.Servers, servers.Named{Name: m.Name, Address: m.API()})
		}
	}
	s.pki.ReportExpired(s.KubeconfigPath(), servers.AdminUser)
	return k.Write(s.KubeconfigPath(), s.cfg.Logger)
}

// bookkeeping keeps cluster.json and the kubeconfig up to date. That a disk is
// full must not end the server.
func (s *Server) bookkeeping(ctx context.Context, keys [][]byte) {
	if err := s.remember(keys); err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error("what this host knows of the cluster is not saved", "error", err)
	}
	if err := s.writeKubeconfig(); err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error("the administrator's kubeconfig is not up to date", "error", err)
	}
}

// checkLogIsThere refuses to begin anew where this server has been: it would be
// another cluster, with the keys of the first.
func (s *Server) checkLogIsThere() error {
	was := slices.ContainsFunc(s.known.cluster.Servers, func(m membership.Server) bool { return m.ID == s.id })
	if !was {
		return nil
	}
	dir := raftdir.Path(s.cfg.DataDir)
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil // who opens the log looks closer
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log of this server: %w", err)
	}
	how := "skiff snapshot restore makes a new data directory from a saved state"
	if len(s.joinAddresses()) > 0 {
		how = fmt.Sprintf("get it from the other servers with skiff recover --rejoin --data-dir %s; if they are lost too, %s", s.cfg.DataDir, how)
	}
	return fmt.Errorf("%w: %s is missing, and this server has had a log: put it back, or %s", raftdir.ErrDamaged, dir, how)
}
