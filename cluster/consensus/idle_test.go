package consensus

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// processTime is the processor time of this process.
func processTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestQuiet: a member that nobody asks anything appends nothing and does almost
// nothing.
func TestQuiet(t *testing.T) {
	m := single(t, t.TempDir())
	m.awaitReady(t)
	m.put(t, "/a", "1", 0)
	before, used := m.Stats(), processTime(t)
	const d = 3 * time.Second
	time.Sleep(d) // there is nothing to wait for: nothing must happen
	after := m.Stats()
	t.Logf("%.3f %% of a core", 100*float64(processTime(t)-used)/float64(d))
	if after.LastIndex != before.LastIndex || after.Appends.Count != before.Appends.Count || after.Term != before.Term {
		t.Errorf("a quiet member went from %+v to %+v", before, after)
	}
}

// TestQuietCluster: three members that nobody asks anything send each other
// heartbeats, and little else.
func TestQuietCluster(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	others[0].put(t, "/a", "1", 0)
	time.Sleep(200 * time.Millisecond) // the followers learn of the commit
	const d = 3 * time.Second
	var before, after Stats
	var used time.Duration
	var sent, beats uint64
	for range 5 { // until no leader is lost meanwhile, as on a machine that stands still
		before, used = leader.Stats(), processTime(t)
		sent, beats = leader.trans.sent.Load(), leader.trans.beats.Load()
		time.Sleep(d)
		after = leader.Stats()
		sent, beats = leader.trans.sent.Load()-sent, leader.trans.beats.Load()-beats
		if after.Term == before.Term {
			break
		}
		leader, _ = leaderOf(t, members)
	}
	t.Logf("in %v: %d appends, %d heartbeats, %.2f %% of a core for all three", d, sent, beats, 100*float64(processTime(t)-used)/float64(d))
	if after.LastIndex != before.LastIndex || after.Appends.Count != before.Appends.Count || after.Term != before.Term {
		t.Errorf("the leader went from %+v to %+v", before, after)
	}
	if sent > uint64(4*d/maxHold) || sent == 0 || beats == 0 {
		t.Errorf("%d appends and %d heartbeats", sent, beats)
	}
}

// TestFollowerHearsOfCommits: a write through a follower returns when that has
// it, which takes little longer than on the leader.
func TestFollowerHearsOfCommits(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	var took [2][]time.Duration
	for i := range 100 { // in turns, so that a busy machine delays both
		for k, m := range []*member{leader, others[0]} {
			begin := time.Now()
			m.put(t, "/a", fmt.Sprint(i), -1)
			took[k] = append(took[k], time.Since(begin))
			time.Sleep(3 * time.Millisecond) // not one on the heels of the other
		}
	}
	quantiles := func(took []time.Duration) (p50, p99 time.Duration) {
		slices.Sort(took)
		return took[50], took[98]
	}
	l50, l99 := quantiles(took[0])
	f50, f99 := quantiles(took[1])
	t.Logf("on the leader p50 %v p99 %v, through a follower p50 %v p99 %v", l50, l99, f50, f99)
	if f50 > l50+30*time.Millisecond {
		t.Errorf("a follower makes a write %v slower", f50-l50)
	}
}
