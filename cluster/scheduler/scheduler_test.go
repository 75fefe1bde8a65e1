package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
)

// fakeBinder binds in the fake API, and can refuse.
type fakeBinder struct {
	client *fake.Clientset
	refuse func(pod *corev1.Pod, node string) error
	// claimRead is asked before a claim is read.
	claimRead func(name string) error

	mu        sync.Mutex
	bound     map[string]string
	explained map[string]string
	version   atomic.Int64
}

func (b *fakeBinder) Bind(ctx context.Context, pod *corev1.Pod, node string) error {
	if b.refuse != nil {
		if err := b.refuse(pod, node); err != nil {
			return err
		}
	}
	p, err := b.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	p.Spec.NodeName = node
	p.ResourceVersion = strconv.FormatInt(b.version.Add(1)+1000, 10)
	if _, err := b.client.CoreV1().Pods(pod.Namespace).Update(ctx, p, metav1.UpdateOptions{}); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bound[pod.Name] = node
	return nil
}

func (b *fakeBinder) Explain(_ context.Context, pod *corev1.Pod, c corev1.PodCondition) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.explained[pod.Name] = string(c.Status) + " " + c.Reason + " " + c.Message
	return nil
}

func (b *fakeBinder) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	if b.claimRead != nil {
		if err := b.claimRead(name); err != nil {
			return nil, err
		}
	}
	return b.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (b *fakeBinder) UpdateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	claim.ResourceVersion = strconv.FormatInt(b.version.Add(1)+1000, 10)
	return b.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
}

func (b *fakeBinder) UpdateVolume(ctx context.Context, v *corev1.PersistentVolume) error {
	_, err := b.client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
	return err
}

func (b *fakeBinder) node(pod string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bound[pod]
}

func (b *fakeBinder) why(pod string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.explained[pod]
}

type rig struct {
	client *fake.Clientset
	binder *fakeBinder
	events *record.FakeRecorder
	s      *Scheduler
}

