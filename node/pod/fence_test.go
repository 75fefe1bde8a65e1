package pod

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	clienttest "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

// permits is what a test lets run.
type permits struct {
	mu sync.Mutex
	p  Permit
	d  time.Duration // that was asked for
}

func (p *permits) set(n Permit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p = n
}

func (p *permits) ask(d time.Duration) Permit {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.d = d
	return p.p
}

func named(p *v1.Pod) {
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "db", Controller: ptr.To(true)}}
	p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeUnreachable, Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(60))}}
}

func fencedWorld(t *testing.T, first Permit) (*world, *permits) {
	w, p := newWorld(t), &permits{p: first}
	w.m.cfg.Permit, w.m.cfg.FenceFile = p.ask, "/run/fence.json"
	return w, p
}

var contact = Permit{Run: true, Start: true, Chain: 1}

func TestPodWithoutContactStopsAndGoesOn(t *testing.T) {
	w, p := fencedWorld(t, contact)
	w.add(w.pod("a", named))
	w.add(w.pod("b"))
	w.await("a", "ready", isReady)
	w.await("b", "ready", isReady)
	writes := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.write }
	if n := writes(); n != 2 {
		t.Errorf("%d status writes for two starts: asking costs a write though the pods are newer than the contact", n)
	}
	box := w.rt.box("uid-a")
	if box.cfg.FenceFile != "/run/fence.json" || box.cfg.FenceAfter != time.Minute || w.rt.box("uid-b").cfg.FenceFile != "" {
		t.Errorf("sandbox %+v", box.cfg)
	}
	p.mu.Lock()
	if p.d != time.Minute {
		t.Errorf("asked for %v", p.d)
	}
	p.mu.Unlock()

	p.set(Permit{Why: "no contact"})
	w.m.Poke()
	fenced := w.await("a", "stopped", func(p *v1.Pod) bool {
		return p.Status.Reason == reasonFenced && p.Status.ContainerStatuses[0].State.Running == nil
	})
	if isReady(fenced) || fenced.Status.Phase != v1.PodRunning || !strings.Contains(fenced.Status.Message, "no contact") {
		t.Errorf("status of a stopped pod: %+v", fenced.Status)
	}
	if !isReady(w.get("b")) || !box.Alive() {
		t.Error("more than the pod's containers was stopped")
	}
	if got := box.asked(); got != "start c, terminated c, exit c" {
		t.Errorf("asked of the runtime: %s", got)
	}
	w.pass(time.Hour) // no back-off starts it
	time.Sleep(20 * time.Millisecond)
	if got := box.asked(); got != "start c, terminated c, exit c" {
		t.Errorf("asked of the runtime: %s", got)
	}

	// Contact is back, and the pod is still there: it goes on in its sandbox, after
	// a write has proved it.
	before := writes()
	p.set(Permit{Run: true, Start: true, Chain: 2, Revision: 1 << 40})
	w.m.Poke()
	back := w.await("a", "ready again", isReady)
	if back.Status.Reason != "" || back.Status.Message != "" || back.Status.ContainerStatuses[0].RestartCount != 1 || w.rt.box("uid-a") != box {
		t.Errorf("status after it went on: %+v", back.Status)
	}
	if writes() < before+2 {
		t.Errorf("%d writes: it did not ask first", writes()-before)
	}
}

// Without proof that the pod is there nothing is started.
func TestStartNeedsProof(t *testing.T) {
	old := Permit{Run: true, Start: true, Chain: 1, Revision: 1 << 40} // contact is newer than the pod
	for _, tc := range []struct {
		name   string
		permit Permit
		fail   bool // status writes fail
	}{
		{"no contact yet", Permit{Run: true, Why: "no contact yet"}, false},
		{"lease over", Permit{Why: "no contact"}, false},
		{"the API does not answer", old, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, p := fencedWorld(t, tc.permit)
			var mu sync.Mutex
			fail, texts := tc.fail, []string{}
			w.client.PrependReactor("update", "pods", func(a clienttest.Action) (bool, apiruntime.Object, error) {
				mu.Lock()
				defer mu.Unlock()
				for _, c := range a.(clienttest.UpdateAction).GetObject().(*v1.Pod).Status.ContainerStatuses {
					if c.State.Waiting != nil {
						texts = append(texts, c.State.Waiting.Message)
					}
				}
				if fail {
					return true, nil, errors.New("no server")
				}
				return false, nil, nil
			})
			w.add(w.pod("a", named))
			w.eventually("prepared", func() bool { return w.rt.box("uid-a") != nil || !tc.permit.Run })
			time.Sleep(100 * time.Millisecond)
			if b := w.rt.box("uid-a"); b != nil && b.asked() != "" {
				t.Fatalf("asked of the runtime: %s", b.asked())
			}
			mu.Lock()
			fail = false
			mu.Unlock()
			p.set(old)
			w.pass(2 * time.Second)
			w.await("a", "ready", isReady)
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(strings.Join(texts, "\n"), "asking at ") {
				t.Errorf("started without asking: %q", texts)
			}
		})
	}
}

// A pod that was removed while the node had no contact does not come back.
func TestRemovedPodIsNotStarted(t *testing.T) {
	w, p := fencedWorld(t, contact)
	w.add(w.pod("a", named))
	w.await("a", "ready", isReady)
	p.set(Permit{Why: "no contact"})
	w.m.Poke()
	box := w.rt.box("uid-a")
	w.await("a", "stopped", func(p *v1.Pod) bool { return p.Status.Reason == reasonFenced })
	if err := w.client.CoreV1().Pods("default").Delete(context.Background(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.set(Permit{Run: true, Start: true, Chain: 2, Revision: 1 << 40}) // the watch has not told yet
	w.m.Poke()
	w.eventually("removed", func() bool { return w.rt.box("uid-a") == nil })
	if got := box.asked(); got != "start c, terminated c, exit c" {
		t.Errorf("asked of the runtime: %s", got)
	}
}

func TestTolerates(t *testing.T) {
	tol := func(seconds ...*int64) *v1.Pod {
		p := &v1.Pod{}
		for _, s := range seconds {
			p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Operator: v1.TolerationOpExists, TolerationSeconds: s, Effect: v1.TaintEffectNoExecute})
		}
		return p
	}
	for _, tc := range []struct {
		pod     *v1.Pod
		want    time.Duration
		bounded bool
	}{
		{tol(), 0, true},
		{tol(nil), 0, false},
		{tol(ptr.To(int64(300))), 300 * time.Second, true},
		{tol(nil, ptr.To(int64(30)), ptr.To(int64(60))), 30 * time.Second, true},
		{tol(ptr.To(int64(-1))), 0, true},
	} {
		if d, bounded := tolerates(tc.pod); bounded != tc.bounded || bounded && d != tc.want {
			t.Errorf("%+v: %v, %v", tc.pod.Spec.Tolerations, d, bounded)
		}
	}
}
