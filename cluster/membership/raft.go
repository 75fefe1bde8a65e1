package membership

import (
	"context"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

// OnConsensus makes a Raft of the log's node.
func OnConsensus(n *consensus.Node) Raft { return raftNode{n} }

type raftNode struct{ *consensus.Node }

func (r raftNode) Members() []RaftMember {
	members := r.Node.Members()
	out := make([]RaftMember, len(members))
	for i, m := range members {
		out[i] = RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter}
	}
	return out
}

func (r raftNode) MemberStats(ctx context.Context) ([]RaftMember, error) {
	stats, err := r.Node.MemberStats(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]RaftMember, len(stats))
	for i, m := range stats {
		out[i] = RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter, Healthy: m.Healthy, Term: m.Term, LastIndex: m.LastIndex,
			Applied: m.Applied, Lag: m.Lag, LastContact: m.LastContact, FsyncP99: m.FsyncP99, Version: m.Version, Problem: m.Problem}
		if m.Error != "" {
			out[i].Problem = m.Error
		}
	}
	return out, nil
}
