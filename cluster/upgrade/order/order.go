// Package order has what passes between the leader of a roll-out and the members:
// orders, reports on them, and what is said of a binary. It is apart from package
// upgrade so that a member's part (package binary) needs nothing of a server's.
package order

import "time"

// Paths on the API port, below those of package upgrade, that members use with
// their own certificates.
const (
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
