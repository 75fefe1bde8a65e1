package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	indirect     = 3 // members asked to look too, when one does not answer
	fanout       = 4 // members told per round of news
	retransmit   = 4 // times log10(members): how often news are told
	worstScore   = 8 // Lifeguard's scale is 0 to worstScore-1
	maxSuspicion = 6 // times longer without anybody who confirms
	leaveWait    = 3 * time.Second
	publishWait  = 2 * time.Second
	ticksInGap   = 5 // looks at the clock in Timing.Gap
)

// Gossip is this process's part in the cluster's gossip.
type Gossip struct {
	cfg     Config
	timing  Timing
	log     *slog.Logger
	epoch   uint64
	node    string // memberlist's name of this process
	wire    *transport
	keyring *memberlist.Keyring
	keysMu  sync.Mutex // one SetKeys at a time
	said    quieter    // complaints

	begin    time.Time    // of the four below, by the monotonic clock
	lastTick atomic.Int64 // when this process was last seen to run
	refused  atomic.Int64 // until then the others are asked whether our name is free
	calmAt   atomic.Int64 // deaths are believed from here on

	lagUntil atomic.Int64 // this process gets too little CPU to judge quickly
	lateBy   atomic.Int64 // the most that a tick came late meanwhile
	asked    questions
	object   atomic.Bool // somebody holds this process for dead: publish that it lives

	doubts    chan struct{}          // a death was reported
	tagged    chan struct{}          // tags were set
	missing   chan struct{}          // something happened that makes a rejoin urgent
	conflicts chan [2]Member         // for Config.Conflict
	runMu     sync.RWMutex           // held by users of list; Run takes it to end it
	list      *memberlist.Memberlist // nil unless Run runs; guarded by runMu
	ran       atomic.Bool

	mu      sync.RWMutex // never held while calling list, which calls back with its own lock held
	tags    Tags         // as they should be
	leaving bool
	goodbye bool      // memberlist was told to leave
	told    Tags      // as last given to list
	loadAt  time.Time // when told.Load last changed
	table   map[string]*entry
	subs    map[chan struct{}]struct{}
}

// New opens the sockets, so that Run cannot fail for their sake. Close them if
// Run is never called.
func New(cfg Config) (*Gossip, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	keyring, err := newKeyring(cfg.Keys)
	if err != nil {
		return nil, err
	}
	wire, err := listen(&cfg)
	if err != nil {
		return nil, err
	}
	cfg.Port = wire.port
	now := time.Now()
	g := &Gossip{cfg: cfg, timing: cfg.Timing.orProduction(), log: cfg.Logger, wire: wire, keyring: keyring,
		epoch: uint64(now.UnixMicro()), begin: now,
		doubts: make(chan struct{}, 1), tagged: make(chan struct{}, 1), missing: make(chan struct{}, 1), conflicts: make(chan [2]Member, 16),
		tags: cfg.Tags, table: map[string]*entry{}, subs: map[chan struct{}]struct{}{}}
	g.tags.Load = inSteps(g.tags.Load)
	g.told, g.loadAt = g.tags, now
	g.node = cfg.Name + "/" + strconv.FormatUint(g.epoch, 36)
	g.table[cfg.Name] = &entry{shown: Member{Name: cfg.Name, Addr: cfg.Advertise.Unmap(), Port: cfg.Port, Tags: g.tags, State: Alive, Since: now}, procs: map[string]*process{}}
	return g, nil
}

// Close releases the sockets of a Gossip that never ran.
func (g *Gossip) Close() error { return g.wire.Shutdown() }

// Run takes part in the gossip until ctx ends. It says no goodbye: a process
// that is back before it is missed was never away. It can run once. A probe
// under way when it returns ends within a second, or four on a starved machine;
// it can no longer reach anybody.
func (g *Gossip) Run(ctx context.Context) error {
	if g.ran.Swap(true) {
		return errors.New("gossip: a Gossip runs once")
	}
	defer g.wire.Shutdown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.wire.start()
	g.tick()
	list, err := memberlist.Create(g.config())
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.runMu.Lock()
	g.list = list
	g.runMu.Unlock()

	var wg sync.WaitGroup
	for _, work := range []func(context.Context){g.watchClock, g.verify, g.rejoin, g.publish, g.report} {
		wg.Go(func() { work(ctx) })
	}
	<-ctx.Done()
	_ = g.wire.Shutdown() // ends exchanges under way, and with them whoever waits for one
	wg.Wait()
	g.runMu.Lock()
	defer g.runMu.Unlock()
	g.list = nil
	return list.Shutdown()
}

