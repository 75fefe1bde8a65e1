package consensus

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/hashicorp/raft"
)

// One follower alone can be wrong about the leader's death: a firewall between
// the two refuses connections just as a host without a listener does. So it asks
// the other voters, who look for themselves, and stands for election only if with
// it they are a majority, all of them without a longer log: the others would then
// vote for it, and it deposes no leader that most can reach.

// deathAnswer is what a voter says of a leader.
type deathAnswer struct {
	Refused bool   `json:"refused"` // nobody listens on the leader's port, and it follows no other leader
	Term    uint64 `json:"term"`    // of the newest entry in its log
	Index   uint64 `json:"index"`
}

// answerDeath looks whether the leader whose ID is asked about is dead.
func (n *Node) answerDeath(ctx context.Context, _ string, body []byte) ([]byte, error) {
	r, id := n.raft.Load(), string(body)
	m, known := n.member(id)
	if !known {
		return nil, fmt.Errorf("%w: %s", ErrNotMember, id)
	}
	_, leader := r.LeaderWithID()
	follows := r.State() == raft.Follower && (leader == "" || string(leader) == id)
	term, index := n.newest(r)
	return json.Marshal(deathAnswer{Refused: follows && n.refused(ctx, m.Address), Term: term, Index: index})
}

// newest is the last entry of the log.
func (n *Node) newest(r *raft.Raft) (term, index uint64) { return n.log.LastTerm(), r.LastIndex() }

// agreed says whether a majority of the voters, this one included, found the
// leader's port refusing connections and would vote for this one.
func (n *Node) agreed(ctx context.Context, r *raft.Raft, leader string) bool {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	voters, asked := 0, 0
	answers := make(chan bool)
	for _, m := range n.Members() {
		if !m.Voter {
			continue
		}
		voters++
		if m.ID == n.c.NodeID || m.ID == leader {
			continue
		}
		asked++
		n.behind.Go(func() {
			ok := n.wouldVote(ctx, r, m, leader)
			select {
			case answers <- ok:
			case <-ctx.Done():
			}
		})
	}
	yes := 1
	for ; asked > 0 && yes < voters/2+1; asked-- {
		select {
		case ok := <-answers:
			if ok {
				yes++
			}
		case <-ctx.Done():
			return false
		}
	}
	return yes >= voters/2+1
}

func (n *Node) wouldVote(ctx context.Context, r *raft.Raft, m Member, leader string) bool {
	b, err := n.callAddr(ctx, m.Address, methodDeath, []byte(leader))
	var a deathAnswer
	if err != nil || json.Unmarshal(b, &a) != nil {
		return false
	}
	term, index := n.newest(r)
	return a.Refused && (a.Term < term || a.Term == term && a.Index <= index)
}
