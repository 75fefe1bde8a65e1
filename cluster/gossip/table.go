package gossip

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// settling is how long after New members that turn up are no news.
const settling = 10 * time.Second

// A phase is what is known of a process.
type phase int

const (
	running phase = iota
	doubted       // reported dead, which is not verified yet
	gone
)

// process is what memberlist calls a node: one run of one member.
type process struct {
	node    string // memberlist's name: NAME/EPOCH
	epoch   uint64
	addr    netip.AddrPort
	tags    Tags
	leaving bool // said goodbye
	phase   phase
	since   time.Time
	refuted int // pings answered since it was reported dead
}

// entry is a member: its processes, mostly one, and what is shown of it.
type entry struct {
	shown Member
	procs map[string]*process
}

// nodeName splits memberlist's name. ok is false for one that is not ours.
func nodeName(node string) (name string, epoch uint64, ok bool) {
	name, suffix, found := strings.Cut(node, "/")
	epoch, err := strconv.ParseUint(suffix, 36, 64)
	return name, epoch, found && err == nil && name != ""
}

// met is called when memberlist holds a node for alive, or its tags changed.
func (g *Gossip) met(n *memberlist.Node) {
	name, epoch, ok := nodeName(n.Name)
	tags, leaving, err := decodeTags(n.Meta)
	ip, valid := netip.AddrFromSlice(n.Addr)
	if !ok || err != nil || !valid {
		return // NotifyAlive has refused such
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.table[name]
	if e == nil {
		e = &entry{procs: map[string]*process{}}
		g.table[name] = e
	}
	p := e.procs[n.Name]
	if p == nil {
		p = &process{node: n.Name, epoch: epoch, since: time.Now()}
		e.procs[n.Name] = p
	}
	if p.phase != running {
		p.phase, p.since, p.refuted = running, time.Now(), 0
	}
	p.addr, p.tags, p.leaving = netip.AddrPortFrom(ip.Unmap(), n.Port), tags, leaving
	g.settle(name, e)
}

// lost is called when memberlist holds a node for dead or left.
func (g *Gossip) lost(n *memberlist.Node) {
	name, _, _ := nodeName(n.Name)
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.table[name]
	if e == nil || e.procs[n.Name] == nil {
		return
	}
	p := e.procs[n.Name]
	p.phase, p.since = doubted, time.Now()
	if p.leaving {
		p.phase = gone
	}
	g.settle(name, e)
	if p.phase == doubted {
		poke(g.doubts)
	}
}

// settle decides what is shown of a member from what is known of its processes.
// g.mu is held.
func (g *Gossip) settle(name string, e *entry) {
	procs := make([]*process, 0, len(e.procs))
	for _, p := range e.procs {
		procs = append(procs, p)
	}
	slices.SortFunc(procs, func(a, b *process) int { return cmp.Compare(b.epoch, a.epoch) })
	shown := e.shown
	var current *process
	hoped := false // one is doubted only
	for _, p := range procs {
		if p.phase == running && !p.leaving && current == nil {
			current = p
		}
		hoped = hoped || p.phase == doubted
	}
	newest := procs[0]
	switch {
	case current != nil:
		shown = Member{Name: name, Addr: current.addr.Addr(), Port: current.addr.Port(), Tags: current.tags, State: Alive, Since: shown.Since}
	case newest.leaving:
		shown = Member{Name: name, Addr: newest.addr.Addr(), Port: newest.addr.Port(), Tags: newest.tags, State: Left, Since: shown.Since}
	case hoped && shown.State != "":
		// as it was
	default:
		shown.State = Dead
	}
	for _, p := range procs {
		if p.phase == gone || p.phase == doubted && current != nil {
			delete(e.procs, p.node)
		}
	}
	if shown == e.shown {
		return
	}
	if shown.State != e.shown.State || shown.Tags.ID != e.shown.Tags.ID {
		shown.Since = time.Now()
		if name != g.cfg.Name {
			level := slog.LevelInfo
			if e.shown.State == "" && time.Since(g.begin) < settling {
				level = slog.LevelDebug // all are new to one that is new
			}
			g.log.Log(context.Background(), level, "member is "+string(shown.State), "member", name, "role", string(shown.Tags.Role), "address", shown.Addr.String(), "was", string(e.shown.State))
		}
	} else if shown.Addr != e.shown.Addr {
		g.log.Info("member has a new address", "member", name, "address", shown.Addr.String(), "was", e.shown.Addr.String())
	}
	died := shown.State == Dead && e.shown.State != Dead
	e.shown = shown
	g.changed()
	if died {
		poke(g.missing)
	}
}

// changed pokes the subscribers. g.mu is held.
func (g *Gossip) changed() {
	for ch := range g.subs {
		poke(ch)
	}
}

// Members returns all members that were heard of since the process began, this
// one included, sorted by name.
func (g *Gossip) Members() []Member {
	g.mu.RLock()
	all := make([]Member, 0, len(g.table))
	for _, e := range g.table {
		all = append(all, e.shown)
	}
	g.mu.RUnlock()
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Member returns what is known of the member of that name.
func (g *Gossip) Member(name string) (Member, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if e := g.table[name]; e != nil {
		return e.shown, true
	}
	return Member{}, false
}

// ByID returns what is known of the member with that ID: if there are several
// (its name was changed), one that lives, or else the latest that did.
func (g *Gossip) ByID(id string) (found Member, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, e := range g.table {
		m := e.shown
		if m.Tags.ID != id {
			continue
		}
		if better := m.State == Alive && found.State != Alive || (m.State == Alive) == (found.State == Alive) && m.Since.After(found.Since); !ok || better {
			found, ok = m, true
		}
	}
	return found, ok
}

// Alive reports whether the member with that ID lives. It is false for one that
// was never heard of: see ByID to tell the difference.
func (g *Gossip) Alive(id string) bool {
	m, ok := g.ByID(id)
	return ok && m.State == Alive
}

// Changes returns a channel of one place that is poked after every change of
// what Members returns, and a function that ends this.
func (g *Gossip) Changes() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	g.mu.Lock()
	g.subs[ch] = struct{}{}
	g.mu.Unlock()
	return ch, func() {
		g.mu.Lock()
		delete(g.subs, ch)
		g.mu.Unlock()
	}
}

// Forget drops a member that is dead or left. One that is alive stays: it would
// be back at once.
func (g *Gossip) Forget(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.table[name]; e != nil && e.shown.State != Alive && name != g.cfg.Name {
		delete(g.table, name)
		g.changed()
	}
}
