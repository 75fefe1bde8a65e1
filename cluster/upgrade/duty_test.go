package upgrade

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func until(stage Stage) func(*Rollout) bool {
	return func(r *Rollout) bool { return r.Stage == stage || r.Stopped != "" }
}

// TestForwardBackForward takes a cluster to a version, back, to it again, and
// finalizes. Never more than one server, or so many agents, are changing.
func TestForwardBackForward(t *testing.T) {
	for _, o := range []Options{{}, {MaxUnavailable: 2}, {Drain: true, MaxUnavailable: 2}} {
		inFleet(t, 1, 3, 5, func(f *fleet) {
			f.refused(ActPause, Request{}, "there was no roll-out yet")
			f.refused(ActFinalize, Request{}, "nothing to finalize")
			f.must(ActApply, upTo(o))
			f.refused(ActApply, upTo(o), "is going on")
			f.refused(ActFinalize, Request{}, "is not over")
			if r := f.await("done", until(StageDone)); r.Stopped != "" || r.Snapshot == nil || f.versions()["0.2.0"] != 8 {
				t.Fatalf("%+v, %v", r, f.versions())
			}
			f.with(func() {
				if f.leader == "s0" {
					t.Error("the leader did not hand over")
				}
			})
			f.must(ActRollback, Request{})
			if r := f.await("back", until(StageBack)); r.Stopped != "" || f.versions()["0.1.0"] != 8 {
				t.Fatalf("%+v, %v", r, f.versions())
			}
			f.refused(ActRollback, Request{}, "is over")
			f.must(ActApply, upTo(o))
			f.await("done again", until(StageDone))
			if st := f.must(ActStatus, Request{}); st.Finalize == 0 && st.Level < 2 && levelAfter(st.Members) > 1 {
				t.Errorf("%+v", st)
			}
			f.must(ActFinalize, Request{})
			f.refused(ActRollback, Request{}, "is finalized")
			f.with(func() {
				if f.saved != 2 || f.mostServers > 1 || f.mostAgents > max(o.MaxUnavailable, 1) {
					t.Errorf("%d snapshots; %d servers and %d agents were changing at a time", f.saved, f.mostServers, f.mostAgents)
				}
				for name, m := range f.members {
					if m.cordoned {
						t.Errorf("%s is still cordoned", name)
					}
				}
			})
			if n := f.fsm.Store().View().Count(OrderPrefix) + f.fsm.Store().View().Count(ReportPrefix); n > 0 {
				t.Errorf("%d orders and reports are left", n)
			}
		})
	}
}

// TestLeadersChangeAllTheTime: whoever leads goes on, from wherever the last one
// was.
func TestLeadersChangeAllTheTime(t *testing.T) {
	for seed := range uint64(20) {
		inFleet(t, seed, 3, 4, func(f *fleet) {
			f.must(ActApply, upTo(Options{MaxUnavailable: 2, Drain: seed%2 == 0}))
			var back bool
			f.with(func() { f.churn = true })
			for i := 0; ; i++ {
				time.Sleep(time.Duration(f.rnd.IntN(3000)) * time.Millisecond)
				if heir := f.other(); heir != "" {
					f.lead(heir)
				}
				r := f.rollout()
				if r.Stopped != "" {
					t.Fatalf("seed %d: stopped: %s", seed, r.Stopped)
				}
				if i == 4 && seed%3 == 0 {
					back = true
					f.must(ActRollback, Request{})
				}
				if r.Stage.Over() && i > 4 {
					break
				}
				if i > 2000 {
					t.Fatalf("seed %d: no end: %+v", seed, r)
				}
			}
			want := map[bool]string{false: "0.2.0", true: "0.1.0"}[back]
			versions := f.versions()
			f.with(func() {
				if versions[want] != 7 || f.mostServers > 1 || f.mostAgents > 2 {
					t.Errorf("seed %d: %v, %d servers and %d agents at a time", seed, versions, f.mostServers, f.mostAgents)
				}
			})
		})
	}
}

// TestAMemberThatGoesBackStopsIt: nobody else changes until somebody has looked.
func TestAMemberThatGoesBackStopsIt(t *testing.T) {
	inFleet(t, 1, 3, 2, func(f *fleet) {
		f.with(func() { f.members["s2"].bad = true })
		f.must(ActApply, upTo(Options{Trial: 10 * time.Second}))
		r := f.await("stop", func(r *Rollout) bool { return r.Stopped != "" })
		if !strings.Contains(r.Stopped, "s2 has gone back to 0.1.0 by itself: it was not healthy") || f.versions()["0.2.0"] != 1 {
			t.Fatalf("%s, %v", r.Stopped, f.versions())
		}
		before := f.written()
		time.Sleep(time.Hour)
		if f.written() != before {
			t.Errorf("%d writes while it was stopped", f.written()-before)
		}
		f.must(ActResume, Request{})
		f.await("stop again", func(r *Rollout) bool { return r.Stopped != "" })
		f.with(func() { f.members["s2"].bad = false })
		f.must(ActResume, Request{})
		if r := f.await("done", until(StageDone)); r.Stopped != "" || f.versions()["0.2.0"] != 5 {
			t.Errorf("%+v, %v", r, f.versions())
		}
	})
}

