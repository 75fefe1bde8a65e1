package upgrade

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skiff-sh/skiff/cluster/upgrade/skew"
	"github.com/skiff-sh/skiff/fsm"
)

// Plan is what a roll-out would do.
type Plan struct {
	Binary Binary `json:"binary"`
	// Level is the cluster's feature level; finalize would make it LevelAfter.
	Level      int          `json:"featureLevel"`
	LevelAfter int          `json:"featureLevelAfterFinalize"`
	Options    Options      `json:"options"`
	Members    []PlanMember `json:"members"` // in the order in which they change
	Steps      []string     `json:"steps"`
	// Blockers stand against it, Notes should be known.
	Blockers []string `json:"blockers"`
	Notes    []string `json:"notes"`
}

// PlanMember is one member of a Plan.
type PlanMember struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Version string `json:"version"`
	Target  string `json:"target"` // empty: it is left out
	// Skew is how many minor versions Version is behind Target.
	Skew  int      `json:"skew"`
	Steps []string `json:"steps,omitempty"`
}

// PlanInputs are all that a Plan depends on.
type PlanInputs struct {
	Binary  Binary   `json:"binary"`
	Options Options  `json:"options"`
	Level   int      `json:"level"`
	Members []Info   `json:"members"`
	Rollout *Rollout `json:"rollout,omitempty"` // the present or last one
	Trouble []string `json:"trouble,omitempty"`
	Budgets []string `json:"budgets,omitempty"`
}

// spaceFor is what a member needs free, in MiB: the binary in the store and beside
// the program, the program from before, and what has to stay free for the log.
func spaceFor(b Binary) uint64 { return uint64(3*b.Size>>20) + 256 }

// makePlan orders the members and finds what stands against it.
func makePlan(in PlanInputs) *Plan {
	in.Options.complete()
	p := &Plan{Binary: in.Binary, Options: in.Options, Level: in.Level, LevelAfter: max(in.Level, in.Binary.MaxLevel), Blockers: []string{}, Notes: []string{}, Steps: []string{}, Members: []PlanMember{}}
	p.program(in)
	p.quorum(in)
	for _, i := range ordered(in.Members) {
		p.member(in, i)
	}
	if in.Rollout.Going() || in.Rollout != nil && !in.Rollout.Stage.Over() {
		p.block("the roll-out to %s is going on: see skiff upgrade status; resume it, or roll it back first", in.Rollout.Binary.Version)
	}
	for _, t := range append(slices.Clone(in.Trouble), in.Budgets...) {
		p.block("%s", t)
	}
	p.outline(in)
	return p
}

