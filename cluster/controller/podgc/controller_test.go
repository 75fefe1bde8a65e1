package podgc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func pod(name, node string, phase corev1.PodPhase, age time.Duration) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-age))},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase},
	}
}

func start(t *testing.T, objs ...runtime.Object) *controllertest.Cluster {
	t.Helper()
	c := controllertest.New(t, objs...)
	ctl, err := New(Config{Config: c.Config, Threshold: 2, Quarantine: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	return c
}

func left(t *testing.T, c *controllertest.Cluster) string {
	t.Helper()
	list, err := c.Client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, p := range list.Items {
		names += p.Name + " "
	}
	return names
}

func TestRemoves(t *testing.T) {
	deleted := pod("deleted", "", corev1.PodPending, 0)
	now := metav1.Now()
	deleted.DeletionTimestamp = &now
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	for _, tc := range []struct {
		name string
		objs []runtime.Object
		want string
	}{
		{"node never existed", []runtime.Object{node, pod("a", "n", corev1.PodRunning, 0), pod("b", "gone", corev1.PodRunning, 0)}, "a "},
		{"deleted before it got a node", []runtime.Object{deleted, pod("waits", "", corev1.PodPending, 0)}, "waits "},
		{"oldest of too many finished", []runtime.Object{node, pod("a", "n", corev1.PodSucceeded, 3*time.Hour), pod("b", "n", corev1.PodFailed, 2*time.Hour),
			pod("c", "n", corev1.PodSucceeded, time.Hour), pod("old", "n", corev1.PodRunning, 9*time.Hour)}, "b c old "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, tc.objs...)
			controllertest.Eventually(t, func() string {
				if got := left(t, c); got != tc.want {
					return fmt.Sprintf("left %q, want %q", got, tc.want)
				}
				return ""
			})
			c.Settles(t, 100*time.Millisecond)
		})
	}
}

// Pods that nobody replaces are said to be lost with their node.
func TestLostPodsAreSaid(t *testing.T) {
	owned, finished, deleted := pod("owned", "gone", corev1.PodRunning, 0), pod("finished", "gone", corev1.PodSucceeded, 0), pod("deleted", "gone", corev1.PodRunning, 0)
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "r", Controller: ptr.To(true)}}
	deleted.DeletionTimestamp = ptr.To(metav1.Now())
	c := start(t, pod("bare", "gone", corev1.PodRunning, 0), owned, finished, deleted)
	controllertest.Eventually(t, func() string { return left(t, c) })
	select {
	case e := <-c.Events.Events:
		if !strings.Contains(e, "Warning PodLost Node gone ") {
			t.Errorf("event %q", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	if n := len(c.Events.Events); n > 0 {
		t.Errorf("%d more events: %s", n, <-c.Events.Events)
	}
}

func TestNodeThatComesBackKeepsItsPods(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	c := start(t, node, pod("a", "n", corev1.PodRunning, 0))
	ctx := context.Background()
	controllertest.Eventually(t, func() string {
		if len(c.Config.Informers.Core().V1().Nodes().Informer().GetStore().List()) == 0 {
			return "not synced"
		}
		return ""
	})
	if err := c.Client.CoreV1().Nodes().Delete(ctx, "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	if got := left(t, c); got != "a " {
		t.Errorf("left %q", got)
	}
}
