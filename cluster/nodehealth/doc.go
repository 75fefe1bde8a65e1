// Package nodehealth tells the cluster which of its nodes can be reached.
//
// Gossip alone says who is alive. What it says becomes the Ready condition of
// Nodes (Controller, a duty of the leader) and the Leases that clients read in
// kube-node-lease (package registry/coordination). Whether a node has certainly
// stopped what must not run twice is another question, which gossip cannot
// answer: that is what Leases are for. The argument is in
// ../controller/DESIGN.md, under node failure.
//
// Limits: a host whose clock stands still (a paused virtual machine) does not
// notice that its lease ends before it is granted the next one.
package nodehealth

import "time"

// State is what gossip says of a member.
type State int

// The states of a member.
const (
	Alive State = iota
	Dead        // not heard of any more
	Left        // said goodbye
)

// Member is one member of the cluster that gossip knows.
type Member struct {
	// Name is that of its Node.
	Name  string
	State State
	// Since is when this process learned of the state, by its own clock.
	Since time.Time
}

// Gossip is what is needed of the gossip layer. Safe for concurrent use.
type Gossip interface {
	// Members are all that are known, those that are dead or left as well.
	Members() []Member
	// Changes gives a channel that is poked after every change of Members, and
	// holds one poke; cancel gives it back.
	Changes() (poked <-chan struct{}, cancel func())
}
