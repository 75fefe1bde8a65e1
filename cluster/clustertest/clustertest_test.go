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
	all := newTotal()
	t.Cleanup(func() {
		fmt.Println(all.String())
		for _, what := range all.missing() {
			t.Errorf("%d seeds were chosen, and never: %s", n, what)
		}
	})
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
	met                           map[string]int
}

func newTotal() *total { return &total{steps: map[string]int{}, met: map[string]int{}} }

// Of many seeds each has to meet some of these; of very many there is a crash at
// each step, too. TestCrashAtEachStep does not leave it to chance.
const (
	manySeeds     = 40
	veryManySeeds = 1000
)

var mustMeet = []string{
	"held back by a partition", "held back by a one-way partition", "request to connect unanswered", "request to connect lost",
	"lost and sent again", "connection ended by loss", "connection broken", "refused by a firewall", "delayed", "overtaken by what was sent later",
	"write to a slow disk", "write to a hanging disk", "certificate judged by a wrong clock",
	"crash of a process", "crash of a host", "crash of a leader while it writes", "crash of a follower while it writes", "stop in good order",
	"snapshot taken", "snapshot installed", "leadership handed over", "member removed", "server became a voter",
	"snapshot restored into the running cluster",
}

var mustMeetSeldom = []string{
	"disk of a leader hangs", "disk of a leader lost", "disk of a follower lost", "removal refused",
	"server without its data not let in under its old name",
}

// missing is what should have gone wrong in so many runs, and did not.
func (a *total) missing() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := []string{}
	if a.seeds >= manySeeds {
		want = append(want, mustMeet...)
	}
	if a.seeds >= veryManySeeds {
		want = append(want, mustMeetSeldom...)
		for _, s := range steps {
			if a.steps[s] == 0 {
				out = append(out, "a crash at "+s)
			}
		}
	}
	for _, what := range want {
		if a.met[what] == 0 {
			out = append(out, what)
		}
	}
	return out
}

// TestMissingIsNoticed: a run that did not meet a fault does not pass.
func TestMissingIsNoticed(t *testing.T) {
	t.Parallel()
	a := newTotal()
	a.seeds = manySeeds - 1
	if got := a.missing(); len(got) != 0 {
		t.Errorf("few seeds miss %q", got)
	}
	a.seeds = veryManySeeds
	if got, want := len(a.missing()), len(mustMeet)+len(mustMeetSeldom)+len(steps); got != want {
		t.Errorf("%d are missing of %d", got, want)
	}
	for _, what := range slices.Concat(mustMeet, mustMeetSeldom) {
		a.met[what]++
	}
	for _, s := range steps[1:] {
		a.steps[s]++
	}
	if got := a.missing(); !slices.Equal(got, []string{"a crash at " + steps[0]}) {
		t.Errorf("missing: %q", got)
	}
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
	for s, n := range r.Stats.Met {
		a.met[s] += n
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
	for name, of := range map[string]map[string]int{"crashes at steps": a.steps, "met": a.met} {
		var all []string
		for _, s := range slices.Sorted(maps.Keys(of)) {
			all = append(all, fmt.Sprintf("%s %d", s, of[s]))
		}
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(all, ", "))
	}
	return b.String()
}
