package consensus

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// MemberStats is a member as the leader sees it.
type MemberStats struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
	Witness bool   `json:"witness"`
	// Healthy: it answers, is alive, and is not far behind.
	Healthy        bool   `json:"healthy"`
	Version        string `json:"version"` // of the program
	CommandVersion int    `json:"commandVersion"`
	Levels
	Term        uint64        `json:"term"`
	LastTerm    uint64        `json:"lastTerm"` // of the newest entry in its log
	LastIndex   uint64        `json:"lastIndex"`
	Lag         uint64        `json:"lag"` // entries that the leader has and it does not
	Committed   uint64        `json:"committed"`
	Applied     uint64        `json:"applied"`
	LastContact time.Duration `json:"lastContactNanoseconds"` // since it last answered the leader's Raft; Never
	FsyncP50    time.Duration `json:"fsyncP50Nanoseconds"`
	FsyncP99    time.Duration `json:"fsyncP99Nanoseconds"`
	Problem     string        `json:"problem,omitempty"` // why its log takes no writes
	Error       string        `json:"error,omitempty"`   // why it could not be asked; the figures are zero then
	Instance    string        `json:"instance"`          // of the process, random
}

const (
	statsTimeout = time.Second // for asking one member
	maxLag       = 256         // log entries by which a healthy member may be behind
)

// MemberStats asks the leader, which asks all members, each with one request.
// Those that do not answer within a second are in it with an Error.
func (n *Node) MemberStats(ctx context.Context) ([]MemberStats, error) {
	b, err := n.CallLeader(ctx, methodMembers, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the members: %w", err)
	}
	var all []MemberStats
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("ask the members: %w", err)
	}
	return all, nil
}

// ownStats are those of this member, as it tells them.
func (n *Node) ownStats() MemberStats {
	s := n.Stats()
	return MemberStats{
		ID: n.c.NodeID, Witness: n.c.Witness, Version: n.c.Version, CommandVersion: fsm.MaxCommandVersion, Levels: ownLevels,
		Term: s.Term, LastTerm: n.log.LastTerm(), LastIndex: s.LastIndex, Committed: s.Committed, Applied: s.Applied,
		Instance: n.instance, FsyncP50: s.Appends.P50, FsyncP99: s.Appends.P99, Problem: s.Problem,
	}
}

// askMember asks one member. The leader adds what it knows.
func (n *Node) askMember(ctx context.Context, m Member) MemberStats {
	var s MemberStats
	if m.ID == n.c.NodeID {
		s = n.ownStats()
	} else {
		ctx, cancel := context.WithTimeout(ctx, statsTimeout)
		defer cancel()
		b, err := n.callAddr(ctx, m.Address, methodStats, nil)
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err == nil && s.ID != m.ID {
			err = fmt.Errorf("at %s there is the server %q", m.Address, s.ID)
		}
		if err != nil {
			s = MemberStats{Error: err.Error()}
		}
		s.LastContact = n.contacts.since(m.ID)
	}
	s.ID, s.Address, s.Voter = m.ID, m.Address, m.Voter
	s.Leader = m.ID == n.c.NodeID
	if last := n.raft.Load().LastIndex(); s.Error == "" && last > s.LastIndex {
		s.Lag = last - s.LastIndex
	}
	if d := n.differs.problem(m.ID, s.Instance); d != "" && s.Problem == "" {
		s.Problem = d
	}
	s.Healthy = s.Error == "" && s.Problem == "" && s.Lag <= maxLag && (s.Leader || n.lives(m.ID))
	return s
}

// askMembers asks all at the same time, and remembers what they say.
func (n *Node) askMembers(ctx context.Context) []MemberStats {
	members := n.Members()
	all := make([]MemberStats, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { all[i] = n.askMember(ctx, m) })
	}
	wg.Wait()
	n.asked.Store(&all)
	return all
}

// lastStats is what askMembers heard last, by ID.
func (n *Node) lastStats() map[string]MemberStats {
	by := map[string]MemberStats{}
	if all := n.asked.Load(); all != nil {
		for _, s := range *all {
			if s.Error == "" {
				by[s.ID] = s
			}
		}
	}
	return by
}
