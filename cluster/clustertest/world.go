package clustertest

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/fsm/store"
)

// world is one cluster with everything around it.
type world struct {
	o      options
	seed   uint64
	root   string // of the data dirs
	dirs   atomic.Int64
	net    *Network
	codec  runtime.Codec
	ca     *authority
	logger *slog.Logger
	begin  time.Time
	clock  atomic.Int64 // orders calls and returns
	wg     sync.WaitGroup

	mu        sync.Mutex
	slots     map[string]*slot // by host
	ids       int
	log       []string
	anomalies []string
	met       map[string]int // what went wrong and had an effect, how often
	lostDisk  bool
	over      bool           // nothing goes wrong any more
	crashes   map[string]int // by step
	keys      []string       // of the clients
	witness   string         // host of the only one, if there is one
	grace     time.Duration
	expelled  map[string]bool // IDs that must not come back; nil: none that was removed does
	empty     int64           // revision of a new store
	sparse    bool            // the history is only that of the keys
	history   map[int64]event
	prints    map[uint64]print // by log index
	leaders   map[uint64]string
	ops       []op
	watches   []*watch
	stats     Stats
	saved     []saved
	restores  map[string]saved // by ID
	restoring bool             // one is under way
}

// slot is a place for a member: a host with its disk.
type slot struct {
	host     string
	id       string
	dir      string
	m        *member      // the present life, or the last
	offset   atomic.Int64 // of its clock, nanoseconds
	trap     *trap        // of the next life
	mistaken bool         // it lost its data and still uses its ID
}

// options of a run. The zero value of spoil is the real thing.
type options struct {
	members         int
	snapshotEntries uint64
	trailing        uint64
	faults          time.Duration // how long there are faults
	clients         int
	watchers        int
	// step, if not empty, is the only one at which members crash.
	step string
	// spoil replaces the way to the log, for tests of the checks.
	spoil func(*consensus.Node) storage.Log
	// spoilWatch spoils what a watcher has seen, likewise.
	spoilWatch func(*watch)
	// spoilState spoils the state of one member in the middle of the faults.
	spoilState func(*member)
}

// Stats says what a run was made of.
type Stats struct {
	Ops, Unknown, Failed int
	Events, Watched      int
	Faults               int
	Members              int
	Recovery             time.Duration  // from the end of the faults to the first write
	Converged            time.Duration  // until all members were equal
	Crashes              map[string]int // by the step at which
	Met                  map[string]int // what went wrong and had an effect
}

type event struct {
	key, value string // value is empty on delete
	from       string // who told it first
}

type print struct {
	revision int64
	sum      [32]byte
	from     string
}

func newWorld(seed uint64, o options, root string, logger *slog.Logger) *world {
	return &world{
		o: o, seed: seed, root: root, net: NewNetwork(rand.New(rand.NewPCG(seed, 1))), codec: codec(), ca: newAuthority(),
		logger: logger, begin: time.Now(), slots: map[string]*slot{}, met: map[string]int{}, crashes: map[string]int{},
		keys: keys, empty: store.New(store.Config{}).Revision(), history: map[int64]event{}, prints: map[uint64]print{}, leaders: map[uint64]string{},
		restores: map[string]saved{},
	}
}

// logf adds to the story of the run.
func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf("%8.3fs ", time.Since(w.begin).Seconds())+fmt.Sprintf(format, args...))
}

// anomaly says what should not be.
func (w *world) anomaly(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.logf("ANOMALY: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.anomalies) < 20 {
		w.anomalies = append(w.anomalies, text)
	}
}

// meet counts something that went wrong.
func (w *world) meet(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.met[what]++
}

// found starts a cluster of n members.
func (w *world) found(n int) error {
	var servers []consensus.Server
	for i := range n {
		host := string(rune('a' + i))
		servers = append(servers, consensus.Server{ID: w.newID(host), Addr: address(host)})
	}
	for i, s := range servers {
		host := string(rune('a' + i))
		m, err := w.start(host, s.ID, w.newDir(), servers, nil)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.slots[host] = &slot{host: host, id: s.ID, dir: m.dir, m: m}
		w.mu.Unlock()
	}
	return nil
}

func (w *world) newID(host string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids++
	return fmt.Sprintf("%s-%d", host, w.ids)
}

// hosts are the names of all slots, in order.
func (w *world) hosts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.slots))
}

// alive are the members that run, in the order of their names.
func (w *world) alive() (out []*member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range slices.Sorted(maps.Keys(w.slots)) {
		if m := w.slots[h].m; m != nil && !m.dead.Load() {
			out = append(out, m)
		}
	}
	return out
}

