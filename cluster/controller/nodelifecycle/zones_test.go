package nodelifecycle

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func TestJudge(t *testing.T) {
	// Zones as dead/all.
	for _, tc := range []struct {
		name  string
		zones map[string][2]int
		want  map[string]time.Duration
		whole time.Duration
		says  string
	}{
		{"all well", map[string][2]int{"": {0, 3}}, map[string]time.Duration{"": normalInterval}, normalInterval, ""},
		{"one of three", map[string][2]int{"": {1, 3}}, map[string]time.Duration{"": normalInterval}, normalInterval, ""},
		{"one of two", map[string][2]int{"": {1, 2}}, map[string]time.Duration{"": normalInterval}, normalInterval, ""},
		{"two of three", map[string][2]int{"": {2, 3}}, map[string]time.Duration{"": 0}, 0, "2 of 3 nodes are not ready"},
		{"the only one", map[string][2]int{"": {1, 1}}, map[string]time.Duration{"": 0}, 0, "1 of 1 nodes are not ready"},
		{"55 of 100 are not most", map[string][2]int{"": {55, 100}}, map[string]time.Duration{"": normalInterval}, normalInterval, ""},
		{"a zone of one node", map[string][2]int{"a": {1, 1}, "b": {0, 1}, "c": {0, 1}},
			map[string]time.Duration{"a": normalInterval, "b": normalInterval, "c": normalInterval}, normalInterval, ""},
		{"a small zone", map[string][2]int{"a": {3, 5}, "b": {0, 10}}, map[string]time.Duration{"a": 0, "b": normalInterval}, normalInterval, `3 of 5 nodes of zone "a" are not ready`},
		{"a whole zone", map[string][2]int{"a": {5, 5}, "b": {0, 10}}, map[string]time.Duration{"a": normalInterval, "b": normalInterval}, normalInterval, ""},
		{"a large zone", map[string][2]int{"a": {30, 51}, "b": {0, 10}}, map[string]time.Duration{"a": reducedInterval, "b": normalInterval}, normalInterval, "slowed down"},
		{"most of the cluster, little of a zone", map[string][2]int{"a": {9, 10}, "b": {1, 5}}, map[string]time.Duration{"a": 0, "b": 0}, 0, "10 of 15 nodes"},
		{"no nodes", nil, map[string]time.Duration{}, normalInterval, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var nodes []health
			for zone, n := range tc.zones {
				for i := range n[1] {
					nodes = append(nodes, health{zone: zone, ready: i >= n[0]})
				}
			}
			var l limiter
			zones, whole := judge(nodes)
			l.set(zones, whole, time.Now())
			for zone, want := range tc.want {
				if got := zones[zone].interval; got != want {
					t.Errorf("zone %q: %v, want %v", zone, got, want)
				}
				if l.frozen(zone) != (want == 0) {
					t.Errorf("zone %q frozen: %v", zone, l.frozen(zone))
				}
			}
			if _, says := l.reasons(); whole.interval != tc.whole || !strings.Contains(says, tc.says) || (says == "") != (tc.says == "") {
				t.Errorf("whole %v, want %v; says %q, want %q", whole.interval, tc.whole, says, tc.says)
			}
		})
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	zones := map[string]verdict{"a": {interval: normalInterval}, "b": {interval: normalInterval}}
	l.set(zones, verdict{interval: normalInterval}, now)
	undo, _ := l.take("a", now)
	if undo == nil {
		t.Fatal("the first node has to wait")
	}
	if _, wait := l.take("a", now.Add(time.Second)); wait != normalInterval-time.Second {
		t.Errorf("the second waits %v", wait)
	}
	if other, _ := l.take("b", now); other == nil {
		t.Error("zones wait for each other")
	}
	undo()
	if again, _ := l.take("a", now.Add(time.Second)); again == nil {
		t.Error("what was given back is lost")
	}
	// A wait at the slow rate does not outlast it.
	l.set(map[string]verdict{"a": {interval: reducedInterval}}, l.all, now)
	now = now.Add(time.Minute)
	l.take("a", now)
	if !l.set(zones, l.all, now) {
		t.Error("a changed rate counts as none")
	}
	if _, wait := l.take("a", now); wait != normalInterval {
		t.Errorf("waits %v after the slow rate", wait)
	}
}