func (g *Gossip) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.node
	c.Transport = g.wire
	c.AdvertisePort, c.BindPort = int(g.cfg.Port), int(g.cfg.Port)
	c.TCPTimeout = g.timing.ConnTimeout
	c.IndirectChecks, c.RetransmitMult, c.GossipNodes = indirect, retransmit, fanout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = g.timing.Suspicion, maxSuspicion
	c.AwarenessMaxMultiplier = worstScore
	c.ProbeInterval, c.ProbeTimeout = g.timing.Probe, g.timing.ProbeWait
	c.GossipInterval, c.PushPullInterval = g.timing.Gossip, g.timing.PushPull
	c.GossipToTheDeadTime = g.timing.GossipDead
	c.EnableCompression = false // LZW costs more than these packets are worth, and 20 KiB of garbage each
	c.Keyring = g.keyring
	c.Delegate, c.Events, c.Alive, c.Merge = delegate{g}, delegate{g}, delegate{g}, delegate{g}
	c.Logger = memberlistLogger(g.log, &g.said)
	return c
}

// using calls f with the running memberlist, or returns an error if there is none.
func (g *Gossip) using(f func(*memberlist.Memberlist) error) error {
	g.runMu.RLock()
	defer g.runMu.RUnlock()
	if g.list == nil {
		return errors.New("gossip does not run")
	}
	return f(g.list)
}

// Self returns this member as the others are told of it.
func (g *Gossip) Self() Member {
	m, _ := g.Member(g.cfg.Name)
	return m
}

// Score is Lifeguard's opinion of this process's own health: 0 is good, 7 the
// worst, which it also is in the first seconds after the process was stopped.
func (g *Gossip) Score() int {
	if !g.calm() {
		return worstScore - 1
	}
	score := 0
	_ = g.using(func(l *memberlist.Memberlist) error { score = l.GetHealthScore(); return nil })
	return score
}

// SetTags changes what this member says of itself. The function must be quick:
// it is called under a lock. ID, Role and ClusterID stay as they are, and so do
// all if they would not fit.
func (g *Gossip) SetTags(change func(*Tags)) {
	g.mu.Lock()
	t := g.tags
	change(&t)
	t.ID, t.Role, t.ClusterID = g.tags.ID, g.tags.Role, g.tags.ClusterID
	t.Load = inSteps(t.Load)
	_, err := encodeTags(t, true)
	changed := err == nil && t != g.tags
	if changed {
		g.tags = t
	}
	g.mu.Unlock()
	if err != nil {
		g.log.Error("gossip: tags are not changed", "error", err)
	}
	if changed {
		poke(g.tagged)
	}
}

// inSteps rounds a load to the nearest 10 %.
func inSteps(load uint8) uint8 { return (min(load, 100) + 5) / 10 * 10 }

// publish tells the others of changed tags.
func (g *Gossip) publish(ctx context.Context) {
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		select {
		case <-g.tagged:
		case <-wait.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		next, now := g.tags, time.Now()
		if late := g.loadAt.Add(g.timing.LoadEvery).Sub(now); next.Load != g.told.Load && late > 0 {
			next.Load = g.told.Load
			wait.Reset(late)
		}
		changed := next != g.told || g.object.Swap(false)
		if g.leaving { // memberlist forgets a member that has left, itself too
			changed = false
		}
		if next.Load != g.told.Load {
			g.loadAt = now
		}
		g.told = next
		g.mu.Unlock()
		if changed {
			// An error says that nobody has been told yet: memberlist goes on trying.
			_ = g.using(func(l *memberlist.Memberlist) error { return l.UpdateNode(publishWait) })
		}
	}
}

// Leave says goodbye, so that the others know this member as Left, not Dead. It
// returns when the news is out or ctx ends; Run goes on until its own context
// does, and hears what it hears, but tags are told to nobody any more.
func (g *Gossip) Leave(ctx context.Context) error {
	wait := leaveWait
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)/2)
	}
	if wait <= 0 || ctx.Err() != nil {
		return fmt.Errorf("gossip: leave: %w", context.DeadlineExceeded)
	}
	g.mu.Lock()
	again := g.goodbye
	g.leaving = true
	g.mu.Unlock()
	err := g.using(func(l *memberlist.Memberlist) error {
		if again {
			return nil
		}
		// memberlist does not tell those who hear of the end which kind it is, so
		// the tags do.
		if err := l.UpdateNode(wait); err != nil {
			return err
		}
		g.mu.Lock()
		g.goodbye = true
		g.mu.Unlock()
		return l.Leave(wait)
	})
	if err != nil {
		return fmt.Errorf("gossip: leave: %w", err)
	}
	return nil
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
