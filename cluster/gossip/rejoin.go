package gossip

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	firstAlone = 100 * time.Millisecond // pause after the first question of a member that is alone
	lastAlone  = 5 * time.Second        // and after the later ones
	askAtOnce  = 3                      // addresses tried in one attempt of a member that is alone
	again      = 3                      // exchanges in quick succession once a lost member answers

	reviews     = 3 // pauses after joining, all but the first with an exchange
	reviewAfter = 2 * time.Second

	refusedAgain = 2 * time.Second  // a member whose name another one has asks so often
	refusedFor   = 15 * time.Second // until so long after it last heard of the other
)

// rejoin brings back what memberlist has given up: dead members are asked
// whether they live, and seeds too while they are not known as alive. memberlist
// itself never asks a dead member again, so that two halves that held each other
// for dead would stay apart.
//
// All members together ask once per Timing.Rejoin, however many they are and
// however many are dead: each waits for its number of live members. One that is
// alone asks more often.
func (g *Gossip) rejoin(ctx context.Context) {
	alone, eager, review := firstAlone, 0, 0
	var next time.Time
	for ctx.Err() == nil {
		g.clones()
		live, candidates := g.candidates()
		if now := time.Now(); !next.After(now) {
			pause := g.share(live)
			switch {
			case live == 1 && len(candidates) > 0:
				for _, addr := range candidates[:min(len(candidates), askAtOnce)] {
					if ctx.Err() != nil || g.ask(addr) {
						break
					}
				}
				pause, alone = alone/2+rand.N(alone), min(2*alone, lastAlone)
				review = reviews
			case len(candidates) > 0:
				alone = firstAlone
				if g.ask(candidates[0]) && eager < again {
					// What both held for dead objects with the first exchange, and is
					// believed with the next.
					eager++
					pause = 2 * g.timing.Gossip
				} else {
					eager = 0
				}
			case int64(time.Since(g.begin)) < g.refused.Load():
				g.anyone()
				pause = refusedAgain
			case review > 0:
				// Where many join at once news get lost, and memberlist's own exchange
				// is far away.
				if review < reviews {
					g.anyone()
				}
				review--
				pause = reviewAfter/2 + rand.N(reviewAfter)
			default:
				alone, eager = firstAlone, 0
				pause = max(pause, lastAlone)
			}
			next = time.Now().Add(pause)
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-g.missing:
			t.Stop()
			if !g.calm() {
				g.anyone()
			}
			// The share of one among few is sooner than it was among many.
			sleep(ctx, 2*g.timing.Gossip)
			live, _ := g.candidates()
			soon := g.share(live)
			if live == 1 {
				soon = 0
			} else if int64(time.Since(g.begin)) < g.refused.Load() {
				soon = min(soon, refusedAgain)
			}
			if at := time.Now().Add(soon); at.Before(next) {
				next = at
			}
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// share is how long one of so many live members waits, so that together they
// ask once per Timing.Rejoin.
func (g *Gossip) share(live int) time.Duration {
	d := time.Duration(max(live, 1)) * g.timing.Rejoin
	return d/2 + rand.N(d)
}

// candidates returns the number of live members, this one included, and in
// random order, servers and seeds before agents half of the time, the addresses
// that are worth asking.
func (g *Gossip) candidates() (live int, addrs []string) {
	known := map[netip.AddrPort]bool{}
	var servers, agents []string
	g.mu.RLock()
	for name, e := range g.table {
		m := e.shown
		at := netip.AddrPortFrom(m.Addr, m.Port)
		switch {
		case name == g.cfg.Name || m.State == Alive:
			live++
		case m.State == Left:
		case m.Tags.Role == RoleAgent:
			agents = append(agents, at.String())
		default:
			servers = append(servers, at.String())
		}
		known[at] = true
	}
	g.mu.RUnlock()
	if g.cfg.Seeds != nil {
		for _, s := range g.cfg.Seeds() {
			at, err := netip.ParseAddrPort(s)
			if err != nil {
				if g.said.first("seed "+s, quiet) {
					g.log.Warn("a seed is not of the form ip:port", "seed", s)
				}
				continue
			}
			if at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port()); !known[at] {
				known[at] = true
				servers = append(servers, at.String())
			}
		}
	}
	shuffle := func(s []string) { rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }
	shuffle(servers)
	shuffle(agents)
	addrs = append(servers, agents...)
	if len(agents) > 0 && rand.N(2) == 0 {
		shuffle(addrs)
	}
	return live, addrs
}

// ask exchanges everything with the member at that address.
func (g *Gossip) ask(addr string) bool {
	return nil == g.using(func(l *memberlist.Memberlist) error {
		_, err := l.Join([]string{addr})
		return err
	})
}

// anyone exchanges everything with a random live member: after this process was
// stopped it learns so what became of it in the eyes of the others.
func (g *Gossip) anyone() {
	all := g.Members()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, m := range all {
		if m.State == Alive && m.Name != g.cfg.Name && g.ask(netip.AddrPortFrom(m.Addr, m.Port).String()) {
			return
		}
	}
}

// clones reports two processes that live as one member for long: copies of one
// machine.
func (g *Gossip) clones() {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for name, e := range g.table {
		var old *process
		for _, p := range e.procs {
			if p.phase != running || time.Since(p.since) < g.timing.CloneWait {
				continue
			}
			if old == nil {
				old = p
				continue
			}
			member := func(p *process) Member {
				return Member{Name: name, Addr: p.addr.Addr(), Port: p.addr.Port(), Tags: p.tags, State: Alive, Since: p.since}
			}
			if old.addr != p.addr && old.tags.ID == p.tags.ID {
				g.conflict(member(old), member(p))
			}
		}
	}
}
