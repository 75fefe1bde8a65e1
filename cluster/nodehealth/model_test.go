package nodehealth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// The model is a cluster of five hosts, three of them servers, with one identity
// (a pod of a StatefulSet) that is replaced when its node is lost. Partitions come
// and go, processes and whole hosts' skiffs are stopped and die, every clock runs
// up to two percent wrong, and a server may be stopped at any point between two
// steps of a decision. Leases are the real ones; what nodes do (package node,
// node/pod, the shim) is modelled rule by rule. It must never happen that two
// containers of the identity run at the same time.
const (
	hosts    = 5
	servers  = 3
	tick     = 100 * time.Millisecond
	gossip   = 6 * time.Second // until everybody's gossip has noticed
	taken    = 3 * time.Second // for ending a container, and a little
	settling = time.Second
)

// version is the pod of the identity after one write.
type version struct {
	rev     uint64
	pod     int // counts replacements; 0: there is none
	node    int
	deleted bool
}

type host struct {
	rate  float64
	group int           // of hosts that reach each other
	since time.Duration // of the group
	dead  time.Duration // skiff is not running until then
	stuck time.Duration // skiff is stopped (SIGSTOP) until then

	// the server
	leads   uint64 // term in which it believes to lead; 0: none
	duty    bool
	begins  bool // a duty is beginning
	leases  *Leases
	tainted time.Duration // since when the identity's node seems lost to this leader

	// the node; times are of its own clock
	view    version       // what it knows of the API
	base    time.Duration // as in node's fence
	excused time.Duration
	ever    bool // granted anything since the host runs
	own     bool // granted by this process
	chain   uint64
	from    uint64
	proved  uint64 // chain in which the pod of view was proved to be there
	next    time.Duration
	runs    int           // pod whose container runs; 0: none
	ending  time.Duration // when the container that is being ended has ended; 0: it is not
}

type model struct {
	r         *rand.Rand
	now       time.Duration
	tolerated time.Duration
	log       []version
	term      uint64
	hosts     [hosts]*host
	depth     int
	election  time.Duration
	calm      time.Duration // no fault begins from then on

	replaced int
	twice    string

	// What the model leaves out to show that it would be missed.
	noMargin, noProof, noFence bool
}

func newModel(seed uint64) *model {
	m := &model{r: rand.New(rand.NewPCG(seed, 1)), log: []version{{rev: 1, pod: 1, node: int(seed % hosts)}}}
	m.tolerated = []time.Duration{0, 10 * time.Second, 40 * time.Second}[m.r.IntN(3)]
	for i := range m.hosts {
		h := &host{rate: 0.98 + 0.04*m.r.Float64(), next: time.Duration(m.r.Int64N(int64(RenewInterval)))}
		m.hosts[i] = h
		if i >= servers {
			continue
		}
		l, err := NewLeases(LeasesConfig{
			Verify:   func(context.Context) (uint64, error) { return m.verify(i) },
			Revision: func() uint64 { return m.last().rev },
			now:      func() time.Time { return time.Unix(0, 0).Add(time.Hour + m.local(i)) },
		})
		if err != nil {
			panic(err)
		}
		h.leases = l
	}
	return m
}

func (m *model) local(i int) time.Duration { return time.Duration(float64(m.now) * m.hosts[i].rate) }
func (m *model) last() version             { return m.log[len(m.log)-1] }
func (m *model) up(i int) bool {
	return m.now >= m.hosts[i].dead && m.now >= m.hosts[i].stuck
}
func (m *model) reach(a, b int) bool {
	return m.up(a) && m.up(b) && m.hosts[a].group == m.hosts[b].group
}

// majority reports whether a host reaches most servers, itself counted if it is one.
func (m *model) majority(i int) bool {
	n := 0
	for s := range servers {
		if m.reach(i, s) {
			n++
		}
	}
	return n > servers/2
}