func start(t *testing.T, objs ...runtime.Object) *rig {
	t.Helper()
	client := fake.NewClientset(objs...)
	r := &rig{
		client: client, events: record.NewFakeRecorder(1000),
		binder: &fakeBinder{client: client, bound: map[string]string{}, explained: map[string]string{}},
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	s, err := New(Config{Binder: r.binder, Informers: factory, Events: r.events, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.s = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	factory.StartWithContext(ctx)
	// What is deleted between an informer's list and its watch, the fake API never
	// tells.
	informed := len(factory.WaitForCacheSync(ctx.Done()))
	eventually(t, "all is watched", func() bool {
		watched := 0
		for _, a := range client.Actions() {
			if a.GetVerb() == "watch" {
				watched++
			}
		}
		return watched >= informed
	})
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		factory.Shutdown()
	})
	return r
}

func (r *rig) create(t *testing.T, p *corev1.Pod) {
	t.Helper()
	if _, err := r.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestBindsAndTells(t *testing.T) {
	r := start(t, node("a"))
	r.create(t, pod("p"))
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
	if got := <-r.events.Events; got != "Normal Scheduled Successfully assigned default/p to a" {
		t.Errorf("event %q", got)
	}
	eventually(t, "assumption confirmed", func() bool { return !r.s.state.isAssumed("p") })
}

func TestOtherSchedulersPodsAreLeftAlone(t *testing.T) {
	r := start(t, node("a", maxPods("1")))
	r.create(t, pod("other", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }))
	r.create(t, pod("p"))
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
	if n := r.binder.node("other"); n != "" {
		t.Errorf("pod of another scheduler was bound to %s", n)
	}
}

// A pod that does not fit says so, and is bound by what makes it fit.
func TestParkedPodIsWokenByWhatItWaitsFor(t *testing.T) {
	ctx := context.Background()
	full := []runtime.Object{node("a"), pod("x", on("a"), requests("cpu", "4"))}
	for _, tc := range []struct {
		name   string
		objs   []runtime.Object
		reason string
		change func(r *rig) error
	}{
		{"no nodes, node added", nil, "no nodes available to schedule pods", func(r *rig) error {
			_, err := r.client.CoreV1().Nodes().Create(ctx, node("a"), metav1.CreateOptions{})
			return err
		}},
		{"full, pod deleted", full, "0/1 nodes are available: 1 Insufficient cpu.", func(r *rig) error {
			return r.client.CoreV1().Pods("default").Delete(ctx, "x", metav1.DeleteOptions{})
		}},
		{"full, pod finished", full, "0/1 nodes are available: 1 Insufficient cpu.", func(r *rig) error {
			p := pod("x", on("a"), requests("cpu", "4"))
			p.Status.Phase = corev1.PodSucceeded
			_, err := r.client.CoreV1().Pods("default").Update(ctx, p, metav1.UpdateOptions{})
			return err
		}},
		{"full, node grows", full, "0/1 nodes are available: 1 Insufficient cpu.", func(r *rig) error {
			n := node("a")
			n.Status.Allocatable[corev1.ResourceCPU] = guess[corev1.ResourceCPU].DeepCopy()
			n.Status.Allocatable[corev1.ResourceCPU] = *n.Status.Allocatable.Memory()
			_, err := r.client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
			return err
		}},
		{"cordoned, uncordoned", []runtime.Object{node("a", cordon)}, "0/1 nodes are available: 1 node(s) were unschedulable.", func(r *rig) error {
			_, err := r.client.CoreV1().Nodes().Update(ctx, node("a"), metav1.UpdateOptions{})
			return err
		}},
		{"tainted, toleration added", []runtime.Object{node("a", taint("k", corev1.TaintEffectNoSchedule))},
			"0/1 nodes are available: 1 node(s) had untolerated taint(s).", func(r *rig) error {
				p := pod("p", requests("cpu", "1"))
				p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
				_, err := r.client.CoreV1().Pods("default").Update(ctx, p, metav1.UpdateOptions{})
				return err
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := start(t, tc.objs...)
			r.create(t, pod("p", requests("cpu", "1")))
			eventually(t, "refused", func() bool { return r.binder.why("p") == "False Unschedulable "+tc.reason })
			if got := <-r.events.Events; got != "Warning FailedScheduling "+tc.reason {
				t.Errorf("event %q", got)
			}
			if err := tc.change(r); err != nil {
				t.Fatal(err)
			}
			eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
		})
	}
}

func TestGatedPodWaits(t *testing.T) {
	r := start(t, node("a"))
	gated := pod("p", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} })
	r.create(t, gated)
	r.create(t, pod("q"))
	eventually(t, "the other one bound", func() bool { return r.binder.node("q") == "a" })
	if r.binder.node("p") != "" {
		t.Fatal("gated pod was bound")
	}
	if _, err := r.client.CoreV1().Pods("default").Update(context.Background(), pod("p"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
}

func TestFailedBindingIsRetriedAndGivesRoomBack(t *testing.T) {
	r := start(t, node("a", maxPods("1")))
	var tries atomic.Int32
	r.binder.refuse = func(*corev1.Pod, string) error {
		if tries.Add(1) <= 2 {
			return apierrors.NewServerTimeout(schema.GroupResource{Resource: "pods"}, "create", 1)
		}
		return nil
	}
	r.create(t, pod("p"))
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
	if n := tries.Load(); n != 3 {
		t.Errorf("%d tries, want 3", n)
	}
}

func TestNeverMoreThanFits(t *testing.T) {
	objs := []runtime.Object{}
	for i := range 5 {
		objs = append(objs, node(fmt.Sprintf("n%d", i)))
	}
	r := start(t, objs...)
	for i := range 60 {
		r.create(t, pod(fmt.Sprintf("p%d", i), requests("cpu", "500m"))) // 8 a node
	}
	eventually(t, "40 bound", func() bool { r.binder.mu.Lock(); defer r.binder.mu.Unlock(); return len(r.binder.bound) == 40 })
	eventually(t, "20 refused", func() bool { r.binder.mu.Lock(); defer r.binder.mu.Unlock(); return len(r.binder.explained) >= 20 })
	perNode := map[string]int{}
	r.binder.mu.Lock()
	defer r.binder.mu.Unlock()
	for _, n := range r.binder.bound {
		perNode[n]++
	}
	for n, count := range perNode {
		if count != 8 {
			t.Errorf("node %s has %d pods, want 8", n, count)
		}
	}
}

func TestUnsupportedFieldIsNamed(t *testing.T) {
	r := start(t, node("a"))
	r.create(t, pod("p", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} }))
	eventually(t, "refused", func() bool { return strings.Contains(r.binder.why("p"), "spec.resourceClaims is not supported") })
}

func TestQueueEventDuringDecisionIsNotMissed(t *testing.T) {
	q := newQueue()
	q.put(pod("p"), true)
	it, _ := q.pop(context.Background())
	q.move(podGone)
	q.park(it, podGone|nodeAdded)
	if it.place != inBackoff {
		t.Errorf("place %v: an event during the decision must send the pod back to be tried", it.place)
	}
	it, _ = q.pop(context.Background()) // after its backoff
	q.park(it, podGone)
	if it.place != inParked {
		t.Errorf("place %v, want parked", it.place)
	}
	q.move(nodeTaints)
	if it.place != inParked {
		t.Error("woken by an event that it does not wait for")
	}
	q.move(podGone)
	if it.place != inBackoff {
		t.Error("not woken")
	}
}

