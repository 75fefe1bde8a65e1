package upgrade

import (
	"slices"
	"time"
)

// Stage is what a Rollout is doing as a whole.
type Stage string

// The stages, in their order. A roll-out that goes back passes those of Back.
const (
	StageSave    Stage = "snapshot" // of the state
	StageFetch   Stage = "fetch"    // the binary goes to every member
	StageServers Stage = "servers"  // change their program, one after the other
	StageAgents  Stage = "agents"   // change theirs
	StageDone    Stage = "done"     // until finalize, it can go back

	StageBackAgents  Stage = "back-agents"
	StageBackServers Stage = "back-servers"
	StageBack        Stage = "rolled-back"

	StageFinal Stage = "finalized"
)

// Over tells the stages that nothing follows by itself.
func (s Stage) Over() bool { return s == StageDone || s == StageBack || s == StageFinal }

// State is how far a member is in a Rollout.
type State string

// The states. Those of a member that goes back are the last five.
const (
	StateWaiting   State = "waiting"
	StateFetching  State = "fetching"
	StateFetched   State = "fetched"
	StateDraining  State = "draining"
	StateSwitching State = "switching" // it changes its program
	StateSettling  State = "settling"  // the new one runs; it is not all well yet
	StateDone      State = "done"
	StateSkipped   State = "skipped" // it was dead, or has gone
	StateFailed    State = "failed"

	StateReturning   State = "returning"
	StateSettlingOld State = "settling-back"
	StateBack        State = "back"
	StateStranded    State = "stranded" // it has not kept the program from before
	StateUntouched   State = "untouched"
)

// busy tells the states in which a member's host may do less than usual.
func (s State) busy() bool {
	return slices.Contains([]State{StateDraining, StateSwitching, StateSettling, StateReturning, StateSettlingOld}, s)
}

// Options of a Rollout.
type Options struct {
	// Drain moves the pods away from a host before its program changes.
	Drain bool `json:"drain,omitempty"`
	// MaxUnavailable is how many agents change at a time; at least 1.
	MaxUnavailable int `json:"maxUnavailable"`
	// IgnoreDead leaves dead members out; they can't be finalized then.
	IgnoreDead bool `json:"ignoreDead,omitempty"`
	// AllowInterruption goes on where the restart of a server stops writes.
	AllowInterruption bool `json:"allowInterruption,omitempty"`
	// Trial is how long a program has to become healthy before the host goes back;
	// default DefaultTrial.
	Trial time.Duration `json:"trial,omitempty"`
}

// DefaultTrial is how long a program has to become healthy.
const DefaultTrial = 90 * time.Second

func (o *Options) complete() {
	o.MaxUnavailable = max(o.MaxUnavailable, 1)
	if o.Trial <= 0 {
		o.Trial = DefaultTrial
	}
}

// Rollout is a change of the version of a whole cluster, as the state has it.
type Rollout struct {
	ID      string  `json:"id"`
	Binary  Binary  `json:"binary"`
	Holder  string  `json:"holder"` // server that was given the binary
	Options Options `json:"options"`
	By      string  `json:"by"` // who asked
	// Epoch of the log in which it was begun or resumed. In another one it stops:
	// the state was restored, perhaps because of this roll-out.
	Epoch  string    `json:"epoch,omitempty"`
	Stage  Stage     `json:"stage"`
	Since  time.Time `json:"since"` // of the stage
	Paused bool      `json:"paused,omitempty"`
	// Stopped says why nothing goes on until resume or rollback.
	Stopped  string    `json:"stopped,omitempty"`
	Snapshot *Saved    `json:"snapshot,omitempty"`
	Members  []Member  `json:"members"` // in the order in which they change
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended,omitzero"`
	History  []Event   `json:"history"` // the newest maxHistory
}

// Saved is the snapshot from before a Rollout.
type Saved struct {
	Server   string    `json:"server"`
	File     string    `json:"file"`
	Revision int64     `json:"revision"`
	At       time.Time `json:"at"`
}

// Member is one of a Rollout.
type Member struct {
	Name   string    `json:"name"`
	Server bool      `json:"server,omitempty"`
	From   string    `json:"from"` // version before
	State  State     `json:"state"`
	Since  time.Time `json:"since"`         // of the state
	Was    State     `json:"was,omitempty"` // before it failed
	// Tries counts the orders that the member was given, for their IDs.
	Tries int    `json:"tries,omitempty"`
	Error string `json:"error,omitempty"`
	// Pods were ready before, by UID; only while the member changes.
	Pods []string `json:"pods,omitempty"`
	// Changed: the new program may run on it.
	Changed bool `json:"changed,omitempty"`
	// Cordoned: by the roll-out, which makes the node schedulable again.
	Cordoned bool `json:"cordoned,omitempty"`
}

// Event is something that happened.
type Event struct {
	At     time.Time `json:"at"`
	Member string    `json:"member,omitempty"`
	Text   string    `json:"text"`
}

const maxHistory = 300

// Going tells whether there is something left to do without being asked.
func (r *Rollout) Going() bool { return r != nil && !r.Stage.Over() && r.Stopped == "" }

// Back tells whether it is on its way back, or was.
func (r *Rollout) Back() bool {
	return r.Stage == StageBackAgents || r.Stage == StageBackServers || r.Stage == StageBack
}

func (r *Rollout) member(name string) *Member {
	for i := range r.Members {
		if r.Members[i].Name == name {
			return &r.Members[i]
		}
	}
	return nil
}

func (r *Rollout) clone() *Rollout {
	c := *r
	c.Members, c.History = slices.Clone(r.Members), slices.Clone(r.History)
	return &c
}

func (r *Rollout) note(now time.Time, member, text string) {
	r.History = append(r.History, Event{At: now.UTC(), Member: member, Text: text})
	if n := len(r.History) - maxHistory; n > 0 {
		r.History = slices.Clone(r.History[n:])
	}
}

// order is the ID of a member's latest order.
func (r *Rollout) order(m *Member) string { return r.ID + "-" + itoa(m.Tries) }
