// Package upgrade is how a cluster changes its version while it works: what a
// plan has to look at, in which order members change, what each waits for, and
// how one goes back.
//
// The leader drives (a duty, so that it survives a change of leader); the state
// of the roll-out is in the replicated state. Members fetch orders, carry them
// out themselves and report; see package binary for how one changes its program.
//
// How a member hears of its order: a server has it in its state and says in its
// gossip tags (Orders) how new the newest order is that it knows; another member
// that hears of a newer one than it has asked for asks at MemberPath.
//
// Limits: one architecture and one binary at a time; nothing here makes old data
// readable for a new program, or the other way round: that is the feature level's
// business (package fsm).
package upgrade

import "github.com/skiff-sh/skiff/cluster/upgrade/order"

// State keys.
const (
	// RolloutKey holds the Rollout, the one that is going on or was last.
	RolloutKey = "/skiff/upgrade/rollout"
	// OrderPrefix, with a member's name, holds its Order.
	OrderPrefix = "/skiff/upgrade/orders/"
	// ReportPrefix, with a member's name, holds its last Report.
	ReportPrefix = "/skiff/upgrade/reports/"
)

// Paths on the API port.
const (
	Path       = "/skiff/v1/upgrade"
	BinaryPath = order.BinaryPath
	MemberPath = order.MemberPath
)

// What passes between the leader and the members, see package order.
type (
	Binary = order.Binary
	Action = order.Action
	Order  = order.Order
	Phase  = order.Phase
	Report = order.Report
)

// The actions and phases.
const (
	Fetch    = order.Fetch
	Switch   = order.Switch
	Return   = order.Return
	Working  = order.Working
	Done     = order.Done
	Returned = order.Returned
	Failed   = order.Failed
)
