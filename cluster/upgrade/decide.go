package upgrade

import (
	"fmt"
	"time"
)

// Inputs are all that decide looks at.
type Inputs struct {
	Now     time.Time        `json:"now"`
	Leader  string           `json:"leader"` // this server
	Rollout *Rollout         `json:"rollout"`
	Members map[string]Facts `json:"members"`
}

// How long a member may be in a state before the roll-out stops.
const (
	fetchPatience  = 15 * time.Minute
	drainPatience  = 30 * time.Minute
	switchMargin   = 2 * time.Minute // beyond the trial
	settlePatience = 5 * time.Minute
	quorumPatience = 5 * time.Minute // for the servers to be whole again before the next one
	handPatience   = 2 * time.Minute // for another server to lead
	// deadPatience is how long nothing has to happen until one that is not heard of
	// is dead: a leader that has just started has not heard of everybody.
	deadPatience = time.Minute

	// fetchesAtOnce is how many agents get the binary at a time.
	fetchesAtOnce = 16
)

// decide gives what to do now, and what is waited for. It is called again and
// again with what has become of it: everything that it has to remember is in the
// Rollout, so that another leader goes on.
func decide(in Inputs) (steps []step, waits []string) {
	if !in.Rollout.Going() {
		return nil, nil
	}
	d := &decision{Inputs: in, r: in.Rollout}
	d.newcomers()
	for i := range d.r.Members {
		d.follow(&d.r.Members[i])
	}
	if d.stopped {
		return d.steps, nil
	}
	switch d.r.Stage {
	case StageSave:
		if !d.r.Paused {
			d.do(step{Kind: kindSave})
		}
	case StageFetch:
		d.fetch()
	case StageServers, StageBackServers:
		d.servers()
	case StageAgents, StageBackAgents:
		d.agents()
	}
	if d.r.Paused {
		d.wait("skiff upgrade resume: it is paused")
	}
	return d.steps, d.waits
}

type decision struct {
	Inputs
	r       *Rollout
	steps   []step
	waits   []string
	stopped bool
	touched map[string]bool // members that a step is about
}

func (d *decision) do(s step) {
	if d.stopped {
		return // at the first reason
	}
	if s.Member != "" {
		if d.touched == nil {
			d.touched = map[string]bool{}
		}
		d.touched[s.Member] = true
	}
	d.steps = append(d.steps, s)
	d.stopped = s.Kind == kindStop
}

func (d *decision) stop(member, format string, args ...any) {
	d.do(step{Kind: kindStop, Member: member, Text: fmt.Sprintf(format, args...)})
}

func (d *decision) wait(format string, args ...any) {
	d.waits = append(d.waits, fmt.Sprintf(format, args...))
}

func (d *decision) late(since time.Time, patience time.Duration) bool {
	return d.Now.Sub(since) > patience
}

// newcomers takes in who joined meanwhile, and who was left out as dead and is
// back.
func (d *decision) newcomers() {
	if d.r.Back() {
		return
	}
	for _, name := range sortedNames(d.Members) {
		f := d.Members[name]
		m := d.r.member(name)
		switch {
		case m == nil && f.Alive && f.Version != d.r.Binary.Version:
			d.do(step{Kind: kindAdd, Member: name})
		case m != nil && m.State == StateSkipped && f.Alive && f.Version != d.r.Binary.Version && d.r.Stage != StageSave:
			d.do(step{Kind: kindSet, Member: name, State: StateWaiting, Text: "it is back"})
		}
	}
}

// report is what a member says of its latest order.
func (d *decision) report(m *Member) *Report {
	f := d.Members[m.Name]
	if f.Report == nil || m.Tries == 0 || f.Report.Order != d.r.order(m) {
		return nil
	}
	return f.Report
}

// follow looks at a member that is doing something.
func (d *decision) follow(m *Member) {
	f, there := d.Members[m.Name]
	if !there {
		if m.State.busy() || m.State == StateFetching {
			d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is no member any more"})
		}
		return
	}
	if d.r.Back() && m.State != StateReturning && m.State != StateSettlingOld {
		return // what it was about to do does not matter any more
	}
	rep := d.report(m)
	ended := rep != nil && rep.Phase != Working
	switch m.State {
	case StateFetching:
		switch {
		case ended && rep.Phase == Done:
			d.do(step{Kind: kindSet, Member: m.Name, State: StateFetched})
		case ended:
			d.stop(m.Name, "%s cannot use the binary: %s", m.Name, rep.Error)
		case !f.Alive && d.r.Options.IgnoreDead && d.late(m.Since, deadPatience):
			d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is dead"})
		case d.late(m.Since, fetchPatience):
			d.stop(m.Name, "%s has not got the binary within %s%s", m.Name, fetchPatience, dead(f))
		default:
			d.wait("%s to get the binary%s", m.Name, dead(f))
		}
	case StateDraining:
		d.drain(m, f)
	case StateSwitching:
		d.switching(m, f, rep, ended)
	case StateSettling, StateSettlingOld:
		d.settle(m, f)
	case StateReturning:
		d.returning(m, f, rep, ended)
	}
}