func TestPause(t *testing.T) {
	inFleet(t, 1, 3, 3, func(f *fleet) {
		f.must(ActApply, upTo(Options{}))
		f.await("the servers", func(r *Rollout) bool { return r.Stage == StageServers })
		f.must(ActPause, Request{})
		f.refused(ActPause, Request{}, "paused already")
		time.Sleep(time.Minute) // what was begun ends
		before, changed := f.written(), f.versions()["0.2.0"]
		time.Sleep(time.Hour)
		if f.written() != before || f.versions()["0.2.0"] != changed || changed > 1 {
			t.Errorf("%d writes while it was paused, %d members had changed, now %v", f.written()-before, changed, f.versions())
		}
		f.must(ActResume, Request{})
		f.refused(ActResume, Request{}, "it is going on")
		f.await("done", until(StageDone))
	})
}

func TestFailingSnapshotStopsIt(t *testing.T) {
	inFleet(t, 1, 1, 0, func(f *fleet) {
		f.with(func() { f.saveErr = errors.New("no space") })
		f.must(ActApply, upTo(Options{}))
		f.await("stop", func(r *Rollout) bool { return strings.Contains(r.Stopped, "the snapshot: no space") })
		f.with(func() { f.saveErr = nil })
		f.must(ActResume, Request{})
		f.await("done", until(StageDone)) // there is nobody to hand over to
	})
}

// TestAgentDies: it stops the roll-out; with leave it is left out, and taken in
// when it is back.
func TestAgentDies(t *testing.T) {
	for _, leave := range []bool{false, true} {
		inFleet(t, 1, 3, 2, func(f *fleet) {
			f.must(ActApply, upTo(Options{IgnoreDead: leave}))
			f.await("servers", func(r *Rollout) bool { return r.Stage == StageServers })
			f.with(func() { f.members["n0"].alive = false })
			if !leave {
				r := f.await("stop", func(r *Rollout) bool { return r.Stopped != "" })
				if !strings.Contains(r.Stopped, "n0 is not heard of") || f.versions()["0.2.0"] != 4 {
					t.Fatalf("%s, %v", r.Stopped, f.versions())
				}
				return
			}
			f.await("done", until(StageDone))
			f.refused(ActFinalize, Request{}, "n0 is not heard of")
			if st := f.must(ActStatus, Request{}); len(st.Unready) != 1 || !strings.Contains(st.Unready[0], "n0") {
				t.Errorf("in the way of finalize: %q", st.Unready)
			}
			f.with(func() { f.members["n0"].alive = true })
			f.refused(ActFinalize, Request{}, "members run different versions")
			f.must(ActApply, upTo(Options{}))
			f.await("done again", until(StageDone))
			if f.versions()["0.2.0"] != 5 {
				t.Errorf("%v", f.versions())
			}
		})
	}
}

// TestRollbackOfWhoHasNotTheOldProgram: it is told, and the others go back.
func TestRollbackOfWhoHasNotTheOldProgram(t *testing.T) {
	inFleet(t, 1, 3, 2, func(f *fleet) {
		f.must(ActApply, upTo(Options{}))
		f.await("done", until(StageDone))
		f.with(func() { f.members["n1"].previous = "" })
		f.must(ActRollback, Request{})
		r := f.await("back", until(StageBack))
		if m := r.member("n1"); m.State != StateStranded || !strings.Contains(m.Error, "install skiff 0.1.0") || f.versions()["0.1.0"] != 4 {
			t.Errorf("%+v, %v", m, f.versions())
		}
	})
}

// TestNewcomer: who joins with the version before is taken along.
func TestNewcomer(t *testing.T) {
	inFleet(t, 1, 3, 1, func(f *fleet) {
		f.must(ActApply, upTo(Options{}))
		f.await("agents", func(r *Rollout) bool { return r.Stage == StageServers })
		f.with(func() {
			f.members["late"] = &fakeMember{name: "late", version: "0.1.0", alive: true, done: map[string]bool{}}
		})
		f.await("done", until(StageDone))
		if f.versions()["0.2.0"] != 5 {
			t.Errorf("%v", f.versions())
		}
	})
}

// TestRestoredStateStopsIt: a snapshot holds the roll-out that it was taken for,
// which must not go on by itself where it is restored.
func TestRestoredStateStopsIt(t *testing.T) {
	inFleet(t, 1, 3, 1, func(f *fleet) {
		f.must(ActApply, upTo(Options{}))
		f.await("servers", func(r *Rollout) bool { return r.Stage == StageServers })
		f.with(func() { f.epoch, f.churn = "2 restored", true })
		f.lead(f.other())
		r := f.await("stop", func(r *Rollout) bool { return r.Stopped != "" })
		if !strings.Contains(r.Stopped, "restored or recovered") {
			t.Error(r.Stopped)
		}
		f.must(ActResume, Request{})
		if r := f.await("done", until(StageDone)); r.Stopped != "" || f.versions()["0.2.0"] != 4 {
			t.Errorf("%+v", r)
		}
	})
}
