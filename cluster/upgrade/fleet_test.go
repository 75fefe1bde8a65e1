package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// fleet is a cluster in memory: one log, a Service for each server, and members
// that carry out orders in a while. It runs on the clock of synctest.
type fleet struct {
	t   *testing.T
	rnd *rand.Rand

	mu       sync.Mutex
	fsm      *fsm.FSM
	index    uint64
	leader   string
	duty     func() // ends the leader's duty, and waits for it
	services map[string]*Service
	members  map[string]*fakeMember
	raised   int
	saved    int
	saveErr  error
	epoch    string
	churn    bool // others lead now and then

	mostServers, mostAgents int // that were not well at a time
	writes                  int
}

type fakeMember struct {
	name     string
	server   bool
	version  string
	previous string
	alive    bool
	pods     int // that can be evicted
	cordoned bool
	bad      bool // new programs do not become healthy on it
	done     map[string]bool
	settled  time.Time // when it is well again
}

func newFleet(t *testing.T, seed uint64, servers, agents int) *fleet {
	f := &fleet{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), fsm: fsm.New(store.New(store.Config{})), epoch: "1", services: map[string]*Service{}, members: map[string]*fakeMember{}}
	for i := range servers + agents {
		name := fmt.Sprintf("s%d", i)
		if i >= servers {
			name = fmt.Sprintf("n%d", i-servers)
		}
		f.members[name] = &fakeMember{name: name, server: i < servers, version: "0.1.0", alive: true, pods: 3, done: map[string]bool{}}
		if i < servers {
			s, err := New(Config{Name: name, Version: "0.1.0", Store: f.fsm.Store(), Log: f, Cluster: &fakeCluster{f, name}, Epoch: f.currentEpoch})
			if err != nil {
				t.Fatal(err)
			}
			f.services[name] = s
		}
	}
	return f
}

func (f *fleet) currentEpoch() (e string) {
	f.with(func() { e = f.epoch })
	return e
}

// Propose implements Log.
func (f *fleet) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, err := fsm.EncodeEntry(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	f.index++
	f.writes++
	return f.fsm.Apply(&raft.Log{Index: f.index, Term: 1, Data: data}).([]fsm.Result)[0], nil
}

// ReadIndex implements Log.
func (f *fleet) ReadIndex(context.Context) error { return nil }

// CallLeader implements Log.
func (f *fleet) CallLeader(ctx context.Context, method string, body []byte) ([]byte, error) {
	f.mu.Lock()
	s := f.services[f.leader]
	f.mu.Unlock()
	if s == nil {
		return nil, errors.New("no leader")
	}
	return s.Methods()[method](ctx, "", body)
}

// lead makes another server the leader.
func (f *fleet) lead(name string) {
	f.mu.Lock()
	end := f.duty
	f.leader, f.duty = "", nil
	f.mu.Unlock()
	if end != nil {
		end()
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = name
	s := f.services[name]
	go func() { defer close(ended); _ = s.Duty(ctx) }()
	f.duty = func() { cancel(); <-ended }
}

// other is a live server that does not lead.
func (f *fleet) other() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(f.services)) {
		if name != f.leader && f.members[name].well() {
			return name
		}
	}
	return ""
}

func (m *fakeMember) well() bool { return m.alive && !time.Now().Before(m.settled) }

// live lets every member do its orders until ctx ends.
func (f *fleet) live(ctx context.Context, rnd *rand.Rand) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(50+rnd.IntN(200)) * time.Millisecond)
		var names []string
		f.with(func() { names = slices.Sorted(maps.Keys(f.members)) })
		for _, name := range names {
			f.act(ctx, name)
		}
		f.count()
	}
}

// act does a member's order, if it has a new one.
func (f *fleet) act(ctx context.Context, name string) {
	s := f.services["s0"]
	o, err := s.Order(ctx, name)
	f.mu.Lock()
	m := f.members[name]
	if err != nil || o == nil || m.done[o.ID] || !m.alive {
		f.mu.Unlock()
		return
	}
	m.done[o.ID] = true
	r := Report{Order: o.ID, Phase: Done, At: time.Now()}
	handOver := ""
	switch {
	case o.Action == Switch && m.bad:
		r.Phase, r.Error = Returned, "it was not healthy"
		m.settled = time.Now().Add(o.Trial)
	case o.Action == Switch && m.version != o.Binary.Version:
		m.previous, m.version, m.settled = m.version, o.Binary.Version, time.Now().Add(time.Second)
	case o.Action == Return && m.previous == "":
		r.Phase, r.Gone, r.Error = Failed, true, "it is not kept"
	case o.Action == Return:
		m.previous, m.version, m.settled = m.version, m.previous, time.Now().Add(time.Second)
	}
	if o.Action != Fetch && name == f.leader && !f.churn {
		handOver = name
	}
	r.Version = m.version
	f.mu.Unlock()
	if handOver != "" { // it restarts
		if heir := f.other(); heir != "" {
			f.t.Errorf("the leader %s was changed though %s could lead", name, heir)
		}
	}
	if err := s.Report(ctx, name, r); err != nil {
		f.t.Error(err)
	}
}

