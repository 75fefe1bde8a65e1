package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/runtime"
)

// manifests is a world with pods of manifests, which the API does not know.
type manifests struct {
	*world
	changes atomic.Int64

	keeping sync.Mutex
	kept    map[types.UID]*v1.Pod
	refuse  error
}

func newManifests(t *testing.T) *manifests {
	m := &manifests{world: newWorld(t), kept: map[types.UID]*v1.Pod{}}
	m.restart()
	return m
}

// restart ends the agent and begins another, without pods yet.
func (w *manifests) restart() {
	w.stop()
	cfg := w.m.cfg
	cfg.KeepStatic = func(p *v1.Pod) error {
		w.keeping.Lock()
		defer w.keeping.Unlock()
		if w.refuse == nil {
			w.kept[p.UID] = p
		}
		return w.refuse
	}
	cfg.StaticChanged = func() { w.changes.Add(1) }
	w.m = NewManager(cfg)
}

// begin lets the agent run the pods, as they were kept.
func (w *manifests) begin(pods ...*v1.Pod) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	for i, p := range pods {
		if before := w.read(string(p.UID)); before != nil {
			pods[i] = before
		}
	}
	if err := w.m.StartStatic(ctx, pods); err != nil {
		w.t.Fatal(err)
	}
}

func (w *manifests) read(uid string) *v1.Pod {
	w.keeping.Lock()
	defer w.keeping.Unlock()
	return w.kept[types.UID(uid)]
}

// until waits until a pod's kept status is as wanted.
func (w *manifests) until(uid, what string, ok func(*v1.Pod) bool) *v1.Pod {
	w.t.Helper()
	w.eventually(what, func() bool { p := w.read(uid); return p != nil && ok(p) })
	return w.read(uid)
}

func (w *manifests) none() {
	w.t.Helper()
	w.eventually("nothing is left", func() bool { return len(w.m.StaticPods()) == 0 })
}