// world has nodes n0, n1 … that are ready, each with one pod that tolerates
// seconds.
func world(t *testing.T, nodes int, seconds int64, cfg Config) (*controllertest.Cluster, *Controller) {
	t.Helper()
	var objs []runtime.Object
	for i := range nodes {
		objs = append(objs, node(corev1.ConditionTrue, func(n *corev1.Node) { n.Name = fmt.Sprintf("n%d", i) }),
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i)},
				Spec:   corev1.PodSpec{NodeName: fmt.Sprintf("n%d", i), Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists, TolerationSeconds: ptr.To(seconds), Effect: corev1.TaintEffectNoExecute}}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}})
	}
	c := controllertest.New(t, objs...)
	cfg.Config = c.Config
	ctl, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	controllertest.Eventually(t, func() string {
		if len(c.Config.Informers.Core().V1().Nodes().Informer().GetStore().List()) != nodes {
			return "not synced"
		}
		return ""
	})
	return c, ctl
}

func setReady(t *testing.T, c *controllertest.Cluster, name string, status corev1.ConditionStatus) {
	t.Helper()
	n, err := c.Client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Conditions[0].Status = status
	n.ResourceVersion = ""
	if _, err := c.Client.CoreV1().Nodes().UpdateStatus(context.Background(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func taintsOf(t *testing.T, c *controllertest.Cluster, name string) string {
	t.Helper()
	n, err := c.Client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return show(n.Spec.Taints)
}

const (
	lostTaints   = "unreachable:NoExecute unreachable:NoSchedule"
	frozenTaints = "unreachable:NoSchedule"
)

func TestFreezeAndThaw(t *testing.T) {
	board, freezes, frozen := &Board{}, atomic.Int32{}, atomic.Bool{}
	c, _ := world(t, 3, 3600, Config{Board: board, Freeze: func(f bool) {
		switch was := frozen.Swap(f); {
		case f && !was:
			freezes.Add(1)
		case was && !f:
			freezes.Add(100)
		}
	}})
	is := func(name, want string) {
		t.Helper()
		controllertest.Eventually(t, func() string {
			if got := taintsOf(t, c, name); got != want {
				return fmt.Sprintf("%s has %q, want %q", name, got, want)
			}
			return ""
		})
	}
	setReady(t, c, "n0", corev1.ConditionUnknown)
	is("n0", lostTaints)
	if s, ok := board.Status(); !ok || s.Frozen {
		t.Errorf("one of three: %+v, %v", s, ok)
	}
	before, _ := c.Client.CoreV1().Nodes().Get(context.Background(), "n0", metav1.GetOptions{})
	setReady(t, c, "n1", corev1.ConditionUnknown)
	is("n1", frozenTaints)
	is("n0", frozenTaints)
	controllertest.Eventually(t, func() string {
		if s, _ := board.Status(); !s.Frozen || s.Reason != "2 of 3 nodes are not ready" || s.Waiting != 2 || s.Since.IsZero() {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	if n := freezes.Load(); n != 1 {
		t.Errorf("told of the freeze: %d", n)
	}
	// It lasts, so it is told.
	found := false
	for deadline := time.After(10 * time.Second); !found; {
		select {
		case e := <-c.Events.Events:
			found = strings.Contains(e, "EvictionsFrozen")
		case <-deadline:
			t.Fatal("no event tells of the freeze")
		}
	}
	time.Sleep(1100 * time.Millisecond) // the time of a taint counts in seconds
	setReady(t, c, "n1", corev1.ConditionTrue)
	is("n0", lostTaints)
	is("n1", "")
	after, _ := c.Client.CoreV1().Nodes().Get(context.Background(), "n0", metav1.GetOptions{})
	if !noExecute(after)[0].TimeAdded.After(noExecute(before)[0].TimeAdded.Time) {
		t.Error("the tolerations did not begin anew")
	}
	controllertest.Eventually(t, func() string {
		if s, _ := board.Status(); s.Frozen || s.Reason != "" || s.Waiting != 0 {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	if n := freezes.Load(); n != 101 {
		t.Errorf("told of freeze and thaw: %d", n)
	}
	if list, _ := c.Client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{}); len(list.Items) != 3 {
		t.Errorf("%d pods left", len(list.Items))
	}
}

// Who is told of freezes hears last what is the case, also when the nodes change
// while it is being told.
func TestLastWordOnAFreeze(t *testing.T) {
	telling, changed, told := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once sync.Once
	var last atomic.Bool
	c, ctl := world(t, 3, 3600, Config{Freeze: func(f bool) {
		if f {
			once.Do(func() { close(telling); <-changed; last.Store(f); close(told) })
			return
		}
		last.Store(f)
	}})
	setReady(t, c, "n0", corev1.ConditionUnknown)
	setReady(t, c, "n1", corev1.ConditionUnknown)
	<-telling
	for _, n := range []string{"n0", "n1"} {
		setReady(t, c, n, corev1.ConditionTrue)
		controllertest.Eventually(t, func() string {
			if have, err := ctl.nodes.Get(n); err != nil || conditionStatus(have, corev1.NodeReady) != corev1.ConditionTrue {
				return fmt.Sprintf("%s is not seen to be ready: %v", n, err)
			}
			return ""
		})
	}
	assessed := make(chan error, 1)
	go func() { assessed <- ctl.assess() }()
	time.Sleep(100 * time.Millisecond) // it has to wait for its turn
	close(changed)
	<-told
	if err := <-assessed; err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string { return taintsOf(t, c, "n0") + taintsOf(t, c, "n1") })
	if last.Load() {
		t.Error("the last word is that evictions are frozen, and all nodes are ready")
	}
}

// One node goes at once, the next of its zone ten seconds later; nodes without
// pods take no turn.
func TestRate(t *testing.T) {
	c, ctl := world(t, 9, 3600, Config{})
	if err := c.Client.CoreV1().Pods("default").Delete(context.Background(), "p0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if n := len(c.Config.Informers.Core().V1().Pods().Informer().GetStore().List()); n != 8 {
			return fmt.Sprintf("%d pods are known", n)
		}
		return ""
	})
	for i := range 4 {
		setReady(t, c, fmt.Sprintf("n%d", i), corev1.ConditionUnknown)
	}
	count := func() (evicting int) {
		for i := range 4 {
			if taintsOf(t, c, fmt.Sprintf("n%d", i)) == lostTaints {
				evicting++
			}
		}
		return evicting
	}
	controllertest.Eventually(t, func() string {
		if got := taintsOf(t, c, "n0"); got != lostTaints || count() != 2 {
			return fmt.Sprintf("n0 %q, %d evicted", got, count())
		}
		return ""
	})
	time.Sleep(100 * time.Millisecond)
	if n := count(); n != 2 {
		t.Errorf("%d evicted at once", n)
	}
	controllertest.Eventually(t, func() string {
		ctl.mu.Lock()
		defer ctl.mu.Unlock()
		if n := ctl.status.Waiting; n != 2 {
			return fmt.Sprintf("%d wait", n)
		}
		return ""
	})
}

// Everything that a lost node had is out of service within a moment; a bare pod is
// said to be lost.
func TestManyPodsOfALostNode(t *testing.T) {
	const many = 110
	objs := []runtime.Object{node(corev1.ConditionTrue), node(corev1.ConditionTrue, func(n *corev1.Node) { n.Name = "m" })}
	for i := range many {
		objs = append(objs, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i)}, Spec: corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}})
	}
	c := controllertest.New(t, objs...)
	ctl, err := New(Config{Config: c.Config})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	c.Quiet(t, 50*time.Millisecond)
	setReady(t, c, "n", corev1.ConditionUnknown)
	controllertest.Eventually(t, func() string {
		list, err := c.Client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Sprintf("%d left: %v", len(list.Items), err)
		}
		return ""
	})
	lost := 0
	for range len(c.Events.Events) {
		if strings.Contains(<-c.Events.Events, "PodLost") {
			lost++
		}
	}
	if lost != many {
		t.Errorf("%d of %d bare pods are said to be lost", lost, many)
	}
}