// verify is a round of heartbeats; afterwards the server may be stopped for a while
// and the world goes on.
func (m *model) verify(i int) (uint64, error) {
	h := m.hosts[i]
	term := h.leads
	if term == 0 || term != m.term || !m.majority(i) {
		return 0, errors.New("does not lead")
	}
	m.delay(i, 200)
	return term, nil
}

// delay stops what a server is doing, in the middle of it.
func (m *model) delay(i, rare int) {
	if m.depth >= 2 || m.r.IntN(rare) > 0 {
		return
	}
	d := time.Duration(m.r.Int64N(int64(90 * time.Second)))
	if m.now+d < m.calm {
		m.hosts[i].stuck = m.now + d
	} else {
		d = time.Duration(m.r.Int64N(int64(2 * time.Second)))
	}
	m.depth++
	m.run(m.now + d)
	m.depth--
}

// write changes the identity if it is still at revision rev; 0 is any.
func (m *model) write(from int, rev uint64, v version) bool {
	if !m.majority(from) && m.leaderOf(from) < 0 || rev != 0 && m.last().rev != rev {
		return false
	}
	v.rev = m.last().rev + 1 + uint64(m.r.IntN(3))
	m.log = append(m.log, v)
	return true
}

// leaderOf is the true leader if a host reaches it; -1 if not.
func (m *model) leaderOf(i int) int {
	for s := range servers {
		if m.hosts[s].leads == m.term && m.term > 0 && m.majority(s) && m.reach(i, s) {
			return s
		}
	}
	return -1
}

// aliveTo is how much of the cluster a host's gossip sees: what it was for six
// seconds after a change may be anything between before and now.
func (m *model) aliveTo(i int) float64 {
	n := 0
	for j := range hosts {
		if m.sees(i, j) {
			n++
		}
	}
	return float64(n) / hosts
}

func (m *model) sees(i, j int) bool {
	if i == j {
		return true
	}
	a, b := m.hosts[i], m.hosts[j]
	changed := max(a.since, b.since, b.dead, b.stuck)
	if m.now < changed+gossip && m.now > changed {
		return m.r.IntN(2) == 0
	}
	return a.group == b.group && m.up(j)
}

func (m *model) run(until time.Duration) {
	for m.now < until && m.twice == "" {
		m.now += tick
		if m.now < m.calm {
			m.faults()
		}
		m.elect()
		for i := range hosts {
			m.node(i)
		}
		m.check()
		for i := range servers {
			m.lead(i)
		}
	}
}

func (m *model) faults() {
	if m.r.IntN(600) == 0 { // one host or two are cut off, or new partitions, or none
		groups := m.r.IntN(3) + m.r.IntN(8)/7
		for _, h := range m.hosts {
			h.group, h.since = 0, m.now
			if groups == 3 {
				h.group = m.r.IntN(3)
			}
		}
		if groups == 1 || groups == 2 {
			for range groups {
				m.hosts[m.r.IntN(hosts)].group = 1
			}
		}
	}
	if m.r.IntN(2500) == 0 {
		m.hosts[m.r.IntN(hosts)].stuck = m.now + time.Duration(m.r.Int64N(int64(150*time.Second)))
	}
	if m.r.IntN(2500) == 0 { // skiff dies; its containers go on
		h := m.hosts[m.r.IntN(hosts)]
		h.dead = m.now + time.Duration(m.r.Int64N(int64(4*time.Minute)))
		h.leads, h.duty, h.own, h.chain, h.proved, h.excused = 0, false, false, 0, 0, 0
		if h.leases != nil {
			h.leases.leading = false
		}
	}
}

