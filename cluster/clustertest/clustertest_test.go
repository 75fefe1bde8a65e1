package clustertest

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed, and tell its story; also $SKIFF_SEED")
	seedsFlag = flag.Int("seeds", 0, "number of seeds to run; also $SKIFF_SEEDS")
	firstFlag = flag.Uint64("first", 1, "the first of them")
)

func number(flag uint64, env string) (n uint64) {
	if s := os.Getenv(env); s != "" && flag == 0 {
		if _, err := fmt.Sscan(s, &n); err != nil {
			panic(fmt.Sprintf("%s=%s: %v", env, s, err))
		}
		return n
	}
	return flag
}

func report(t *testing.T, r Result, story bool) {
	t.Helper()
	s := r.Stats
	t.Logf("seed %d: %d ops (%d unknown, %d failed), %d events, %d watched, %d faults, %d members; after the faults: writes after %v, equal after %v",
		r.Seed, s.Ops, s.Unknown, s.Failed, s.Events, s.Watched, s.Faults, s.Members, s.Recovery, s.Converged)
	if story || len(r.Anomalies) > 0 {
		t.Log("story:\n" + strings.Join(r.Story, "\n"))
	}
	for _, a := range r.Anomalies {
		t.Errorf("seed %d: %s", r.Seed, a)
	}
	if len(r.Anomalies) > 0 {
		t.Logf("again: go test ./cluster/clustertest -run TestSeeds -seed %d", r.Seed)
	}
}

var standard = options{faults: 30 * time.Second, clients: 6, watchers: 4}

// TestSeeds runs some seeds: 1 and those that follow, if no flags say otherwise.
func TestSeeds(t *testing.T) {
	first, n := *firstFlag, number(uint64(*seedsFlag), "SKIFF_SEEDS")
	if n == 0 {
		n = defaultSeeds
	}
	only := number(*seedFlag, "SKIFF_SEED")
	if only != 0 {
		first, n = only, 1
	}
	all := total{steps: map[string]int{}}
	t.Cleanup(func() { fmt.Println(all.String()) })
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := inBubble(t, seed, standard)
			all.add(r)
			report(t, r, only != 0)
		})
	}
}

// total is what many runs were made of.
type total struct {
	mu                            sync.Mutex
	seeds, bad                    int
	ops, unknown, faults, watched int
	recovery, converged           []time.Duration
	steps                         map[string]int // crashes at each
}

func (a *total) add(r Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeds++
	if len(r.Anomalies) > 0 {
		a.bad++
	}
	a.ops += r.Stats.Ops
	a.unknown += r.Stats.Unknown
	a.faults += r.Stats.Faults
	a.watched += r.Stats.Watched
	a.recovery = append(a.recovery, r.Stats.Recovery)
	a.converged = append(a.converged, r.Stats.Converged)
	for s, n := range r.Stats.Crashes {
		a.steps[s] += n
	}
}

func (a *total) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %d of them with anomalies; %d operations (%d with unknown outcome), %d events seen by watchers, %d faults\n",
		a.seeds, a.bad, a.ops, a.unknown, a.watched, a.faults)
	for name, d := range map[string][]time.Duration{"writes again": a.recovery, "members equal": a.converged} {
		slices.Sort(d)
		if n := len(d); n > 0 {
			fmt.Fprintf(&b, "after the last fault: %s within %v (median), %v (p99), %v (max)\n", name,
				d[n/2].Round(time.Millisecond), d[n*99/100].Round(time.Millisecond), d[n-1].Round(time.Millisecond))
		}
	}
	b.WriteString("crashes at steps:")
	for _, s := range slices.Sorted(maps.Keys(a.steps)) {
		fmt.Fprintf(&b, " %s %d,", s, a.steps[s])
	}
	return strings.TrimSuffix(b.String(), ",")
}
