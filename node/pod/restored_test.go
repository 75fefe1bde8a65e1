package pod

import (
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// later is p as a restore writes it: with another status, and the next revision.
func (w *world) later(p *v1.Pod, status v1.PodStatus) *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rv += 1000
	p = p.DeepCopy()
	p.ResourceVersion, p.Status = strconv.Itoa(int(w.rv)), status
	return p
}

// TestPodComesBackWhileItEnds: a restored state has a pod again that was deleted
// and is still ending.
func TestPodComesBackWhileItEnds(t *testing.T) {
	for _, forGood := range []bool{false, true} {
		w := newWorld(t)
		w.add(w.pod("a"))
		p := w.await("a", "runs", isRunning)
		first := w.rt.box("uid-a")
		w.m.Remove(p.UID)
		w.m.Update(p) // an old event, which says nothing
		w.m.Update(w.later(p, p.Status))
		if forGood {
			w.m.Remove(p.UID)
		}
		w.eventually("the first sandbox ends", func() bool { return !first.Alive() })
		if forGood {
			w.eventually("nothing is left", func() bool { return len(w.m.Views()) == 0 })
			continue
		}
		w.eventually("it runs again", func() bool {
			s := w.rt.box("uid-a")
			return s != nil && s != first && s.Alive()
		})
		if got := w.await("a", "restarted", func(p *v1.Pod) bool {
			return isRunning(p) && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1
		}); got.UID != p.UID {
			t.Error("another pod:", got.UID)
		}
	}
}

// TestMissingPodsRunOnForAWhile: what a new list does not have ends a little later,
// or not at all if it is found again; pods that must not run twice end at once.
func TestMissingPodsRunOnForAWhile(t *testing.T) {
	w := newWorld(t)
	yes := true
	for _, name := range []string{"stays", "goes", "back", "once"} {
		w.add(w.pod(name, func(p *v1.Pod) {
			if name == "once" {
				p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "s", Controller: &yes}}
			}
		}))
		w.await(name, "runs", isRunning)
	}
	ended := func(name string) bool { s := w.rt.box("uid-" + name); return s == nil || !s.Alive() }
	begin := time.Now()
	w.m.Keep(map[types.UID]bool{"uid-stays": true})
	w.m.Keep(map[types.UID]bool{"uid-stays": true, "uid-back": true})
	found := time.Since(begin) < lateNews // in time
	w.eventually("the single one ends", func() bool { return ended("once") })
	if time.Since(begin) < lateNews && (ended("goes") || ended("back")) {
		t.Error("a pod that others still send requests to ended at once")
	}
	w.eventually("it ends in the end", func() bool { return ended("goes") })
	time.Sleep(lateNews / 4)
	if found && ended("back") || ended("stays") {
		t.Error("a pod that is there was ended")
	}
}

// TestEndOfPodIsToldAgain: a restored state says that a pod runs which has ended
// before this agent began.
func TestEndOfPodIsToldAgain(t *testing.T) {
	w := newWorld(t)
	running := v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: []v1.ContainerStatus{{Name: "c", ContainerID: "skiff://x", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}}
	ended := v1.PodStatus{Phase: v1.PodSucceeded, ContainerStatuses: []v1.ContainerStatus{{Name: "c", ContainerID: "skiff://x", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 0}}}}}
	p := w.pod("a", func(p *v1.Pod) { p.Spec.RestartPolicy, p.Status = v1.RestartPolicyNever, ended })
	w.add(p)
	back := w.later(p, running)
	if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), back, "default"); err != nil {
		t.Fatal(err)
	}
	w.m.Update(back)
	got := w.await("a", "ended again", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
	if s := got.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 0 || w.rt.box("uid-a") != nil {
		t.Errorf("status %+v", got.Status)
	}
}