// elect makes a leader of a server that reaches most, when there is none. The one
// before finds out later, or when it hears of the new one.
func (m *model) elect() {
	for s := range servers {
		h := m.hosts[s]
		if h.leads == 0 || !m.up(s) {
			continue
		}
		if h.leads != m.term && m.majority(s) || !m.majority(s) && m.r.IntN(300) == 0 {
			h.leads, h.duty, h.leases.leading = 0, false, false
		}
	}
	for s := range servers {
		if h := m.hosts[s]; h.leads == m.term && m.term > 0 && m.majority(s) {
			m.election = m.now
			return
		}
	}
	if m.now < m.election+settling {
		return
	}
	for _, s := range m.r.Perm(servers) {
		if m.majority(s) {
			m.term++
			m.hosts[s].leads, m.hosts[s].duty, m.hosts[s].tainted = m.term, false, 0
			m.election = m.now
			return
		}
	}
}

// lead is what the leader's duties do, as far as they concern the identity: taint,
// evict after the toleration, remove when the lease is over, replace.
func (m *model) lead(i int) {
	h := m.hosts[i]
	if h.leads == 0 || !m.up(i) {
		return
	}
	ctx := context.Background()
	if !h.duty {
		if !h.begins && m.r.IntN(5) == 0 {
			term := h.leads
			h.begins = true
			err := h.leases.begin(ctx)
			h.begins = false
			h.duty = err == nil && h.leads == term
			if !h.duty {
				h.leases.leading = false
			}
		}
		return
	}
	h.leases.alive()
	h.leases.Freeze(m.aliveTo(i) < 1-0.55)
	read := m.last() // a cache that is behind would only lose the race later
	if back := m.r.IntN(4); back < len(m.log) {
		read = m.log[len(m.log)-1-back]
	}
	switch {
	case read.pod == 0:
		if node := m.r.IntN(hosts); m.sees(i, node) {
			m.write(i, read.rev, version{pod: len(m.log) + 1, node: node})
		}
	case m.sees(i, read.node):
		h.tainted = 0
	case h.tainted == 0:
		h.tainted = m.now
	case !read.deleted:
		if m.now-h.tainted >= m.tolerated {
			read.deleted = true
			m.write(i, read.rev, read)
		}
	default:
		at, ok := h.leases.OverAt(fmt.Sprint(read.node), m.tolerated)
		if m.noMargin {
			at = at.Add(-leaseMargin - max(LeaseDuration, m.tolerated)/2)
		}
		if !ok || h.leases.cfg.now().Before(at) || h.leases.Confirm(ctx) != nil {
			return
		}
		m.delay(i, 5)
		if m.write(i, read.rev, version{}) { // by whoever leads now
			m.replaced++
		}
	}
}

