package gossip

import (
	"context"
	"sync"
	"time"
)

const (
	starved    = 5                     // times more patience where the CPU is short
	lateTimes  = 10                    // and at least so many times what a tick came late
	lag        = 50 * time.Millisecond // that a tick comes late shows that it is
	lagFor     = 5 * time.Second
	atATime    = 16 // doubted processes looked at
	introduce  = 2  // after so many answers the doubted one is told directly
	calmChecks = 4  // looks at the clock while waiting for calm
)

// tick notes that this process runs. If it has not for long, it noticed nothing
// meanwhile: answers wait unread, and whatever timed out says nothing of others.
func (g *Gossip) tick() {
	g.noticeGap()
	now := int64(time.Since(g.begin))
	last := g.lastTick.Swap(now)
	if late := time.Duration(now-last) - g.tickEvery(); last != 0 && late > lag {
		if now > g.lagUntil.Swap(now+int64(lagFor)) || int64(late) > g.lateBy.Load() {
			g.lateBy.Store(int64(late))
		}
	}
}

// noticeGap begins a time of calm if the last tick is long ago.
func (g *Gossip) noticeGap() {
	last := g.lastTick.Load()
	now := int64(time.Since(g.begin))
	if gap := time.Duration(now - last); last != 0 && gap > g.timing.Gap {
		if calm := now + int64(g.timing.Calm); g.calmAt.Swap(calm) < now {
			g.log.Warn("this process did not run for a while: deaths of others are not believed at once", "seconds", gap.Round(100*time.Millisecond).Seconds())
		}
		poke(g.missing) // the others may hold us for dead
	}
}

func (g *Gossip) calm() bool { return int64(time.Since(g.begin)) >= g.calmAt.Load() }

func (g *Gossip) tickEvery() time.Duration { return g.timing.Gap / ticksInGap }

func (g *Gossip) watchClock(ctx context.Context) {
	t := time.NewTicker(g.tickEvery())
	defer t.Stop()
	for {
		select {
		case <-t.C:
			g.tick()
		case <-ctx.Done():
			return
		}
	}
}

// verify looks itself at processes that were reported dead. One that answers is
// told that it is held for dead, so that it objects, and looked at again until
// memberlist has it back or it falls silent.
func (g *Gossip) verify(ctx context.Context) {
	for {
		select {
		case <-g.doubts:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			if !g.calm() {
				sleep(ctx, g.timing.Calm/calmChecks)
				continue
			}
			list := g.doubted()
			if len(list) == 0 {
				break
			}
			var wg sync.WaitGroup
			slots := make(chan struct{}, atATime)
			for _, p := range list {
				slots <- struct{}{}
				wg.Go(func() {
					g.look(ctx, p)
					<-slots
				})
			}
			wg.Wait()
			if len(g.doubted()) > 0 {
				sleep(ctx, g.timing.Probe)
			}
		}
	}
}

// doubted returns copies of the processes that only memberlist holds for dead.
func (g *Gossip) doubted() (list []process) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, e := range g.table {
		for _, p := range e.procs {
			if p.phase == doubted {
				list = append(list, *p)
			}
		}
	}
	return list
}

func (g *Gossip) look(ctx context.Context, p process) {
	answered := g.answers(ctx, p, g.timing.Patience, func() time.Duration {
		if int64(time.Since(g.begin)) < g.lagUntil.Load() {
			return max(starved*g.timing.Patience, min(lateTimes*time.Duration(g.lateBy.Load()), echoLimit))
		}
		return 0
	})
	if ctx.Err() != nil || !g.calm() {
		return // looked at again, if at all
	}
	name, _, _ := nodeName(p.node)
	g.mu.Lock()
	e := g.table[name]
	if e == nil || e.procs[p.node] == nil || e.procs[p.node].phase != doubted {
		g.mu.Unlock()
		return
	}
	now := e.procs[p.node]
	if !answered {
		now.phase = gone
		g.settle(name, e)
		g.mu.Unlock()
		return
	}
	now.refuted++
	tell := now.refuted%introduce == 0
	g.mu.Unlock()
	g.log.Debug("a member that others report dead answers", "member", name)
	if tell {
		g.ask(p.addr.String())
	}
}

// sleep returns after d or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
