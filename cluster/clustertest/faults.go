package clustertest

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// fault is one thing that goes wrong. weight is how often it is chosen.
type fault struct {
	name   string
	weight int
	do     func(w *world, r *rand.Rand)
}

var faults = []fault{
	{"partition", 8, (*world).partition},
	{"the leader is alone", 5, (*world).isolateLeader},
	{"one-way partition", 8, (*world).oneWay},
	{"heal", 8, func(w *world, _ *rand.Rand) { w.net.Heal() }},
	{"delay and loss", 8, (*world).hazard},
	{"broken connections", 6, (*world).breakLinks},
	{"firewall", 5, (*world).firewall},
	{"crash", 6, (*world).crashNow},
	{"crash at a step", 14, (*world).setTrap},
	{"stop", 4, (*world).stopOne},
	{"start", 14, (*world).startOne},
	{"slow disk", 6, (*world).slowDisk},
	{"hanging disk", 2, (*world).hangingDisk},
	{"clock jump", 4, (*world).clockJump},
	{"leadership transfer", 4, (*world).transfer},
	{"disk lost", 2, (*world).loseDisk},
	{"member added", 4, (*world).addMember},
	{"member removed", 3, (*world).removeMember},
	{"member replaced", 3, (*world).replaceMember},
	{"snapshot saved", 8, (*world).saveSnapshot},
	{"snapshot restored", 12, (*world).restoreSnapshot},
}

// wreak lets one fault after the other happen until ctx ends.
func (w *world) wreak(ctx context.Context) {
	r := rand.New(rand.NewPCG(w.seed, 2))
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for {
		select {
		case <-time.After(time.Duration(100+r.IntN(2400)) * time.Millisecond):
		case <-ctx.Done():
			return
		}
		x := r.IntN(total)
		for _, f := range faults {
			if x -= f.weight; x < 0 {
				w.mu.Lock()
				w.stats.Faults++
				w.mu.Unlock()
				f.do(w, rand.New(rand.NewPCG(r.Uint64(), 3)))
				break
			}
		}
	}
}

func (w *world) shuffled(r *rand.Rand) []string {
	hosts := w.hosts()
	r.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	return hosts
}

func (w *world) partition(r *rand.Rand) {
	hosts := w.shuffled(r)
	k := 1 + r.IntN(len(hosts)-1)
	w.logf("partition: %v | %v", hosts[:k], hosts[k:])
	for _, a := range hosts[:k] {
		for _, b := range hosts[k:] {
			w.net.Cut(a, b)
			w.net.Cut(b, a)
		}
	}
}

func (w *world) isolateLeader(r *rand.Rand) {
	l := w.leader()
	if l == nil {
		return
	}
	in, out := true, true
	switch r.IntN(3) {
	case 0:
		in = false
	case 1:
		out = false
	}
	w.logf("the leader %s hears the others: %v, is heard by them: %v", l.host, !in, !out)
	for _, h := range w.hosts() {
		if h != l.host && in {
			w.net.Cut(h, l.host)
		}
		if h != l.host && out {
			w.net.Cut(l.host, h)
		}
	}
}

func (w *world) oneWay(r *rand.Rand) {
	for range 1 + r.IntN(3) {
		h := w.shuffled(r)
		w.logf("one-way: nothing from %s to %s", h[0], h[1])
		w.net.Cut(h[0], h[1])
	}
}

// firewall lets some servers be refused by another, which lives: mostly the
// leader, whose death they must not believe in.
func (w *world) firewall(r *rand.Rand) {
	m := w.victim(r)
	if m == nil {
		return
	}
	from := slices.DeleteFunc(w.shuffled(r), func(h string) bool { return h == m.host })
	if len(from) == 0 {
		return
	}
	from = from[:1+r.IntN(len(from))]
	w.logf("%s refuses connections of %v", m.host, from)
	for _, h := range from {
		w.net.Refuse(h, m.host)
		if r.IntN(2) == 0 {
			w.net.Refuse(m.host, h)
		}
	}
}

func (w *world) hazard(r *rand.Rand) {
	hosts := w.hosts()
	delay, loss := time.Duration(1+r.IntN(400))*time.Millisecond, r.Float64()*0.2
	w.logf("links take up to %v and lose %.0f %%", delay, loss*100)
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b && r.IntN(3) > 0 {
				w.net.Hazard(a, b, delay, loss)
			}
		}
	}
}

func (w *world) breakLinks(r *rand.Rand) {
	hosts := w.hosts()
	w.logf("connections break")
	for i, a := range hosts {
		for _, b := range hosts[:i] {
			w.net.Break(a, b, r.Float64())
		}
	}
}

// loseDisk makes a server come back without its data, once in a run and while
// the others are a quorum: what was acknowledged is on one of them then, and
// they can go on. It comes as a new server. If it comes with its old name it must
// not be let in while it has a vote; later it comes as a new one.
func (w *world) loseDisk(r *rand.Rand) {
	m := w.victim(r)
	if m == nil || w.lostDisk || w.fewestVoters() < 3 {
		return
	}
	w.lostDisk = true
	w.meet(map[bool]string{true: "disk of a leader lost", false: "disk of a follower lost"}[m.node.IsLeader()])
	told, mistaken := r.IntN(2) == 0, r.IntN(2) == 0
	w.logf("%s loses its disk, and will come with its old name: %v", m.host, mistaken)
	w.crash(m, told)
	w.mu.Lock()
	s := w.slots[m.host]
	w.mu.Unlock()
	if !mistaken {
		w.renew(r, s)
		return
	}
	w.mu.Lock()
	s.dir, s.mistaken = w.newDir(), true
	w.mu.Unlock()
	w.restart(s)
}