// node is what one host does with the pods that it knows of.
func (m *model) node(i int) {
	h, now := m.hosts[i], m.local(i)
	allowed := h.base + max(LeaseDuration, m.tolerated)
	if h.ending > 0 && now >= h.ending {
		h.runs, h.ending = 0, 0
	}
	stop := func() {
		if h.runs != 0 && h.ending == 0 && !m.noFence {
			h.ending = now + time.Duration(m.r.Int64N(int64(taken)))
		}
	}
	if !m.up(i) { // the shim alone
		if now > allowed {
			stop()
		}
		return
	}
	leader := m.leaderOf(i)
	if now >= h.next { // any server passes it on, perhaps to one that led before
		h.next = now + RenewInterval
		if leader < 0 {
			h.next = now + 500*time.Millisecond
			for s := range servers {
				if m.reach(i, s) && m.hosts[s].leads != 0 {
					leader = s
				}
			}
		}
		if leader >= 0 && m.hosts[leader].duty {
			sent := now
			g, err := m.hosts[leader].leases.grant(context.Background(), fmt.Sprint(i))
			if err == nil && m.reach(i, leader) {
				if h.chain == 0 || sent-h.base > LeaseDuration {
					h.chain = uint64(m.now) // unlike any before
					h.from = g.Revision
				}
				h.base, h.ever, h.own, h.excused = max(h.base, sent), true, true, 0
			}
			if !m.up(i) {
				return
			}
			now = m.local(i)
		}
	}
	// What it reads may be old, but never goes back.
	for s := range servers {
		if m.reach(i, s) && m.r.IntN(10) == 0 {
			v := m.log[max(0, len(m.log)-1-m.r.IntN(3))]
			if m.majority(s) {
				v = m.last()
			}
			if v.rev > h.view.rev {
				if v.pod != h.view.pod {
					h.proved = 0
				}
				h.view = v
			}
		}
	}
	mine := h.view.pod != 0 && h.view.node == i
	if !h.own || m.aliveTo(i) <= 0.55 {
		h.excused = 0
	} else if h.excused == 0 {
		h.excused = now
	} else if now-h.excused >= 10*time.Second && now-h.base <= LeaseDuration {
		h.base = max(h.base, now-10*time.Second)
	}
	run := h.ever && now < h.base+max(LeaseDuration, m.tolerated)
	switch {
	case !mine || h.runs != 0 && h.runs != h.view.pod:
		stop()
	case !run && h.runs != 0:
		stop()
	case h.view.deleted && h.runs != 0:
		stop() // an ordinary deletion; the object goes with it
	case !run || h.runs != 0 || h.view.deleted || h.chain == 0:
	case m.noProof || h.proved == h.chain || h.view.rev > h.from:
		h.runs = h.view.pod
	case m.r.IntN(5) == 0 && m.leaderOf(i) >= 0: // asks: a write of the status
		if v := m.last(); v.pod == h.view.pod && m.write(i, v.rev, v) {
			h.proved = h.chain
		}
	}
	if h.view.deleted && mine && h.runs == 0 && run && h.chain != 0 {
		if v := m.last(); v.pod == h.view.pod && m.leaderOf(i) >= 0 {
			m.write(i, v.rev, version{})
		}
	}
}

func (m *model) check() {
	n := ""
	count := 0
	for i, h := range m.hosts {
		if h.runs != 0 {
			count++
			n += fmt.Sprintf(" pod %d on host %d (up %t, granted %v ago by its clock)", h.runs, i, m.up(i), m.local(i)-h.base)
		}
	}
	if count > 1 {
		m.twice = fmt.Sprintf("at %v, tolerating %v:%s", m.now, m.tolerated, n)
	}
}

// play runs a seed: ten minutes of faults, then quiet until the identity runs.
func play(seed uint64, change func(*model)) *model {
	m := newModel(seed)
	change(m)
	m.calm = 10 * time.Minute
	m.run(m.calm)
	for _, h := range m.hosts {
		h.group, h.since = 0, m.now
	}
	m.run(m.now + 6*time.Minute)
	return m
}

func TestIdentityNeverRunsTwice(t *testing.T) {
	t.Parallel()
	replaced := 0
	for seed := range uint64(150) {
		m := play(seed, func(*model) {})
		if m.twice != "" {
			t.Fatalf("seed %d: %s", seed, m.twice)
		}
		replaced += m.replaced
		v := m.last()
		if v.pod == 0 || m.hosts[v.node].runs != v.pod {
			t.Errorf("seed %d: the identity does not run after %v of quiet: %+v, %+v", seed, m.now-m.calm, v, *m.hosts[max(v.node, 0)])
		}
	}
	t.Logf("%d replacements", replaced)
	if replaced < 100 {
		t.Errorf("only %d replacements: the model tests nothing", replaced)
	}
}

// Without any one of these rules the identity runs twice: each is needed, and the
// model would notice. (That only a verified leader grants is in TestLeases.)
func TestModelNoticesMissingRules(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*model){
		"no margin": func(m *model) { m.noMargin = true },
		"no proof":  func(m *model) { m.noProof = true },
		"no fence":  func(m *model) { m.noFence = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(500) {
				if m := play(seed, change); m.twice != "" {
					t.Logf("seed %d: %s", seed, m.twice)
					return
				}
			}
			t.Error("nothing happens")
		})
	}
}
