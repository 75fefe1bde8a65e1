package upgrade

import (
	"maps"
	"slices"
	"time"
)

// fetch has every member get the binary: servers at once, then agents, some at a
// time, from any server.
func (d *decision) fetch() {
	if d.fetchPart(true, len(d.r.Members)) && d.fetchPart(false, fetchesAtOnce) && !d.stopped {
		d.do(step{Kind: kindStage, Stage: StageServers})
	}
}

// fetchPart tells whether all servers, or all agents, have the binary.
func (d *decision) fetchPart(servers bool, room int) (all bool) {
	all = true
	var waiting []*Member
	for i := range d.r.Members {
		m := &d.r.Members[i]
		if m.Server != servers {
			continue
		}
		switch {
		case d.touched[m.Name] || m.State == StateFetching:
			all = false
			room--
		case m.State == StateWaiting:
			all = false
			waiting = append(waiting, m)
		}
	}
	for _, m := range waiting {
		if room > 0 && d.beginFetch(m) {
			room--
		}
	}
	return all && !d.adding()
}

func (d *decision) adding() bool {
	return slices.ContainsFunc(d.steps, func(s step) bool { return s.Kind == kindAdd })
}

// beginFetch tells whether the order is given.
func (d *decision) beginFetch(m *Member) bool {
	f, there := d.Members[m.Name]
	switch {
	case d.r.Paused:
		return false
	case !there:
		d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is no member any more"})
		return false
	case !f.Alive && d.r.Options.IgnoreDead && d.late(d.lastChange(), deadPatience):
		d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is dead"})
		return false
	}
	d.order(m, f, Fetch, StateFetching)
	return true
}

// rest tells the states of a member whose part in this direction is over.
func (d *decision) rest(m *Member) bool {
	if d.r.Back() {
		return m.State == StateBack || m.State == StateStranded || m.State == StateUntouched || m.State == StateSkipped
	}
	return m.State == StateDone || m.State == StateSkipped
}

// servers change one at a time, the leader last, when another one leads.
func (d *decision) servers() {
	var next *Member
	for _, m := range d.turn(true) {
		switch {
		case d.touched[m.Name], m.State == StateFetching && !d.r.Back(), m.State.busy() && !d.interrupted(m):
			return
		case d.interrupted(m):
			next = m // before one that is well
		case next == nil && !d.rest(m):
			next = m
		}
	}
	if next == nil {
		if !d.adding() {
			d.do(step{Kind: kindStage, Stage: map[bool]Stage{false: StageAgents, true: StageBack}[d.r.Back()]})
		}
		return
	}
	if d.r.Back() && !next.Changed {
		d.do(step{Kind: d.release(next), Member: next.Name, State: StateUntouched})
		return
	}
	if next.State == StateWaiting && !d.r.Back() {
		d.beginFetch(next)
		return
	}
	f, there := d.Members[next.Name]
	switch {
	case d.r.Paused:
		return
	case !there:
		d.do(step{Kind: kindSet, Member: next.Name, State: StateSkipped, Text: "it is no member any more"})
		return
	case !f.Alive && (d.r.Options.IgnoreDead || d.r.Back()) && d.late(d.lastChange(), deadPatience):
		d.do(step{Kind: kindSet, Member: next.Name, State: StateSkipped, Text: "it is dead"})
		return
	}
	if why := d.spare(next.Name); why != "" {
		if d.late(d.lastChange(), quorumPatience) {
			d.stop("", "server %s has to wait: %s", next.Name, why)
		}
		d.wait("the servers, before %s changes: %s", next.Name, why)
		return
	}
	if next.Name == d.Leader {
		if heir := d.heir(); heir != "" {
			if d.late(d.lastChange(), handPatience) {
				d.stop("", "no other server takes over the lead from %s", next.Name)
				return
			}
			d.do(step{Kind: kindHandOver, Member: heir})
			d.wait("%s to lead instead of %s", heir, next.Name)
			return
		}
	}
	d.begin(next, f)
}

// interrupted tells a member that was changing when it was decided to go back.
func (d *decision) interrupted(m *Member) bool {
	return d.r.Back() && m.State.busy() && m.State != StateReturning && m.State != StateSettlingOld
}

// begin gives the order to change, or drains first.
func (d *decision) begin(m *Member, f Facts) {
	switch {
	case d.r.Back():
		d.order(m, f, Return, StateReturning)
	case d.r.Options.Drain && f.Node:
		d.do(step{Kind: kindSet, Member: m.Name, State: StateDraining})
	default:
		d.order(m, f, Switch, StateSwitching)
	}
}

