package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttest "k8s.io/client-go/testing"
)

var node = &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}}

func staticPod(t *testing.T, image string) *v1.Pod {
	t.Helper()
	p, err := Parse([]byte(podYAML("a", image)), "n1", defaults)
	if err != nil {
		t.Fatal(err)
	}
	p.Status = v1.PodStatus{Phase: v1.PodRunning, PodIP: "10.42.0.2", ObservedGeneration: 1,
		Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue, ObservedGeneration: 1}}}
	return p
}

func TestDecide(t *testing.T) {
	now := metav1.Now()
	p := staticPod(t, "v1")
	other := staticPod(t, "v2")
	made := mirrorOf(p, node)
	made.UID, made.Generation = "mirror", 1
	told := mirrored(made, p)
	ending := told.DeepCopy()
	ending.DeletionTimestamp = &now
	leaving := p.DeepCopy()
	leaving.DeletionTimestamp = &now
	over := told.DeepCopy()
	over.Status.Phase = v1.PodFailed
	failed := p.DeepCopy()
	failed.Status.Phase = v1.PodFailed
	gated := told.DeepCopy()
	gated.Status.Conditions = append(gated.Status.Conditions, v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionTrue})
	for _, c := range []struct {
		name    string
		statics []*v1.Pod
		seen    *v1.Pod
		want    string
	}{
		{"nothing", nil, nil, ""},
		{"new", []*v1.Pod{p}, nil, "create"},
		{"made", []*v1.Pod{p}, made, "status"},
		{"in step", []*v1.Pod{p}, told, ""},
		{"with a condition of others", []*v1.Pod{p}, gated, ""},
		{"runs again after a shutdown", []*v1.Pod{p}, over, "delete"},
		{"has failed", []*v1.Pod{failed}, told, "status"},
		{"has failed for good", []*v1.Pod{failed}, over, ""},
		{"deleted by somebody", []*v1.Pod{p}, ending, "delete"},
		{"of other contents", []*v1.Pod{other}, told, "delete"},
		{"manifest gone", nil, told, "delete"},
		{"manifest gone, the pod ends", []*v1.Pod{leaving}, told, ""},
		{"the pod ends, no mirror", []*v1.Pod{leaving}, nil, ""},
		{"ends, and deleted", []*v1.Pod{leaving}, ending, "delete"},
	} {
		seen := map[string]*v1.Pod{}
		if c.seen != nil {
			seen[key(c.seen)] = c.seen
		}
		var got []string
		for _, s := range decide(c.statics, seen, node) {
			got = append(got, s.verb)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
	}
	if told.Status.PodIP != p.Status.PodIP || told.Status.ObservedGeneration != 1 {
		t.Errorf("status %+v", told.Status)
	}
	if o := made.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].UID != "node-uid" || !*o[0].Controller || o[0].BlockOwnerDeletion != nil ||
		made.Annotations[v1.MirrorPodAnnotationKey] != string(p.UID) || p.Annotations[v1.MirrorPodAnnotationKey] != "" {
		t.Errorf("%+v", made.ObjectMeta)
	}
}

// api is a server with one node's mirrors.
type api struct {
	t       *testing.T
	client  *fake.Clientset
	mirrors *Mirrors

	mu      sync.Mutex
	statics []*v1.Pod
	node    *v1.Node
	down    error
	uid     int
}

