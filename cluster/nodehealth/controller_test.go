package nodehealth

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

// fakeGossip says what a test sets.
type fakeGossip struct {
	mu      sync.Mutex
	members map[string]Member
	poked   chan struct{}
}

func newGossip(alive ...string) *fakeGossip {
	g := &fakeGossip{members: map[string]Member{}, poked: make(chan struct{}, 1)}
	for _, n := range alive {
		g.set(n, Alive)
	}
	return g
}

func (g *fakeGossip) set(name string, s State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[name] = Member{Name: name, State: s, Since: time.Now()}
	select {
	case g.poked <- struct{}{}:
	default:
	}
}

func (g *fakeGossip) Members() (out []Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		out = append(out, m)
	}
	return out
}

func (g *fakeGossip) Changes() (<-chan struct{}, func()) { return g.poked, func() {} }

func healthy(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))}}
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure} { // PIDPressure never reported
		s := corev1.ConditionFalse
		if t == corev1.NodeReady {
			s = corev1.ConditionTrue
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: t, Status: s, Reason: "Kubelet", LastHeartbeatTime: metav1.NewTime(time.Unix(1, 0))})
	}
	return n
}

func start(t *testing.T, g Gossip, l *Leases, grace time.Duration, nodes ...string) *controllertest.Cluster {
	t.Helper()
	var objs []runtime.Object
	for _, n := range nodes {
		objs = append(objs, healthy(n))
	}
	c := controllertest.New(t, objs...)
	ctl, err := New(Config{Config: c.Config, Gossip: g, Leases: l, Grace: grace})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	return c
}

func conditions(t *testing.T, c *controllertest.Cluster, name string) string {
	t.Helper()
	n, err := c.Client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for _, c := range n.Status.Conditions {
		s += fmt.Sprintf("%s=%s(%s) ", c.Type, c.Status, c.Reason)
	}
	return s
}

const (
	fine = "Ready=True(Kubelet) MemoryPressure=False(Kubelet) DiskPressure=False(Kubelet) "
	lost = "Ready=Unknown(NodeStatusUnknown) MemoryPressure=Unknown(NodeStatusUnknown) DiskPressure=Unknown(NodeStatusUnknown) PIDPressure=Unknown(NodeStatusNeverUpdated) "
)

func becomes(t *testing.T, c *controllertest.Cluster, name, want string) {
	t.Helper()
	controllertest.Eventually(t, func() string {
		if got := conditions(t, c, name); got != want {
			return name + ": " + got
		}
		return ""
	})
}

func TestDeadNodesAreUnknown(t *testing.T) {
	g := newGossip("a", "b", "c", "witness")
	c := start(t, g, nil, 0, "a", "b", "c")
	c.Quiet(t, 50*time.Millisecond)
	g.set("a", Dead)
	becomes(t, c, "a", lost)
	g.set("b", Left)
	becomes(t, c, "b", lost)
	g.set("witness", Dead)
	if got := conditions(t, c, "c"); got != fine {
		t.Errorf("c: %s", got)
	}
	// A node that is back writes its own status; this controller writes nothing.
	c.Settles(t, 50*time.Millisecond)
	before := len(c.Writes())
	g.set("a", Alive)
	time.Sleep(50 * time.Millisecond)
	if now := c.Writes(); len(now) > before {
		t.Errorf("writes for a node that is back: %v", now[before:])
	}
	// It dies again after it has written.
	if _, err := c.Client.CoreV1().Nodes().UpdateStatus(context.Background(), healthy("a"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.set("a", Dead)
	becomes(t, c, "a", lost)
}

func TestNodeWithoutMember(t *testing.T) {
	const grace = 300 * time.Millisecond
	begin := time.Now()
	c := start(t, newGossip("a"), nil, grace, "a", "b")
	becomes(t, c, "b", lost)
	if d := time.Since(begin); d < grace {
		t.Errorf("b is lost after %v already", d)
	}
	if got := conditions(t, c, "a"); got != fine {
		t.Errorf("a: %s", got)
	}
}

// A node that renews its lease is not dead, whatever gossip says.
func TestContactWithoutGossip(t *testing.T) {
	o := &office{term: 1, now: time.Now()}
	l := o.leases(t)
	if err := l.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := newGossip("a", "b")
	o.now = time.Now().Add(time.Millisecond - LeaseDuration + 300*time.Millisecond) // the lease is over soon
	since := o.now.Add(-time.Second)
	g.members["a"] = Member{Name: "a", State: Dead, Since: since}
	g.members["b"] = Member{Name: "b", State: Dead, Since: o.now.Add(time.Hour)} // renewed before it died
	for _, n := range []string{"a", "b"} {
		if _, err := l.grant(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, g, l, 0, "a", "b")
	over := o.now.Add(LeaseDuration)
	becomes(t, c, "b", lost)
	becomes(t, c, "a", lost)
	if now := time.Now(); now.Before(over) {
		t.Errorf("a is lost %v before its lease is over", over.Sub(now))
	}
}

// A node may renew its lease at the moment when it dies, or when it is back:
// only one that goes on doing so is worth a warning.
func TestWarningOfContactWithoutGossip(t *testing.T) {
	begin := time.Now()
	o := &office{term: 1, now: begin}
	l := o.leases(t)
	if err := l.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	c := controllertest.New(t)
	c.Config.Logger = slog.New(slog.NewTextHandler(&said, nil))
	ctl, err := New(Config{Config: c.Config, Gossip: newGossip(), Leases: l})
	if err != nil {
		t.Fatal(err)
	}
	ctl.now = func() time.Time { return o.now }
	ctl.members = map[string]Member{"a": {Name: "a", State: Dead, Since: begin}}
	for _, step := range []struct {
		after time.Duration
		renew bool
		warns int
		again time.Duration
	}{
		{100 * time.Millisecond, true, 0, contactWithout},
		{4 * time.Second, false, 0, contactWithout},
		{contactWithout, true, 0, contactWithout},
		{contactWithout + time.Second, true, 1, LeaseDuration},
		{2*contactWithout + time.Second, true, 1, LeaseDuration},
	} {
		o.now = begin.Add(step.after)
		if step.renew {
			if _, err := l.grant(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		why, again := ctl.lost(healthy("a"))
		if why != "" || again <= 0 || again > step.again {
			t.Errorf("after %v: lost: %q, look again after %v", step.after, why, again)
		}
		if n := strings.Count(said.String(), "gossip has lost"); n != step.warns {
			t.Errorf("after %v: %d warnings, want %d", step.after, n, step.warns)
		}
	}
	// It lives again, and dies; the next contact is long after that.
	ctl.members["a"] = Member{Name: "a", State: Alive}
	ctl.lost(healthy("a"))
	ctl.members["a"] = Member{Name: "a", State: Dead, Since: begin.Add(time.Minute)}
	o.now = begin.Add(80 * time.Second)
	if _, err := l.grant(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	ctl.lost(healthy("a"))
	if n := strings.Count(said.String(), "gossip has lost"); n != 1 {
		t.Errorf("one that is just back: %d warnings, want 1", n)
	}
}
