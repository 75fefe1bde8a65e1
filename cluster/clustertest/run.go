package clustertest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

const (
	lookEvery = 100 * time.Millisecond
	// After the faults: until the first write, and until all members are equal.
	maxRecovery = 30 * time.Second
	maxConverge = 60 * time.Second
)

// Result of a run.
type Result struct {
	Seed      uint64
	Anomalies []string
	Story     []string // what happened when
	Stats     Stats
}

// run lets one cluster live through the faults of a seed, and checks it.
func run(seed uint64, o options, root string, logger *slog.Logger) Result {
	r := rand.New(rand.NewPCG(seed, 0))
	if o.members == 0 {
		o.members = 3 + 2*r.IntN(2)
	}
	if o.snapshotEntries == 0 {
		o.snapshotEntries = uint64(5 + r.IntN(80))
	}
	if o.trailing == 0 {
		o.trailing = uint64(1 + r.IntN(40))
	}
	w := newWorld(seed, o, root, logger)
	if r.IntN(4) == 0 {
		w.witness = string(rune('a' + r.IntN(o.members)))
	}
	if r.IntN(2) == 0 {
		w.grace, w.expelled = time.Duration(5+r.IntN(10))*time.Second, map[string]bool{}
	}
	w.logf("%d members, witness %q, dead ones go after %v, a snapshot every %d entries, %d stay", o.members, w.witness, w.grace, o.snapshotEntries, o.trailing)
	defer os.RemoveAll(root)
	if err := w.found(o.members); err != nil {
		w.anomaly("found the cluster: %v", err)
	} else {
		w.live()
	}
	for _, m := range w.alive() {
		w.stop(m)
	}
	w.wg.Wait()
	w.check()
	w.stats.Crashes, w.stats.Met = w.crashes, w.met
	maps.Copy(w.met, w.net.Met())
	return Result{seed, w.anomalies, w.log, w.stats}
}

// live has clients, watchers and faults, then only repairs.
func (w *world) live() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			w.look()
			time.Sleep(lookEvery)
		}
	})
	for n := range w.o.watchers {
		v := w.newWatch(n)
		wg.Go(func() { w.watch(ctx, v, n) })
	}
	var clients sync.WaitGroup
	busy, rest := context.WithCancel(ctx)
	for n := range w.o.clients {
		clients.Go(func() { w.client(busy, n) })
	}
	time.Sleep(2 * time.Second) // a quiet beginning
	if m := pick(rand.New(rand.NewPCG(w.seed, 4)), w.alive()); w.o.spoilState != nil {
		w.o.spoilState(m)
	}
	wreck, end := context.WithTimeout(ctx, w.o.faults)
	w.wreak(wreck)
	end()
	w.repair(rand.New(rand.NewPCG(w.seed, 5)))
	w.recover()
	time.Sleep(time.Second)
	rest()
	clients.Wait()
	if w.settled() {
		w.awaitWatchers()
		w.checkWitness()
	}
	cancel()
	wg.Wait()
}

// recover waits until a write succeeds.
func (w *world) recover() {
	begin := time.Now()
	for i := 0; time.Since(begin) < maxRecovery; i++ {
		for _, m := range w.alive() {
			o := op{client: 1001, kind: update, key: keys[0], value: fmt.Sprintf("r.%s.%d", m.host, i)}
			w.do(context.Background(), m, &o, time.Second)
			if o.outcome == done {
				w.mu.Lock()
				w.stats.Recovery = time.Since(begin)
				w.mu.Unlock()
				w.logf("writes go on")
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.anomaly("no write in %v after the last fault; %s", maxRecovery, w.situation())
}

// situation describes the members.
func (w *world) situation() string {
	var b strings.Builder
	for _, m := range w.alive() {
		s := m.node.Stats()
		fmt.Fprintf(&b, "\n\t%s: %s in term %d, leader %q, last %d, committed %d, applied %d, revision %d, members %v",
			m.id, s.State, s.Term, s.LeaderID, s.LastIndex, s.Committed, s.Applied, s.Revision, m.node.Members())
	}
	return b.String()
}

// settled waits until all members have the same state.
func (w *world) settled() bool {
	begin := time.Now()
	for time.Since(begin) < maxConverge {
		prints := map[[32]byte]bool{}
		var members []*member
		if l := w.leader(); l != nil {
			for _, m := range w.alive() {
				if !isMember(l, m.id) {
					continue // removed by a request whose answer was lost
				}
				members = append(members, m)
				_, _, sum, err := m.fingerprint()
				if err != nil {
					sum = sha256.Sum256([]byte(err.Error()))
				}
				prints[sum] = true
			}
		}
		if len(prints) == 1 && len(members) > 0 {
			w.mu.Lock()
			w.stats.Converged, w.stats.Members = time.Since(begin), len(members)
			w.mu.Unlock()
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.anomaly("the members are not equal %v after the last write: %s", maxConverge, w.situation())
	return false
}

// awaitWatchers gives the watchers time to see the last event.
func (w *world) awaitWatchers() {
	time.Sleep(15 * time.Second) // a move, and some bookmarks
}

// checkWitness makes sure that a witness does not lead when another could.
func (w *world) checkWitness() {
	l := w.leader()
	if l == nil || l.host != w.witness {
		return
	}
	for _, m := range w.alive() {
		if m.host != w.witness && slices.ContainsFunc(l.node.Members(), func(o consensus.Member) bool { return o.ID == m.id && o.Voter }) {
			w.anomaly("the witness %s leads, and %s could; %s", l.host, m.host, w.situation())
			return
		}
	}
}

// check is made when everything has ended.
func (w *world) check() {
	w.look()
	if w.o.spoilWatch != nil {
		for _, v := range w.watches {
			w.o.spoilWatch(v)
		}
	}
	h := w.newHistory()
	w.checkOps(h)
	for _, v := range w.watches {
		w.stats.Watched += w.checkWatch(v, h)
	}
	w.stats.Events, w.stats.Ops = len(h.events), len(w.ops)
	for _, o := range w.ops {
		switch o.outcome {
		case unknown:
			w.stats.Unknown++
		case failed:
			w.stats.Failed++
		}
	}
	slices.Sort(w.anomalies)
}