// turn gives servers or agents in their order; a server that leads is the last.
func (d *decision) turn(servers bool) (out []*Member) {
	var leader *Member
	for i := range d.r.Members {
		m := &d.r.Members[i]
		switch {
		case m.Server != servers:
		case m.Name == d.Leader:
			leader = m
		default:
			out = append(out, m)
		}
	}
	if leader != nil {
		out = append(out, leader)
	}
	return out
}

// spare says why a server can't be missed now; "" if it can.
func (d *decision) spare(name string) string {
	voters, up, lagging := 0, 0, []string{}
	for _, n := range sortedNames(d.Members) {
		f := d.Members[n]
		if !f.Server {
			continue
		}
		if f.Voter {
			voters++
		}
		switch {
		case f.Voter && f.CaughtUp && f.Alive:
			up++
		case f.Alive || !d.r.Options.IgnoreDead && !d.r.Options.AllowInterruption:
			lagging = append(lagging, n)
		}
	}
	switch {
	case len(lagging) > 0 && !(len(lagging) == 1 && lagging[0] == name):
		return "not all are well: " + few(lagging)
	case d.r.Options.AllowInterruption || voters <= 1 || !d.Members[name].Voter:
		return ""
	case up-1 < voters/2+1:
		return "without " + name + " writes would stop"
	}
	return ""
}

// heir is the server that leads while the leader changes: best one that is
// through with its own part.
func (d *decision) heir() string {
	any := ""
	for _, m := range d.r.Members {
		f := d.Members[m.Name]
		if m.Server && m.Name != d.Leader && f.Alive && f.Voter && f.CaughtUp {
			if f.Version == d.version(&m) {
				return m.Name
			}
			any = m.Name
		}
	}
	return any
}

// version is what a member runs when its part is over.
func (d *decision) version(m *Member) string {
	if d.r.Back() {
		return m.From
	}
	return d.r.Binary.Version
}

// lastChange is when a member, or the stage, changed last.
func (d *decision) lastChange() (t time.Time) {
	t = d.r.Since
	for _, m := range d.r.Members {
		if m.Since.After(t) {
			t = m.Since
		}
	}
	return t
}

// agents change or go back, MaxUnavailable at a time.
func (d *decision) agents() {
	room, left := d.r.Options.MaxUnavailable, false
	agents := d.turn(false)
	for _, m := range agents {
		if m.State.busy() {
			room--
		}
	}
	for _, m := range agents {
		if d.rest(m) {
			left = left || d.touched[m.Name]
			continue
		}
		left = true
		f, there := d.Members[m.Name]
		switch {
		case d.touched[m.Name]:
		case m.State.busy() && !d.interrupted(m), m.State == StateFetching && !d.r.Back():
		case d.r.Back() && !m.Changed:
			d.do(step{Kind: d.release(m), Member: m.Name, State: StateUntouched})
		case !there:
			d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is no member any more"})
		case m.State == StateWaiting && !d.r.Back():
			d.beginFetch(m)
		case d.r.Paused || room <= 0 && !d.interrupted(m):
		case !f.Alive && !d.late(d.lastChange(), deadPatience):
			d.wait("agent %s: it is not heard of", m.Name)
		case !f.Alive && (d.r.Options.IgnoreDead || d.r.Back()):
			d.do(step{Kind: kindSet, Member: m.Name, State: StateSkipped, Text: "it is dead"})
		case !f.Alive:
			d.stop(m.Name, "agent %s is not heard of", m.Name)
		default:
			if !d.interrupted(m) {
				room--
			}
			d.begin(m, f)
		}
	}
	if !left && !d.stopped && !d.adding() {
		d.do(step{Kind: kindStage, Stage: map[bool]Stage{false: StageDone, true: StageBackServers}[d.r.Back()]})
	}
}

// focus are the members whose pods have to be known: those that change, and those
// that are next.
func (r *Rollout) focus() []string {
	var out []string
	next := r.Options.MaxUnavailable + 1
	for i := range r.Members {
		m := &r.Members[i]
		switch {
		case m.State.busy():
			out = append(out, m.Name)
		case next > 0 && (m.State == StateFetched && !r.Back() || r.Back() && m.Changed):
			if m.Server == (r.Stage == StageServers || r.Stage == StageBackServers) {
				out = append(out, m.Name)
				next--
			}
		}
	}
	return out
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
