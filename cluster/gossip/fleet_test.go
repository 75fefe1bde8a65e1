package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fast is a tenth of production, for tests whose matter is not time.
var fast = Timing{Probe: 100 * time.Millisecond, ProbeWait: 50 * time.Millisecond, Gossip: 20 * time.Millisecond, PushPull: time.Second,
	Suspicion: 4, Patience: 100 * time.Millisecond, Rejoin: 100 * time.Millisecond, Calm: time.Second, LoadEvery: 200 * time.Millisecond, GossipDead: 2 * time.Second,
	CloneWait: 1500 * time.Millisecond, ConnTimeout: time.Second}

// forbearing gives suspects so many times as long, for tests in which nobody may be
// seen to die who is slow for a while.
func forbearing(times int) Timing {
	t := fast
	t.Suspicion *= times
	return t
}

var key1, key2 = bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)

// nets hands every fleet addresses of its own.
var nets atomic.Uint32

// fleet is a cluster in one process; each member has an address of 127.0.0.0/8.
type fleet struct {
	t      testing.TB
	timing Timing
	net    [2]byte
	port   uint16
	cut    atomic.Pointer[func(from, to netip.Addr) bool]

	mu      sync.Mutex
	members []*runner
}

type runner struct {
	*Gossip
	fleet  *fleet
	logs   *lockedBuffer
	cfg    Config
	stop   context.CancelFunc
	done   chan struct{}
	halted bool
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func newFleet(t testing.TB, timing Timing) *fleet {
	return &fleet{t: t, timing: timing, net: [2]byte{byte(64 + os.Getpid()%128), byte(nets.Add(1))}, port: 7001}
}

func (f *fleet) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, f.net[0], f.net[1], byte(i)})
}

func (f *fleet) config(i int) Config {
	role := RoleAgent
	if i <= 3 {
		role = RoleServer
	}
	addr := f.addr(i)
	return Config{Name: fmt.Sprintf("n%d", i), Bind: addr, Port: f.port, Keys: [][]byte{key1}, Timing: f.timing,
		Tags:  Tags{ID: fmt.Sprintf("id-%d", i), Role: role, ClusterID: "cluster", Version: "v1"},
		Seeds: func() []string { return []string{fmt.Sprintf("%s:%d", f.addr(1), f.port)} },
	}
}

// start runs a member; change may be nil.
func (f *fleet) start(i int, change func(*Config)) *runner {
	f.t.Helper()
	cfg := f.config(i)
	if change != nil {
		change(&cfg)
	}
	logs := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelInfo}))
	self := cfg.Bind
	cfg.Lose = func(to netip.AddrPort) bool {
		cut := f.cut.Load()
		return cut != nil && (*cut)(self, to.Addr())
	}
	g, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &runner{Gossip: g, fleet: f, logs: logs, cfg: cfg, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := g.Run(ctx); err != nil {
			f.t.Errorf("%s: %v", cfg.Name, err)
		}
	}()
	f.mu.Lock()
	f.members = append(f.members, r)
	f.mu.Unlock()
	f.t.Cleanup(r.kill)
	return r
}

// kill ends the member as kill -9 would: nobody is told.
func (r *runner) kill() {
	r.stop()
	<-r.done
	r.fleet.mu.Lock()
	r.halted = true
	r.fleet.mu.Unlock()
}

func (f *fleet) running() (list []*runner) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.members {
		if !r.halted {
			list = append(list, r)
		}
	}
	return list
}

func (f *fleet) grow(n int) []*runner {
	f.t.Helper()
	for i := 1; i <= n; i++ {
		f.start(i, nil)
	}
	f.await("all see all", func() bool { return f.all(n, Alive) })
	return f.running()
}

// all reports whether each running member sees exactly n members of that state.
func (f *fleet) all(n int, s State) bool {
	for _, r := range f.running() {
		if r.count(s) != n {
			return false
		}
	}
	return true
}

func (r *runner) count(s State) (n int) {
	for _, m := range r.Members() {
		if m.State == s {
			n++
		}
	}
	return n
}

// runs is the number of processes that r knows of a member and has not given up.
func (r *runner) runs(name string) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.table[name]; e != nil {
		return len(e.procs)
	}
	return 0
}

func (r *runner) state(name string) State {
	m, _ := r.Member(name)
	return m.State
}

func (f *fleet) await(what string, ok func() bool) time.Duration {
	f.t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > 30*time.Second {
			for _, r := range f.running() {
				f.t.Logf("%s sees %d alive, %d dead, %d left", r.cfg.Name, r.count(Alive), r.count(Dead), r.count(Left))
			}
			f.t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// partition cuts two groups of members; one-way if back stays open.
func (f *fleet) partition(a, b []*runner, oneWay bool) {
	in := func(list []*runner, addr netip.Addr) bool {
		return slices.ContainsFunc(list, func(r *runner) bool { return r.cfg.Bind == addr })
	}
	cut := func(from, to netip.Addr) bool {
		return in(a, from) && in(b, to) || !oneWay && in(b, from) && in(a, to)
	}
	f.cut.Store(&cut)
}

func (f *fleet) heal() { f.cut.Store(nil) }