func newAPI(t *testing.T) *api {
	a := &api{t: t, client: fake.NewSimpleClientset(), node: node}
	a.client.PrependReactor("*", "pods", func(action clienttest.Action) (bool, runtime.Object, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.down != nil {
			return true, nil, a.down
		}
		if c, ok := action.(clienttest.CreateAction); ok && action.GetVerb() == "create" {
			a.uid++
			p := c.GetObject().(*v1.Pod)
			p.UID, p.Generation, p.ResourceVersion = types.UID(fmt.Sprint("mirror-", a.uid)), 1, fmt.Sprint(a.uid)
		}
		return false, nil, nil
	})
	a.mirrors = NewMirrors(MirrorConfig{Client: a.client, Logger: slog.New(slog.DiscardHandler),
		Node: func() *v1.Node { a.mu.Lock(); defer a.mu.Unlock(); return a.node },
		Pods: func() []*v1.Pod { a.mu.Lock(); defer a.mu.Unlock(); return a.statics }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.mirrors.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return a
}

func (a *api) set(f func()) {
	a.mu.Lock()
	f()
	a.mu.Unlock()
	a.mirrors.Poke()
}

func (a *api) get() *v1.Pod {
	p, err := a.client.Tracker().Get(v1.SchemeGroupVersion.WithResource("pods"), "default", "a-n1")
	if err != nil {
		return nil
	}
	return p.(*v1.Pod)
}

func (a *api) await(what string, ok func(*v1.Pod) bool) *v1.Pod {
	a.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if p := a.get(); ok(p) {
			return p
		} else if time.Now().After(end) {
			a.t.Fatalf("never: %s; %+v", what, p)
		}
	}
}

func TestMirrors(t *testing.T) {
	a := newAPI(t)
	p := staticPod(t, "v1")
	a.set(func() { a.statics, a.down = []*v1.Pod{p}, errors.New("connection refused") })
	time.Sleep(20 * time.Millisecond)
	if len(a.client.Actions()) > 0 {
		t.Errorf("before it is known which mirrors there are: %v", a.client.Actions())
	}
	a.mirrors.Have(nil)
	time.Sleep(20 * time.Millisecond)
	a.set(func() { a.down = nil })
	first := a.await("made, with its status", func(m *v1.Pod) bool { return m != nil && m.Status.Phase == v1.PodRunning })

	// Somebody deletes it, gracefully: it goes at once and another comes, late
	// enough for those who wait until it is gone.
	began := time.Now()
	ending := first.DeepCopy()
	now := metav1.Now()
	ending.DeletionTimestamp = &now
	a.mirrors.Saw(ending)
	second := a.await("made anew", func(m *v1.Pod) bool { return m != nil && m.UID != first.UID && m.Status.Phase == v1.PodRunning })
	if d := time.Since(began); d < absence {
		t.Errorf("another came after %v", d)
	}

	// Or by force: only the watch tells.
	if err := a.client.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "default", "a-n1"); err != nil {
		t.Fatal(err)
	}
	a.mirrors.Gone(first) // old news
	a.mirrors.Gone(second)
	third := a.await("made once more", func(m *v1.Pod) bool { return m != nil && m.UID != second.UID })

	next := p.DeepCopy()
	next.Status.PodIP = "10.42.0.3"
	a.set(func() { a.statics = []*v1.Pod{next} })
	a.await("has the new status", func(m *v1.Pod) bool { return m != nil && m.Status.PodIP == "10.42.0.3" && m.UID == third.UID })

	changed := staticPod(t, "v2")
	a.set(func() { a.statics = []*v1.Pod{changed} })
	a.await("shows the new contents", func(m *v1.Pod) bool { return m != nil && m.Spec.Containers[0].Image == "v2" })
	a.set(func() { a.statics = nil })
	a.await("is gone", func(m *v1.Pod) bool { return m == nil })
}

func TestMirrorLeavesAPodOfItsNameAlone(t *testing.T) {
	a := newAPI(t)
	users := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a-n1", Namespace: "default", UID: "users", ResourceVersion: "1"}}
	if err := a.client.Tracker().Add(users); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.statics = []*v1.Pod{staticPod(t, "v1")} })
	a.mirrors.Have(nil)
	creates := func() (n int) {
		for _, x := range a.client.Actions() {
			if x.GetVerb() == "create" {
				n++
			} else if x.GetVerb() != "get" {
				t.Errorf("the user's pod: %v", x)
			}
		}
		return n
	}
	for end := time.Now().Add(20 * time.Second); creates() < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was not tried again")
		}
	}
	if got := a.get(); got.UID != "users" {
		t.Errorf("%v", got)
	}
	if err := a.client.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "default", "a-n1"); err != nil {
		t.Fatal(err)
	}
	a.await("made when the name is free", func(m *v1.Pod) bool { return m != nil && IsMirror(m) })
}
