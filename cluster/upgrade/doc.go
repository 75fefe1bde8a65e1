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

import "time"

// State keys.
const (
	// RolloutKey holds the Rollout, the one that is going on or was last.
	RolloutKey = "/skiff/upgrade/rollout"
	// OrderPrefix, with a member's name, holds its Order.
	OrderPrefix = "/skiff/upgrade/orders/"
	// ReportPrefix, with a member's name, holds its last Report.
	ReportPrefix = "/skiff/upgrade/reports/"
)

// Paths on the API port. Below MemberPath are those that members use, with their
// own certificates.
const (
	Path       = "/skiff/v1/upgrade"
	BinaryPath = "/skiff/v1/upgrade/binary/" // + SHA-256 in hex
	MemberPath = "/skiff/v1/upgrade/member"  // GET: the caller's Order, POST: its Report
)

// Binary describes a program file of skiff.
type Binary struct {
	Version   string `json:"version"` // of skiff, as MAJOR.MINOR.PATCH
	SHA256    string `json:"sha256"`  // in hex
	Size      int64  `json:"size"`    // bytes
	Platform  string `json:"platform"`
	MinLevel  int    `json:"minLevel"` // oldest feature level it works at
	MaxLevel  int    `json:"maxLevel"` // newest
	Signature []byte `json:"signature,omitempty"`
}

// Action is what an Order asks for.
type Action string

// The actions.
const (
	Fetch  Action = "fetch"  // get the binary, verify it, see that it runs here
	Switch Action = "switch" // run it in place of the present one
	Return Action = "return" // run the one from before again, if the present one is the order's Binary
)

// Order is what one member is to do. A member carries out each ID once.
type Order struct {
	ID     string        `json:"id"`
	Action Action        `json:"action"`
	Binary Binary        `json:"binary"`
	Trial  time.Duration `json:"trial,omitempty"` // nanoseconds; how long a program has to become healthy
}

// Phase is how far a member is with its Order.
type Phase string

// The phases. Done, Returned and Failed are the last of an Order.
const (
	Working  Phase = "working"
	Done     Phase = "done"
	Returned Phase = "returned" // the new program was not healthy; the old one runs again
	Failed   Phase = "failed"   // nothing was changed
)

// Report is what a member says of its Order.
type Report struct {
	Order   string `json:"order"` // its ID
	Phase   Phase  `json:"phase"`
	Version string `json:"version"` // that runs now
	Error   string `json:"error,omitempty"`
	// Gone, with Failed: the program to return to is not kept here any more.
	Gone bool      `json:"gone,omitempty"`
	At   time.Time `json:"at"`
}