func TestQueueOrder(t *testing.T) {
	q := newQueue()
	prio := func(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }
	q.put(pod("first"), true)
	q.put(pod("second"), true)
	q.put(pod("urgent", prio(10)), true)
	q.put(pod("deleted", prio(20)), true)
	q.drop("deleted")
	var got []string
	for range 3 {
		_, p := q.pop(context.Background())
		got = append(got, p.Name)
	}
	if strings.Join(got, " ") != "urgent first second" {
		t.Errorf("order %v", got)
	}
}

func TestBackoff(t *testing.T) {
	if backoff(1) != backoffFirst || backoff(2) != 2*backoffFirst || backoff(100) != backoffMax {
		t.Errorf("%v %v %v", backoff(1), backoff(2), backoff(100))
	}
}

// memoryBinder confirms at once, as an API server without latency would.
type memoryBinder struct {
	Binder // no pod of the benchmark has claims
	s      *Scheduler
	left   atomic.Int64
	done   chan struct{}
}

func (b *memoryBinder) Bind(_ context.Context, pod *corev1.Pod, node string) error {
	bound := *pod
	bound.Spec.NodeName = node
	b.s.podChanged(pod, &bound)
	if b.left.Add(-1) == 0 {
		close(b.done)
	}
	return nil
}
func (b *memoryBinder) Explain(context.Context, *corev1.Pod, corev1.PodCondition) error { return nil }

// BenchmarkBind measures binds/s on 5,000 nodes, without an API behind it.
func BenchmarkBind(b *testing.B) {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	mb := &memoryBinder{done: make(chan struct{})}
	s, err := New(Config{Binder: mb, Informers: factory, Events: &record.FakeRecorder{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	mb.s = s
	for i := range 5000 {
		s.nodeChanged(nil, node(fmt.Sprintf("node-%d", i), label("zone", fmt.Sprint(i%3))))
	}
	pods := make([]*corev1.Pod, b.N)
	for i := range pods {
		pods[i] = pod(fmt.Sprint(i), requests("cpu", "1m", "memory", "1Mi"), ownedBy(fmt.Sprint("rs", i%50)))
		pods[i].UID = types.UID(fmt.Sprint("uid", i))
	}
	mb.left.Store(int64(b.N))
	ctx, cancel := context.WithCancel(context.Background())
	factory.StartWithContext(ctx)
	ended := make(chan struct{})
	b.ResetTimer()
	go func() { defer close(ended); _ = s.Run(ctx) }()
	for _, p := range pods {
		s.podChanged(nil, p)
	}
	<-mb.done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "binds/s")
	cancel()
	<-ended
	factory.Shutdown()
}

// The event of a pod that fits nowhere comes again when something has happened,
// else only before it expires.
func TestRefusalIsToldAgain(t *testing.T) {
	now := time.Now()
	q, it := newQueue(), &item{}
	q.now = func() time.Time { return now }
	for i, tc := range []struct {
		pass    time.Duration
		rescued bool
		message string
		want    bool
	}{
		{0, false, "full", false},
		{time.Minute, false, "full", false},
		{parkedMax, true, "full", true},
		{parkedMax, true, "tainted", false},
		{29 * time.Minute, true, "tainted", true},
		{time.Minute, true, "tainted", false},
		{parkedMax, true, "tainted", true},
	} {
		now = now.Add(tc.pass)
		it.rescued = tc.rescued
		if got := q.repeats(it, tc.message); got != tc.want {
			t.Errorf("%d: %+v: repeats %v", i, tc, got)
		}
	}
}

// What a pod is changed to while it is being bound counts when that fails.
func TestPodChangedWhileBound(t *testing.T) {
	r := start(t, node("a"))
	under, fail := make(chan struct{}), make(chan struct{})
	seen := make(chan string, 10)
	var once sync.Once
	r.binder.refuse = func(p *corev1.Pod, _ string) error {
		if p.Name != "p" {
			return nil
		}
		seen <- p.Labels["app"]
		var err error
		once.Do(func() {
			close(under)
			<-fail
			err = apierrors.NewInternalError(errors.New("no quorum"))
		})
		return err
	}
	r.create(t, pod("p"))
	<-under
	changed := pod("p", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "new"} })
	if _, err := r.client.CoreV1().Pods("default").Update(context.Background(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.create(t, pod("q"))
	eventually(t, "the change is seen, as what came after it", func() bool { return r.binder.node("q") == "a" })
	close(fail)
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
	if first, second := <-seen, <-seen; first != "" || second != "new" {
		t.Errorf("bound as %q, then as %q", first, second)
	}
}