func (p *Plan) block(format string, args ...any) {
	p.Blockers = append(p.Blockers, fmt.Sprintf(format, args...))
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// program looks at the binary beside the versions and the level of the cluster.
func (p *Plan) program(in PlanInputs) {
	var members []skew.Member
	same := 0
	for _, i := range in.Members {
		if in.Options.IgnoreDead && !i.Alive {
			continue
		}
		members = append(members, skew.Member{Name: i.Name, Server: i.Server, Version: i.Version})
		if i.Version == in.Binary.Version {
			same++
		}
	}
	for _, why := range skew.Upgrade(members, in.Binary.Version) {
		p.block("%s", why)
	}
	switch {
	case in.Binary.MaxLevel < in.Level:
		p.block("the cluster is at feature level %d, and skiff %s works up to %d: there is no way back below a finalized level", in.Level, in.Binary.Version, in.Binary.MaxLevel)
	case in.Binary.MinLevel > in.Level:
		p.block("the cluster is at feature level %d, and skiff %s works from %d on: finalize the version before first (skiff upgrade finalize)", in.Level, in.Binary.Version, in.Binary.MinLevel)
	case in.Binary.MaxLevel > in.Level:
		p.note("after it, skiff upgrade finalize raises the feature level from %d to %d; until then every member can go back", in.Level, in.Binary.MaxLevel)
	}
	if same == len(members) && same > 0 {
		p.note("every member runs a skiff of version %s already: those with another file get this one", in.Binary.Version)
	}
}

// quorum looks whether one server at a time can be missed.
func (p *Plan) quorum(in PlanInputs) {
	voters, up := 0, 0
	for _, i := range in.Members {
		if !i.Server {
			continue
		}
		switch {
		case i.Voter && i.Alive && i.CaughtUp:
			voters, up = voters+1, up+1
		case i.Voter:
			voters++
		}
		switch {
		case !i.Alive:
		case !i.CaughtUp:
			p.block("server %s has not caught up with the log, or its log takes no writes", i.Name)
		case !i.Voter:
			p.block("server %s does not vote yet: wait until it does", i.Name)
		case !i.APIReady:
			p.block("the API of server %s is not ready", i.Name)
		}
	}
	switch {
	case voters == 1:
		p.note("there is one server: while it changes, the API is not there for some seconds; pods and services go on")
	case up-1 >= voters/2+1:
	case in.Options.AllowInterruption:
		p.note("%d of %d voting servers are up: writes stop while a server changes", up, voters)
	default:
		p.block("%d of %d voting servers are up: without one of them writes stop. Add a server, or use --allow-interruption", up, voters)
	}
}

// ordered gives servers, the leader last of them, then agents.
func ordered(members []Info) []Info {
	out := slices.Clone(members)
	rank := func(i Info) int {
		switch {
		case !i.Server:
			return 2
		case i.Leader:
			return 1
		}
		return 0
	}
	slices.SortFunc(out, func(a, b Info) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func (p *Plan) member(in PlanInputs, i Info) {
	m := PlanMember{Name: i.Name, Role: i.Role, Version: i.Version, Target: in.Binary.Version}
	if from, err := skew.Parse(i.Version); err == nil {
		if to, err := skew.Parse(in.Binary.Version); err == nil {
			m.Skew = to.Minor - from.Minor
		}
	}
	switch {
	case !i.Alive && in.Options.IgnoreDead:
		m.Target = ""
		p.note("%s is dead and left out: it comes back with %s, and until it has the new version or is removed there is no finalize", i.Name, said(i.Version))
		p.Members = append(p.Members, m)
		return
	case !i.Alive:
		p.block("%s %s is not heard of: bring it back, remove it (skiff member remove %s), or leave it out with --ignore-dead", i.Role, i.Name, i.Name)
	case i.Node && !i.NodeReady:
		p.block("the node %s is not Ready", i.Name)
	}
	if need := spaceFor(in.Binary); i.Free > 0 && i.Free < need {
		p.block("%s has %d MiB of disk space for the binary, and needs %d", i.Name, i.Free, need)
	}
	m.Steps = []string{"fetch and verify"}
	if in.Options.Drain && i.Node {
		m.Steps = append(m.Steps, "drain")
	}
	if i.Leader && countServers(in.Members) > 1 {
		m.Steps = append(m.Steps, "hand over the lead")
	}
	m.Steps = append(m.Steps, "change program", "be as before")
	if in.Options.Drain && i.Node {
		m.Steps = append(m.Steps, "schedule pods again")
	}
	p.Members = append(p.Members, m)
}

func said(version string) string {
	if version == "" {
		return "the version it had"
	}
	return version
}

func countServers(members []Info) (n int) {
	for _, i := range members {
		if i.Server {
			n++
		}
	}
	return n
}

// outline is the order in words.
func (p *Plan) outline(in PlanInputs) {
	var servers, agents []string
	for _, m := range p.Members {
		switch {
		case m.Target == "":
		case m.Role == "agent":
			agents = append(agents, m.Name)
		default:
			servers = append(servers, m.Name)
		}
	}
	say := func(format string, args ...any) { p.Steps = append(p.Steps, fmt.Sprintf(format, args...)) }
	say("take a snapshot of the state, and verify it")
	say("bring the binary to all %d members; each verifies it and sees that it runs", len(servers)+len(agents))
	how := "in place: containers and connections go on"
	if in.Options.Drain {
		how = "in place, after the pods were evicted"
	}
	say("servers one at a time, the leader last: %s", strings.Join(servers, ", "))
	if len(agents) > 0 {
		say("agents, %d at a time: %s", in.Options.MaxUnavailable, strings.Join(agents, ", "))
	}
	say("programs change %s; one that is not healthy within %s is put back by itself, and the roll-out stops", how, in.Options.Trial)
}

// levelAfter is what finalize would raise the level to: the highest that every
// member's program knows.
func levelAfter(members []Info) int {
	level := fsm.MaxLevel
	for _, i := range members {
		level = min(level, max(i.MaxLevel, 1))
	}
	return level
}
