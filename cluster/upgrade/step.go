package upgrade

import (
	"fmt"
	"strconv"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// kind of a step.
type kind string

// The kinds of steps. Those up to kindStop only change the Rollout; the others are
// done first, and change it if they succeed.
const (
	kindAdd   kind = "add"   // a member that has come meanwhile
	kindOrder kind = "order" // is given to a member, which has State from then on
	kindSet   kind = "set"   // State of a member
	kindStage kind = "stage"
	kindStop  kind = "stop" // until somebody looks

	kindSave     kind = "save"      // the snapshot
	kindDrain    kind = "drain"     // a round of it
	kindUncordon kind = "uncordon"  // then State
	kindHandOver kind = "hand-over" // leadership, to Member
)

// step is one thing to do now.
type step struct {
	Kind   kind     `json:"kind"`
	Member string   `json:"member,omitempty"`
	Action Action   `json:"action,omitempty"`
	State  State    `json:"state,omitempty"`
	Stage  Stage    `json:"stage,omitempty"`
	Text   string   `json:"text,omitempty"`
	Pods   []string `json:"pods,omitempty"`
	// Unchanged, with kindStop: the member runs its program from before.
	Unchanged bool `json:"unchanged,omitempty"`
	// Cordoned, of kindDrain that was done: the node was schedulable before.
	Cordoned bool `json:"cordoned,omitempty"`
}

// apply changes the Rollout as steps say; it returns the orders that follow.
func (r *Rollout) apply(steps []step, facts map[string]Facts, now time.Time) map[string]Order {
	orders := map[string]Order{}
	now = now.UTC().Truncate(time.Millisecond)
	for _, s := range steps {
		m := r.member(s.Member)
		switch s.Kind {
		case kindAdd:
			f := facts[s.Member]
			r.Members = append(r.Members, Member{Name: s.Member, Server: f.Server, From: f.Version, State: StateWaiting, Since: now})
			r.note(now, s.Member, "has joined with "+f.Version)
		case kindOrder:
			m.Tries++
			m.set(s, now)
			m.Changed = m.Changed || s.Action == Switch
			orders[m.Name] = Order{ID: r.order(m), Action: s.Action, Binary: r.Binary, Trial: r.Options.Trial}
			r.note(now, m.Name, r.said(s))
		case kindSet:
			m.set(s, now)
			r.note(now, m.Name, r.said(s))
		case kindUncordon:
			m.Cordoned = false
			m.set(s, now)
			r.note(now, m.Name, r.said(s))
		case kindDrain:
			m.Cordoned = m.Cordoned || s.Cordoned
		case kindStage:
			r.Stage, r.Since = s.Stage, now
			if s.Stage.Over() {
				r.Ended = now
			}
			r.note(now, "", stageText[s.Stage])
		case kindStop:
			r.Stopped = s.Text
			if m != nil {
				m.Was = m.State
				m.set(step{State: StateFailed, Text: s.Text}, now)
				m.Changed = m.Changed && !s.Unchanged
			}
			r.note(now, s.Member, "stopped: "+s.Text)
		}
	}
	return orders
}

func (m *Member) set(s step, now time.Time) {
	m.State, m.Since, m.Error = s.State, now, s.Text
	m.Changed = m.Changed && s.State != StateBack
	switch {
	case s.Pods != nil:
		m.Pods = s.Pods
	case !m.State.busy():
		m.Pods = nil
	}
}

var stageText = map[Stage]string{
	StageSave: "a snapshot is taken", StageFetch: "the binary goes to every member", StageServers: "servers change, one after the other",
	StageAgents: "agents change", StageDone: "every member runs the new version", StageBackAgents: "agents go back",
	StageBackServers: "servers go back, one after the other", StageBack: "every member that could has gone back", StageFinal: "finalized",
}

// said is a step in the history.
func (r *Rollout) said(s step) string {
	text := map[State]string{
		StateFetching: "fetches the binary", StateFetched: "has the binary, and it runs here", StateDraining: "is being drained",
		StateSwitching: "changes to " + r.Binary.Version, StateSettling: "runs " + r.Binary.Version, StateDone: "is well",
		StateReturning: "goes back", StateSettlingOld: "runs the version before", StateBack: "is well with the version before",
		StateStranded: "has not kept the program from before", StateSkipped: "is left out", StateUntouched: "has nothing to go back from",
		StateWaiting: "waits",
	}[s.State]
	if s.Text != "" {
		text += ": " + s.Text
	}
	return text
}

// Facts are what is known of a member now. Ready, Left and PodsDown are only
// known of those that are in focus.
type Facts struct {
	Server  bool    `json:"server,omitempty"` // or witness
	Alive   bool    `json:"alive"`
	Version string  `json:"version"`
	Report  *Report `json:"report,omitempty"` // the last

	// Of a server, what the leader knows.
	Voter    bool `json:"voter,omitempty"`
	CaughtUp bool `json:"caughtUp,omitempty"` // it answers and is not behind
	APIReady bool `json:"apiReady,omitempty"`

	KeysBehind bool `json:"keysBehind,omitempty"` // it has not taken over the newest keys of the cluster

	Node      bool     `json:"node,omitempty"` // it has one
	NodeReady bool     `json:"nodeReady,omitempty"`
	Cordoned  bool     `json:"cordoned,omitempty"`
	Ready     []string `json:"ready,omitempty"`    // pods on it that are ready, by UID
	Left      []string `json:"left,omitempty"`     // pods that draining still has to move, and why each stays
	PodsDown  []string `json:"podsDown,omitempty"` // of those that were ready before, who is not, by name
}

// unwell says what a member lacks to be as before, with a version; "" if nothing.
func (f *Facts) unwell(version string) string {
	switch {
	case !f.Alive:
		return "it is not heard of"
	case f.Version != version:
		return fmt.Sprintf("gossip has it with %s", f.Version)
	case f.Server && !f.CaughtUp:
		return "its log has not caught up"
	case f.Server && !f.Voter:
		return "it does not vote yet"
	case f.Server && !f.APIReady:
		return "its API is not ready"
	case f.KeysBehind:
		return "it has not taken over the newest keys"
	case f.Node && !f.NodeReady:
		return "its node is not Ready"
	case len(f.PodsDown) > 0:
		return fmt.Sprintf("%d pods that were ready are not: %s", len(f.PodsDown), few(f.PodsDown))
	}
	return ""
}

// few names the first of many.
func few(names []string) string {
	const most = 5
	out := ""
	for i, n := range names {
		if i == most {
			return out + fmt.Sprintf(" and %d more", len(names)-most)
		}
		if i > 0 {
			out += ", "
		}
		out += n
	}
	return out
}
