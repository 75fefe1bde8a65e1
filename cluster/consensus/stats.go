package consensus

import (
	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Stats is the state of a member at one moment.
type Stats struct {
	NodeID     string               `json:"nodeID"`
	ClusterID  string               `json:"clusterID"`
	State      string               `json:"state"` // Follower, Candidate, Leader, Shutdown
	Term       uint64               `json:"term"`
	LastIndex  uint64               `json:"lastIndex"`  // of the log
	Committed  uint64               `json:"committed"`  // log index known to be committed
	Applied    uint64               `json:"applied"`    // log index of the last command in the FSM
	Revision   int64                `json:"revision"`   // of the store
	LeaderID   string               `json:"leaderID"`   // empty if none is known
	LeaderAddr string               `json:"leaderAddr"` //
	Voters     []Server             `json:"voters"`
	Appends    raftdir.LatencyStats `json:"appends"`           // appends to the log, fsync included
	Problem    string               `json:"problem,omitempty"` // why the log takes no writes, if so
}

// Stats returns the state of this member.
func (n *Node) Stats() Stats {
	s := Stats{
		NodeID: n.c.NodeID, ClusterID: n.c.FSM.ClusterID(), State: raft.Shutdown.String(),
		Revision: n.c.FSM.Store().Revision(), Appends: n.log.Appends.Stats(),
	}
	s.Applied, _ = n.c.FSM.Applied()
	if err := n.log.Room(); err != nil {
		s.Problem = err.Error()
	}
	if err := n.stall.problem(); err != nil {
		s.Problem = err.Error()
	}
	r := n.raft.Load()
	if r == nil {
		return s
	}
	s.State, s.Term = r.State().String(), r.CurrentTerm()
	s.LastIndex, s.Committed = r.LastIndex(), r.CommitIndex()
	s.LeaderID, s.LeaderAddr = n.Leader()
	for _, m := range r.GetConfiguration().Configuration().Servers {
		if m.Suffrage == raft.Voter {
			s.Voters = append(s.Voters, Server{ID: string(m.ID), Addr: string(m.Address)})
		}
	}
	return s
}
