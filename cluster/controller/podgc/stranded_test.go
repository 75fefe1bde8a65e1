package podgc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

// lease is what a test says of all nodes.
type lease struct {
	mu      sync.Mutex
	over    time.Time
	unknown bool
	deposed bool
	asked   time.Duration
	confirm func()
}

func (l *lease) OverAt(_ string, tolerated time.Duration) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = tolerated
	return l.over, !l.unknown
}

func (l *lease) Confirm(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.confirm != nil {
		l.confirm()
	}
	if l.deposed {
		return errors.New("another server leads")
	}
	return nil
}

func TestStranded(t *testing.T) {
	past, future := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	set := func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "db", Controller: ptr.To(true)}}
		p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(60))}}
		p.Generation = 2 // one for its deletion
	}
	for _, tc := range []struct {
		name    string
		ready   corev1.ConditionStatus
		taint   string
		change  func(*corev1.Pod)
		lease   *lease
		removed bool
		asked   time.Duration
	}{
		{name: "lease over", ready: corev1.ConditionUnknown, change: set, lease: &lease{over: past}, removed: true, asked: time.Minute},
		{name: "lease not over", ready: corev1.ConditionUnknown, change: set, lease: &lease{over: future}, asked: time.Minute},
		{name: "evictions are frozen", ready: corev1.ConditionUnknown, change: set, lease: &lease{over: past, unknown: true}, asked: time.Minute},
		{name: "another server leads", ready: corev1.ConditionUnknown, change: set, lease: &lease{over: past, deposed: true}, asked: time.Minute},
		{name: "node works", ready: corev1.ConditionTrue, change: set, lease: &lease{over: past}},
		{name: "node says that it is not ready", ready: corev1.ConditionFalse, change: set, lease: &lease{over: past}},
		{name: "not deleted", ready: corev1.ConditionUnknown, change: func(p *corev1.Pod) { set(p); p.DeletionTimestamp = nil }, lease: &lease{over: past}},
		{name: "tolerates it for ever", ready: corev1.ConditionUnknown, change: func(p *corev1.Pod) { set(p); p.Spec.Tolerations[0].TolerationSeconds = nil }, lease: &lease{over: past}},
		{name: "tolerations may have changed", ready: corev1.ConditionUnknown, change: func(p *corev1.Pod) { set(p); p.Generation = 3 }, lease: &lease{over: past}},
		{name: "may run twice", ready: corev1.ConditionUnknown, lease: &lease{over: past}, removed: true},
		{name: "out of service", ready: corev1.ConditionUnknown, taint: corev1.TaintNodeOutOfService, change: set, lease: &lease{over: future}, removed: true},
		{name: "out of service and not ready", ready: corev1.ConditionFalse, taint: corev1.TaintNodeOutOfService, change: set, lease: &lease{over: future}, removed: true},
		{name: "out of service but works", ready: corev1.ConditionTrue, taint: corev1.TaintNodeOutOfService, change: set, lease: &lease{over: future}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: tc.ready}}
			if tc.taint != "" {
				node.Spec.Taints = []corev1.Taint{{Key: tc.taint, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}}
			}
			p := pod("db-0", "n", corev1.PodRunning, time.Hour)
			p.DeletionTimestamp = ptr.To(metav1.Now())
			if tc.change != nil {
				tc.change(p)
			}
			c := controllertest.New(t, node, p)
			ctl, err := New(Config{Config: c.Config, Leases: tc.lease})
			if err != nil {
				t.Fatal(err)
			}
			c.Run(t, ctl.Run)
			if tc.removed {
				controllertest.Eventually(t, func() string {
					if got := left(t, c); got != "" {
						return "left " + got
					}
					return ""
				})
			} else {
				time.Sleep(100 * time.Millisecond)
				if got := left(t, c); got != "db-0 " {
					t.Errorf("left %q", got)
				}
			}
			tc.lease.mu.Lock()
			defer tc.lease.mu.Unlock()
			if tc.lease.asked != tc.asked {
				t.Errorf("asked for %v, want %v", tc.lease.asked, tc.asked)
			}
		})
	}
}

// The lease of a node that is lost later is over later.
func TestStrandedLater(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	p := pod("a", "n", corev1.PodRunning, time.Hour)
	p.DeletionTimestamp = ptr.To(metav1.Now())
	c := controllertest.New(t, node, p)
	l := &lease{over: time.Now().Add(400 * time.Millisecond)}
	ctl, err := New(Config{Config: c.Config, Leases: l})
	if err != nil {
		t.Fatal(err)
	}
	var precondition []string
	l.confirm = func() { precondition = append(precondition, "confirmed") }
	c.Run(t, ctl.Run)
	time.Sleep(50 * time.Millisecond)
	n := node.DeepCopy()
	n.ResourceVersion, n.Status.Conditions[0].Status = "", corev1.ConditionUnknown
	if _, err := c.Client.CoreV1().Nodes().UpdateStatus(context.Background(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if got := left(t, c); got != "" {
			return "left " + got
		}
		return ""
	})
	if time.Now().Before(l.over) {
		t.Error("removed before the lease was over")
	}
	deletions := ""
	for _, a := range c.Client.Actions() {
		if d, ok := a.(interface{ GetDeleteOptions() metav1.DeleteOptions }); ok {
			o := d.GetDeleteOptions()
			deletions += fmt.Sprintf("grace %d, uid %t, version %t", *o.GracePeriodSeconds, *o.Preconditions.UID == p.UID, o.Preconditions.ResourceVersion != nil && *o.Preconditions.ResourceVersion == p.ResourceVersion)
		}
	}
	if deletions != "grace 0, uid true, version true" || len(precondition) != 1 {
		t.Errorf("deletions: %s; %v", deletions, precondition)
	}
}
