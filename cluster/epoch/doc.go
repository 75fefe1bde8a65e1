// Package epoch keeps the histories of a cluster's log apart and brings its
// servers together again: after a restore from a snapshot, and after a recovery
// from lost quorum, the log goes on in a new epoch (raftdir.Epoch), which lacks
// some of what the one before acknowledged.
//
// Servers tell each other which epoch they have, over the Raft port with its
// mutual TLS (Ask), whatever epochs they are of. Decide is what a server makes of
// the answers; Intent is how it carries that out so that it can be killed at any
// moment; Survey is what the administrator is shown before a recovery.
//
// Limits: servers that trust no common CA can't tell each other anything. Nothing
// here knows which of two histories is the better one: the later one wins where
// only one of them has a quorum, and where both have, nobody gives way.
package epoch

import (
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// View is what one server says of itself: question and answer.
type View struct {
	ClusterID string            `json:"clusterID"` // empty if it does not know it yet
	Server    membership.Server `json:"server"`
	Epoch     raftdir.Epoch     `json:"epoch"`
	// Led: its log has a leader now, so a quorum works.
	Led bool `json:"led"`
	// Leader is its name, if it is known.
	Leader string `json:"leader,omitempty"`
	// Index and Term are of the last entry in its log; 0 if the log is empty.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Voter: the one who asked is in the configuration of its log, as a voter.
	Voter bool `json:"voter,omitempty"`
}

// more says whether the log of v has more than that of o, if they are of one
// epoch.
func (v View) more(o View) bool {
	if v.Term != o.Term {
		return v.Term > o.Term
	}
	return v.Index > o.Index
}