// count keeps the most that were not well at a time.
func (f *fleet) count() {
	f.mu.Lock()
	defer f.mu.Unlock()
	servers, agents := 0, 0
	for _, m := range f.members {
		if m.alive && !m.well() {
			if m.server {
				servers++
			} else {
				agents++
			}
		}
	}
	f.mostServers, f.mostAgents = max(f.mostServers, servers), max(f.mostAgents, agents)
}

// with calls do while nothing else moves.
func (f *fleet) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// written is how much was written so far.
func (f *fleet) written() (n int) {
	f.with(func() { n = f.writes })
	return n
}

// rollout is the present one.
func (f *fleet) rollout() *Rollout {
	f.t.Helper()
	r, _, err := read[Rollout](f.fsm.Store().View(), RolloutKey)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// await waits for what the roll-out becomes.
func (f *fleet) await(what string, ok func(*Rollout) bool) *Rollout {
	f.t.Helper()
	for range 20000 {
		if r := f.rollout(); r != nil && ok(r) {
			return r
		}
		time.Sleep(100 * time.Millisecond)
	}
	b, _ := json.MarshalIndent(f.rollout(), "", " ")
	f.t.Fatalf("%s: not reached: %s", what, b)
	return nil
}

func (f *fleet) do(action string, q Request) (*Status, error) {
	q.By = "test"
	return f.services["s0"].Do(f.t.Context(), action, q)
}

func (f *fleet) must(action string, q Request) *Status {
	f.t.Helper()
	st, err := f.do(action, q)
	if err != nil {
		f.t.Fatalf("%s: %v", action, err)
	}
	return st
}

func (f *fleet) refused(action string, q Request, want string) {
	f.t.Helper()
	if _, err := f.do(action, q); err == nil || !strings.Contains(err.Error(), want) {
		f.t.Errorf("%s: %v, want %q", action, err, want)
	}
}

// versions are those that members run, by version.
func (f *fleet) versions() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for _, m := range f.members {
		out[m.version]++
	}
	return out
}

// fakeCluster is what one server knows and does.
type fakeCluster struct {
	f    *fleet
	name string
}

func (c *fakeCluster) Members(context.Context) ([]Info, error) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Info
	for _, name := range slices.Sorted(maps.Keys(f.members)) {
		m := f.members[name]
		i := Info{Name: name, Role: "agent", MinLevel: 1, MaxLevel: map[bool]int{true: 2, false: 1}[m.version == "0.2.0"], Leader: name == f.leader}
		i.Alive, i.Version, i.Node, i.NodeReady, i.Cordoned = m.alive, m.version, true, m.well(), m.cordoned
		if m.server {
			i.Role, i.Server, i.Voter, i.CaughtUp, i.APIReady = "server", true, true, m.well(), m.well()
		}
		out = append(out, i)
	}
	return out, nil
}

func (c *fakeCluster) Pods(_ context.Context, name string, before []string, facts *Facts) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	m := c.f.members[name]
	for i := range m.pods {
		uid := fmt.Sprintf("%s-%d", name, i)
		facts.Left = append(facts.Left, uid)
		if m.well() {
			facts.Ready = append(facts.Ready, uid)
		} else if slices.Contains(before, uid) {
			facts.PodsDown = append(facts.PodsDown, uid)
		}
	}
	return nil
}

func (c *fakeCluster) Save(context.Context) (*Saved, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.saved++
	return &Saved{Server: c.name, File: "x", At: time.Now()}, c.f.saveErr
}

func (c *fakeCluster) Trouble(context.Context) []string                    { return nil }
func (c *fakeCluster) Budgets(context.Context, []string) ([]string, error) { return nil, nil }

func (c *fakeCluster) Drain(_ context.Context, node string) (bool, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	m := c.f.members[node]
	first := !m.cordoned
	m.cordoned = true
	m.pods = max(m.pods-1, 0) // a budget lets one go at a time
	return first, nil
}

func (c *fakeCluster) Uncordon(_ context.Context, node string) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.members[node].cordoned, c.f.members[node].pods = false, 3
	return nil
}

func (c *fakeCluster) HandOver(_ context.Context, to string) error {
	go c.f.lead(to)
	return nil
}

func (c *fakeCluster) RaiseLevel(ctx context.Context, level int) error {
	c.f.with(func() { c.f.raised = level })
	r, err := c.f.Propose(ctx, fsm.SetLevel(c.f.fsm.Store().View(), 1)) // what this program knows
	return errors.Join(err, r.Err)
}

var target = Binary{Version: "0.2.0", SHA256: strings.Repeat("cd", 32), Size: 1 << 20, Platform: "linux/amd64", MinLevel: 1, MaxLevel: 2}

func upTo(o Options) Request { return Request{Binary: target, Holder: "s0", Options: o} }

// inFleet runs f on a clock of its own.
func inFleet(t *testing.T, seed uint64, servers, agents int, do func(f *fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, seed, servers, agents)
		ctx, cancel := context.WithCancel(t.Context())
		f.lead("s0")
		var wg sync.WaitGroup
		wg.Go(func() { f.live(ctx, rand.New(rand.NewPCG(seed, 2))) })
		defer func() {
			cancel()
			wg.Wait()
			f.duty()
		}()
		do(f)
	})
}
