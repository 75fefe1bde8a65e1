package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// Contact is what a node on this host is told of the others, to decide whether
// what must not run twice may go on here while no server renews its lease.
type Contact struct {
	// Removed: this server is no member any more.
	Removed bool
	// SoleVoter: this is the only server, and none is about to join.
	SoleVoter bool
	// OthersDown: the hosts of all other servers that vote refuse connections.
	OthersDown bool
	// AliveFraction of all nodes that were not removed, this one included; 0 while
	// gossip has heard of no other server.
	AliveFraction float64
}

const (
	refusalAge  = 2 * time.Second // how long the answer of the other servers' hosts is good
	refusalWait = 500 * time.Millisecond
)

// Contact may take refusalWait when no leader is known.
func (s *Server) Contact() Contact {
	if s.members.Membership().Err() != nil {
		return Contact{Removed: true}
	}
	members := s.node.Members()
	c := Contact{
		SoleVoter:     len(members) == 1 && members[0].ID == s.id && members[0].Voter,
		AliveFraction: s.roster.AliveFraction(s.peers(), s.id),
	}
	if !c.SoleVoter {
		c.OthersDown = s.othersDown()
	}
	return c
}

// refusals remembers what the other servers' hosts said last.
type refusals struct {
	mu   sync.Mutex
	at   time.Time
	down bool
}

func (s *Server) othersDown() bool {
	s.refusals.mu.Lock()
	defer s.refusals.mu.Unlock()
	if time.Since(s.refusals.at) > refusalAge {
		s.refusals.at, s.refusals.down = time.Now(), s.allRefuse()
	}
	return s.refusals.down
}

// allRefuse asks the Raft port of every other voter. Only a refusal shows that
// the host lives and the server does not; silence may be the network's.
func (s *Server) allRefuse() bool {
	members := s.node.Members()
	if len(members) == 0 || s.node.Stats().LeaderID != "" {
		return false
	}
	var wg sync.WaitGroup
	answers := make([]bool, len(members))
	for i, m := range members {
		if m.ID == s.id || !m.Voter {
			answers[i] = true
			continue
		}
		wg.Go(func() {
			conn, err := net.DialTimeout("tcp", m.Address, refusalWait)
			if err == nil {
				conn.Close()
			}
			answers[i] = errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	wg.Wait()
	for _, refused := range answers {
		if !refused {
			return false
		}
	}
	return true
}

// rosterFile in the data directory keeps the Roster over restarts.
const rosterFile = "nodes.json"

// rosterAge is how long a node that nobody removed is remembered after it was
// last seen alive.
const rosterAge = 7 * 24 * time.Hour

// rosterSave is how old the times in the file become while no node comes or goes.
const rosterSave = 24 * time.Hour

// Roster remembers which nodes there are, so that a host that starts while it
// is cut off does not take the few that it sees for all. Safe for concurrent use.
type Roster struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu    sync.Mutex
	nodes map[string]time.Time // ID -> last seen alive
	saved time.Time
}

// OpenRoster reads the file in the data directory. One that cannot be read is
// begun anew.
func OpenRoster(dataDir string, log *slog.Logger) *Roster {
	r := &Roster{path: filepath.Join(dataDir, rosterFile), log: log, now: time.Now, nodes: map[string]time.Time{}}
	b, err := os.ReadFile(r.path)
	if err == nil {
		err = json.Unmarshal(b, &r.nodes)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the list of nodes is begun anew", "error", err)
	}
	if r.nodes == nil {
		r.nodes = map[string]time.Time{}
	}
	return r
}

// Update takes in what gossip says; removed tells of former members, nil: of
// none.
func (r *Roster) Update(peers []membership.Peer, removed func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, changed := r.now(), false
	for _, p := range peers {
		_, have := r.nodes[p.ID]
		switch {
		case p.NodePort == 0 || p.State == membership.Left:
			delete(r.nodes, p.ID)
			changed = changed || have
		case p.State == membership.Alive:
			r.nodes[p.ID] = now
			changed = changed || !have
		case !have || p.Since.After(r.nodes[p.ID]): // until it died nothing may have been worth an Update
			r.nodes[p.ID] = p.Since
			changed = changed || !have
		}
	}
	for id, seen := range r.nodes {
		if now.Sub(seen) > rosterAge || removed != nil && removed(id) {
			delete(r.nodes, id)
			changed = true
		}
	}
	if !changed && now.Sub(r.saved) < rosterSave {
		return
	}
	b, err := json.Marshal(r.nodes)
	if err == nil {
		err = durable.Replace(r.path, b, 0o644)
	}
	if err != nil {
		r.log.Error("the list of nodes is not saved", "error", err)
		return
	}
	r.saved = now
}

// AliveFraction is how much of all nodes is alive. It is 0 while gossip has not
// heard of any server but self: it is deaf then, as behind a closed port, and does
// not know how few it sees.
func (r *Roster) AliveFraction(peers []membership.Peer, self string) float64 {
	if !slices.ContainsFunc(peers, func(p membership.Peer) bool { return p.Role.Votes() && p.ID != self }) {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	alive, all := 0, len(r.nodes)
	for _, p := range peers {
		if p.NodePort == 0 || p.State != membership.Alive {
			continue
		}
		alive++
		if _, have := r.nodes[p.ID]; !have {
			all++
		}
	}
	if all == 0 {
		return 0
	}
	return float64(alive) / float64(all)
}

// keepRoster follows the gossip until ctx ends.
func (s *Server) keepRoster(ctx context.Context) error {
	changes, cancel := s.peersChanged.Changes()
	defer cancel()
	for {
		s.roster.Update(s.peers(), s.members.Removed)
		select {
		case <-changes:
		case <-time.After(time.Hour):
		case <-ctx.Done():
			return nil
		}
	}
}