// fewestVoters is the size of the smallest configuration that any server knows,
// also of those that do not run: a change that only one of them has heard of can
// still come about.
func (w *world) fewestVoters() int {
	fewest := maxMembers
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.slots {
		if s.m == nil {
			continue
		}
		voters := 0
		for _, o := range s.m.node.Members() {
			if o.Voter {
				voters++
			}
		}
		if voters > 0 {
			fewest = min(fewest, voters)
		}
	}
	return fewest
}

// victim prefers the leader, where most can go wrong.
func (w *world) victim(r *rand.Rand) *member {
	if l := w.leader(); l != nil && r.IntN(2) == 0 {
		return l
	}
	return pick(r, w.alive())
}

func (w *world) crashNow(r *rand.Rand) {
	if m := w.victim(r); m != nil {
		told := r.IntN(2) == 0
		w.logf("crash of %s, told: %v", m.host, told)
		w.crash(m, told)
	}
}

// steps are those that consensus.Config.Step reports.
var steps = func() (all []string) {
	for _, s := range []string{"append", "configuration", "term", "vote", "truncate", "snapshot:create", "snapshot:write",
		"snapshot:close"} {
		all = append(all, s+":before", s+":after")
	}
	return append(append(all, "restore-file:before"), installSteps...)
}()

// installSteps are those of a server that others send a snapshot.
var installSteps = []string{"install:create:before", "install:create:after", "install:write:before", "install:write:after",
	"install:close:before", "install:close:after"}

// newTrap returns a crash at one of the steps, or at the only one of the run.
func (w *world) newTrap(r *rand.Rand, of []string) *trap {
	t := &trap{step: pick(r, of), told: r.IntN(2) == 0}
	if w.o.step != "" {
		t.step = w.o.step
	}
	t.after.Store(1)
	if r.IntN(2) == 0 {
		t.after.Store(1 + int64(r.IntN(5)))
	}
	return t
}

// setTrap lets a member crash at one of the steps of writing.
func (w *world) setTrap(r *rand.Rand) {
	if m := w.victim(r); m != nil {
		t := w.newTrap(r, steps)
		w.logf("%s will crash at %s", m.host, t.step)
		m.armed.Store(t)
	}
}

// ensnare lets a server that is about to start crash at a step, once in so many
// times. It may have to be sent a snapshot, which is rare otherwise.
func (w *world) ensnare(r *rand.Rand, s *slot, rare int) {
	if w.over || w.o.step == "" && r.IntN(rare) > 0 {
		return
	}
	of := steps
	if r.IntN(2) == 0 {
		of = installSteps
	}
	s.trap = w.newTrap(r, of)
	w.logf("%s will crash at %s", s.host, s.trap.step)
}

func (w *world) stopOne(r *rand.Rand) {
	if m := w.victim(r); m != nil {
		w.logf("stop of %s", m.host)
		w.meet("stop in good order")
		w.stop(m)
	}
}

func (w *world) startOne(r *rand.Rand) {
	if s := pick(r, w.down()); s != nil {
		w.logf("start of %s", s.host)
		w.ensnare(r, s, 3)
		w.restart(s)
	}
}

func (w *world) slowDisk(r *rand.Rand) {
	if m := w.victim(r); m != nil {
		d := time.Duration(1+r.IntN(400)) * time.Millisecond
		w.logf("disk of %s takes %v", m.host, d)
		m.slow.Store(int64(d))
	}
}

func (w *world) hangingDisk(r *rand.Rand) {
	if m := w.victim(r); m != nil {
		d := time.Duration(2+r.IntN(10)) * time.Second
		w.logf("disk of %s hangs for %v", m.host, d)
		m.slow.Store(int64(d))
		w.wg.Go(func() {
			time.Sleep(d)
			m.slow.CompareAndSwap(int64(d), 0)
		})
	}
}

// clockJump sets a member's clock, by which it judges certificates. A jump over
// the certificates' end makes it distrust everybody until the clock is set back.
func (w *world) clockJump(r *rand.Rand) {
	s := w.slots[pick(r, w.hosts())]
	d := time.Duration(r.Int64N(int64(2*validity))) - validity/2
	w.logf("clock of %s is off by %v", s.host, d)
	s.offset.Store(int64(d))
}

// repair ends all faults. What is down is started.
func (w *world) repair(r *rand.Rand) {
	w.over = true
	w.net.Heal()
	for _, m := range w.alive() {
		m.slow.Store(0)
		m.armed.Store(nil)
	}
	for _, h := range w.hosts() {
		w.slots[h].offset.Store(0)
		w.slots[h].trap = nil
	}
	for _, h := range w.hosts() {
		s := w.slots[h]
		if !s.mistaken || s.m.dead.Load() {
			continue
		}
		if len(s.m.node.Members()) > 0 { // it was removed meanwhile, or had no vote: it is new
			w.meet("server without its data let in under its old name")
			s.mistaken = false
			continue
		}
		w.meet("server without its data not let in under its old name")
		w.stop(s.m)
	}
	for _, s := range w.down() {
		if s.mistaken {
			w.renew(r, s)
		} else {
			w.restart(s)
		}
	}
	w.logf("all is repaired")
}