func (d *decision) drain(m *Member, f Facts) {
	switch {
	case d.r.Paused:
		d.wait("the drain of %s: %d pods are left", m.Name, len(f.Left))
	case f.Cordoned && len(f.Left) == 0:
		d.order(m, f, Switch, StateSwitching)
	case d.late(m.Since, drainPatience):
		d.stop(m.Name, "%s is not drained after %s: %s", m.Name, drainPatience, few(f.Left))
	default:
		d.do(step{Kind: kindDrain, Member: m.Name})
		if len(f.Left) > 0 {
			d.wait("the drain of %s: %s", m.Name, few(f.Left))
		}
	}
}

func (d *decision) switching(m *Member, f Facts, rep *Report, ended bool) {
	patience := d.r.Options.Trial + switchMargin
	switch {
	case ended && rep.Phase == Done:
		d.do(step{Kind: kindSet, Member: m.Name, State: StateSettling})
	case ended && rep.Phase == Returned:
		d.do(step{Kind: kindStop, Member: m.Name, Unchanged: true, Text: fmt.Sprintf("%s has gone back to %s by itself: %s", m.Name, rep.Version, rep.Error)})
	case ended:
		d.do(step{Kind: kindStop, Member: m.Name, Unchanged: true, Text: fmt.Sprintf("%s has not changed its program: %s", m.Name, rep.Error)})
	case d.late(m.Since, patience):
		d.stop(m.Name, "%s says nothing of its change for %s%s", m.Name, patience, dead(f))
	default:
		d.wait("%s to run %s%s", m.Name, d.r.Binary.Version, dead(f))
	}
}

func (d *decision) settle(m *Member, f Facts) {
	version, next := d.r.Binary.Version, StateDone
	if m.State == StateSettlingOld {
		version, next = m.From, StateBack
	}
	why := f.unwell(version)
	switch {
	case why == "" && m.Cordoned:
		d.do(step{Kind: kindUncordon, Member: m.Name, State: next})
	case why == "":
		d.do(step{Kind: kindSet, Member: m.Name, State: next})
	case d.late(m.Since, settlePatience):
		d.stop(m.Name, "%s runs %s, and is not well after %s: %s", m.Name, version, settlePatience, why)
	default:
		d.wait("%s to be well: %s", m.Name, why)
	}
}

func (d *decision) returning(m *Member, f Facts, rep *Report, ended bool) {
	patience := d.r.Options.Trial + switchMargin
	switch {
	case ended && rep.Phase == Done:
		d.do(step{Kind: kindSet, Member: m.Name, State: StateSettlingOld})
	case ended && rep.Gone:
		d.do(step{Kind: d.release(m), Member: m.Name, State: StateStranded, Text: fmt.Sprintf("install skiff %s on it by hand", m.From)})
	case ended:
		d.stop(m.Name, "%s has not gone back: %s", m.Name, rep.Error)
	case d.late(m.Since, patience):
		d.stop(m.Name, "%s says nothing of its way back for %s%s", m.Name, patience, dead(f))
	default:
		d.wait("%s to go back to %s%s", m.Name, m.From, dead(f))
	}
}

// release is the kind of step that gives a member its state and its node back.
func (d *decision) release(m *Member) kind {
	if m.Cordoned {
		return kindUncordon
	}
	return kindSet
}

// order is given, with what there is to compare with afterwards.
func (d *decision) order(m *Member, f Facts, a Action, s State) {
	next := step{Kind: kindOrder, Member: m.Name, Action: a, State: s}
	if a != Fetch {
		next.Pods = f.Ready
		if m.State == StateDraining { // they are elsewhere
			next.Pods = nil
		}
	}
	d.do(next)
}

func dead(f Facts) string {
	if f.Alive {
		return ""
	}
	return " (it is not heard of)"
}