// down are the slots whose member does not run.
func (w *world) down() (out []*slot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range slices.Sorted(maps.Keys(w.slots)) {
		if s := w.slots[h]; s.m == nil || s.m.dead.Load() {
			out = append(out, s)
		}
	}
	return out
}

// leader is the member that leads, or nil. Of two that think so it is the one
// with the higher term.
func (w *world) leader() (l *member) {
	var term uint64
	for _, m := range w.alive() {
		if s := m.node.Stats(); s.State == "Leader" && s.Term > term {
			l, term = m, s.Term
		}
	}
	return l
}

// restart begins the next life of a slot.
func (w *world) restart(s *slot) {
	if s.m != nil {
		<-s.m.done
	}
	w.net.SwitchOn(s.host)
	m, err := w.start(s.host, s.id, s.dir, nil, w.others(s.host))
	if err != nil {
		w.anomaly("%s does not start again: %v", s.host, err)
		return
	}
	w.mu.Lock()
	s.m = m
	w.mu.Unlock()
}

// others are the Raft addresses of all slots but one.
func (w *world) others(host string) (out []string) {
	for _, h := range w.hosts() {
		if h != host {
			out = append(out, address(h))
		}
	}
	return out
}

// record keeps what a member's store goes through. All members must tell the
// same.
func (w *world) record(ctx context.Context, m *member, c *store.Watcher) {
	for {
		events, upto, err := c.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil { // a snapshot was installed or restored: go on behind it
			c = m.fsm.Store().Watch("/", m.fsm.Store().CompactRevision())
			w.recordRestore(m)
			continue
		}
		_ = upto
		w.mu.Lock()
		for _, e := range events {
			if m.dead.Load() {
				break
			}
			now := event{key: e.Key, from: m.host}
			if e.KV != nil {
				now.value = valueOf(w.codec, e.KV.Value)
				if e.Key == restoredKey {
					now.value = string(e.KV.Value)
				}
			}
			old, ok := w.history[e.Revision]
			switch {
			case !ok:
				w.history[e.Revision] = now
			case old.key != now.key || old.value != now.value:
				w.mu.Unlock()
				w.anomaly("revision %d is %q=%q on %s and %q=%q on %s", e.Revision, old.key, old.value, old.from, now.key, now.value, now.from)
				w.mu.Lock()
			}
		}
		w.mu.Unlock()
	}
}

// look compares the members with each other and with what they were.
func (w *world) look() {
	for _, m := range w.alive() {
		index, revision, sum, err := m.fingerprint()
		if err != nil {
			w.anomaly("state of %s: %v", m.host, err)
			continue
		}
		s := m.node.Stats()
		if m.dead.Load() {
			continue
		}
		w.noteVoter(m, s)
		if s.State == "Leader" && strings.Contains(s.Problem, "disk") {
			w.meet("disk of a leader hangs")
		}
		w.mu.Lock()
		was := m.revision
		m.revision = revision
		known, ok := w.prints[index]
		if !ok {
			w.prints[index] = print{revision, sum, m.host}
		}
		first := ""
		if s.State == "Leader" {
			if first = w.leaders[s.Term]; first == "" {
				w.leaders[s.Term] = m.id
			}
		}
		w.mu.Unlock()
		if revision < was {
			w.anomaly("revision of %s went back from %d to %d", m.host, was, revision)
		}
		if ok && (known.sum != sum || known.revision != revision) {
			w.anomaly("at log index %d the state of %s (revision %d) is not that of %s (revision %d)", index, m.host, revision, known.from, known.revision)
		}
		if first != "" && first != m.id {
			w.anomaly("term %d has two leaders: %s and %s", s.Term, first, m.id)
		}
	}
}

// noteVoter counts servers that joined and were given a vote.
func (w *world) noteVoter(m *member, s consensus.Stats) {
	if m.votes {
		return
	}
	for _, v := range s.Voters {
		m.votes = m.votes || v.ID == m.id
	}
	if m.votes && m.joined {
		w.meet("server became a voter")
	}
}

// tls is the configuration of a member. Its clock is the slot's.
func (w *world) tls(host, id string) *tls.Config {
	c := w.ca.config(id)
	c.Time = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		if s := w.slots[host]; s != nil {
			now := time.Now().Add(time.Duration(s.offset.Load()))
			if now.Before(w.ca.now.Add(-time.Hour)) || now.After(w.ca.now.Add(validity)) {
				w.met["certificate judged by a wrong clock"]++
			}
			return now
		}
		return time.Now()
	}
	return c
}