func TestStaticPodRunsWithoutServer(t *testing.T) {
	w := newManifests(t)
	w.m.cfg.Services = func(ctx context.Context) ([]*v1.Service, error) { <-ctx.Done(); return nil, ctx.Err() }
	p := w.pod("s", func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(77)) })
	w.begin(p)
	w.until("uid-s", "ready", isReady)
	if v, err := w.m.Find("default", "s", ""); err != nil || !v.Static || !v.Containers["c"].Running {
		t.Errorf("%+v, %v", v, err)
	}
	if len(w.client.Actions()) != 0 {
		t.Errorf("the API was asked: %v", w.client.Actions())
	}
	box := w.rt.box("uid-s")

	// The API's pods come: what they do not name is ended, but not this one.
	w.add2(t, w.pod("orphan"))
	if err := w.m.Start(w.m.ctx, []*v1.Pod{w.pod("a")}); err != nil {
		t.Fatal(err)
	}
	w.m.Keep(map[types.UID]bool{"uid-a": true})
	w.pass(time.Minute)
	w.eventually("the orphan is gone", func() bool { return w.rt.box("uid-orphan") == nil })
	if w.rt.box("uid-s") != box || !box.Alive() || strings.Contains(box.asked(), "terminated") {
		t.Errorf("asked of the static pod: %s", box.asked())
	}
	if _, err := os.Stat(filepath.Join(w.dir, "pods", "uid-s")); err != nil {
		t.Error(err)
	}

	var signal atomic.Int64
	box.mu.Lock()
	box.signal = func(c runtime.ContainerStatus, sig syscall.Signal) { signal.Store(int64(sig)) } // it does not end of that
	box.mu.Unlock()
	w.m.RemoveStatic("uid-s")
	w.eventually("it is asked to end", func() bool { return signal.Load() == int64(syscall.SIGTERM) })
	w.pass(70 * time.Second)
	time.Sleep(20 * time.Millisecond)
	if strings.Contains(box.asked(), "killed") {
		t.Errorf("killed before its grace period was over: %s", box.asked())
	}
	w.pass(8 * time.Second)
	w.none()
	for _, path := range []string{"pods/uid-s", "logs/default_s_uid-s"} {
		if _, err := os.Stat(filepath.Join(w.dir, path)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, a := range w.client.Actions() {
		if a.GetVerb() == "delete" {
			t.Errorf("the API was asked: %v", a)
		}
	}
}

// add2 puts a sandbox there that belongs to no pod.
func (w *manifests) add2(t *testing.T, p *v1.Pod) {
	t.Helper()
	if _, err := w.rt.CreateSandbox(t.Context(), runtime.SandboxConfig{PodUID: string(p.UID), Name: p.Name, Namespace: p.Namespace}); err != nil {
		t.Fatal(err)
	}
}

func TestStaticPodIsReplacedWhenTheOldOneHasEnded(t *testing.T) {
	w := newManifests(t)
	old := w.pod("s")
	w.begin(old)
	w.until("uid-s", "runs", isRunning)
	box := w.rt.box("uid-s")
	release := make(chan struct{})
	box.mu.Lock()
	box.signal = func(c runtime.ContainerStatus, _ syscall.Signal) { go func() { <-release; box.exit("c", 0) }() }
	box.mu.Unlock()
	second := w.pod("s", func(p *v1.Pod) { p.UID = "uid-second" })
	third := w.pod("s", func(p *v1.Pod) { p.UID = "uid-third" })
	w.m.RemoveStatic("uid-s")
	w.m.AddStatic(second)
	w.m.AddStatic(third)
	w.eventually("the old one is asked to end", func() bool { return strings.Contains(box.asked(), "terminated c") })
	if w.rt.box("uid-second") != nil || w.rt.box("uid-third") != nil {
		t.Error("two pods of one name run")
	}
	close(release)
	w.until("uid-third", "the newest runs", isRunning)
	if w.rt.box("uid-second") != nil {
		t.Error("one that was replaced before it began runs")
	}
	if got := w.m.StaticPods(); len(got) != 1 || got[0].UID != "uid-third" {
		t.Errorf("%v", got)
	}
	// Taken out and put back as it was: a new pod, with nothing of the old one.
	before := w.rt.box("uid-third")
	w.m.RemoveStatic("uid-third")
	w.m.AddStatic(third)
	w.eventually("it runs anew", func() bool {
		b := w.rt.box("uid-third")
		return b != nil && b != before && strings.Contains(b.asked(), "start c")
	})
	// Put in again and again, also as its status changes: nothing happens.
	now := w.rt.box("uid-third")
	now.exit("c", 1)
	w.eventually("it is started again", func() bool {
		w.m.AddStatic(third)
		return strings.Count(now.asked(), "start c") == 2
	})
	w.m.AddStatic(third)
	w.pass(time.Second)
	if w.rt.box("uid-third") != now {
		t.Error("it was made anew")
	}
	// Taken out while it waits for the one before.
	w.m.AddStatic(second)
	w.m.RemoveStatic("uid-second")
	w.none()
	if w.rt.box("uid-second") != nil {
		t.Error("a pod that was taken out runs")
	}
}

func TestStaticPodOverARestart(t *testing.T) {
	w := newManifests(t)
	once := func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }
	a, b := w.pod("a"), w.pod("b", once)
	w.begin(a, b)
	w.until("uid-a", "runs", isRunning)
	w.until("uid-b", "runs", isRunning)
	w.rt.box("uid-b").exit("c", 0)
	w.until("uid-b", "succeeded", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
	w.eventually("its sandbox is gone", func() bool { return w.rt.box("uid-b") == nil })
	w.rt.box("uid-a").exit("c", 1)
	w.until("uid-a", "was started again", func(p *v1.Pod) bool { return isReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	id := w.read("uid-a").Status.ContainerStatuses[0].ContainerID
	made := w.rt.made

	w.restart()
	w.begin(a, b)
	w.pass(0)
	v := func() *View { v, _ := w.m.Find("default", "a", ""); return v }
	w.eventually("adopted", func() bool { return v() != nil && v().State == Running })
	if s := v().Pod.Status.ContainerStatuses[0]; s.ContainerID != id || s.RestartCount != 1 || w.rt.made != made {
		t.Errorf("%+v, %d sandboxes made", s, w.rt.made-made)
	}
	w.eventually("the one that has ended stays so", func() bool {
		v, err := w.m.Find("default", "b", "")
		return err == nil && v.State == Gone && v.Pod.Status.Phase == v1.PodSucceeded
	})

	// The machine starts anew.
	w.restart()
	w.rt.mu.Lock()
	delete(w.rt.boxes, "uid-a")
	w.rt.mu.Unlock()
	w.begin(a, b)
	w.until("uid-a", "runs again", func(p *v1.Pod) bool {
		s := p.Status.ContainerStatuses[0]
		return isReady(p) && s.RestartCount == 2 && s.ContainerID != id
	})
	if w.rt.box("uid-b") != nil {
		t.Error("a pod that has ended runs again")
	}
	w.m.RemoveStatic("uid-b")
	w.m.RemoveStatic("uid-a")
	w.none()
}

func TestStaticPodsEndIsKeptBeforeItsSandboxGoes(t *testing.T) {
	w := newManifests(t)
	w.begin(w.pod("s", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }))
	w.until("uid-s", "runs", isRunning)
	w.keeping.Lock()
	w.refuse = errors.New("no space left on device")
	w.keeping.Unlock()
	w.rt.box("uid-s").exit("c", 3)
	w.eventually("the end is seen", func() bool {
		v, err := w.m.Find("default", "s", "")
		return err == nil && v.Pod.Status.Phase == v1.PodFailed
	})
	w.pass(time.Minute)
	time.Sleep(20 * time.Millisecond)
	if w.rt.box("uid-s") == nil {
		t.Fatal("the sandbox was removed before the pod's end was safe")
	}
	w.keeping.Lock()
	w.refuse = nil
	w.keeping.Unlock()
	w.pass(time.Minute)
	w.until("uid-s", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	w.eventually("the sandbox is removed", func() bool { return w.rt.box("uid-s") == nil })
	if w.changes.Load() == 0 {
		t.Error("nobody was told")
	}
}

func TestStaticPodComesBeforeOthers(t *testing.T) {
	w := newManifests(t)
	w.node = &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"disk": "ssd"}}}
	list := []*v1.Pod{}
	for i := range 12 { // ten fit
		list = append(list, w.pod(fmt.Sprintf("s%d", i)))
	}
	list = append(list, w.pod("elsewhere", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }))
	w.begin(list...)
	for i := range 12 {
		w.until(fmt.Sprintf("uid-s%d", i), "runs", isRunning)
	}
	p := w.until("uid-elsewhere", "is rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != "NodeAffinity" {
		t.Errorf("%+v", p.Status)
	}
	if err := w.m.Start(w.m.ctx, nil); err != nil {
		t.Fatal(err)
	}
	w.add(w.pod("a"))
	if p := w.await("a", "rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }); p.Status.Reason != "OutOfpods" {
		t.Errorf("%+v", p.Status)
	}
}

func TestNoPodComesDuringAShutdown(t *testing.T) {
	w := newManifests(t)
	var closing atomic.Bool
	w.m.cfg.Closing = closing.Load
	w.begin(w.pod("s"))
	w.until("uid-s", "runs", isRunning)
	if err := w.m.Start(w.m.ctx, nil); err != nil {
		t.Fatal(err)
	}
	closing.Store(true)
	w.add(w.pod("a"))
	p := w.await("a", "rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != "NodeShutdown" || p.Status.Message != "Pod was rejected: Pod was rejected as the node is shutting down." {
		t.Errorf("%+v", p.Status)
	}
	w.m.End("uid-s", Eviction{Reason: "Terminated", Message: "because", Grace: 5, Disruption: true})
	s := w.until("uid-s", "has ended", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	disrupted := slices.ContainsFunc(s.Status.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue && c.Reason == v1.PodReasonTerminationByKubelet
	})
	if s.Status.Reason != "Terminated" || !disrupted {
		t.Errorf("%+v", s.Status)
	}
}
