package endpointslice

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

// A node that cannot be reached takes its endpoints with it, while the pods still
// say that they are ready, and gives them back.
func TestLostNode(t *testing.T) {
	ctx := context.Background()
	on := func(i int, node string) *corev1.Pod {
		return pod(i, func(p *corev1.Pod) { p.Spec.NodeName = node })
	}
	node := func(name string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	}
	c := controllertest.New(t, service(), on(0, "a"), on(1, "b"), on(2, "a"), node("a"), node("b"))
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	ready := func(want int) func() string {
		return func() string {
			list, err := c.Client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{})
			if err != nil {
				return err.Error()
			}
			n := 0
			for _, s := range list.Items {
				for _, e := range s.Endpoints {
					if deref(e.Conditions.Ready) != deref(e.Conditions.Serving) {
						return fmt.Sprintf("%+v", e)
					}
					if deref(e.Conditions.Ready) {
						n++
					}
				}
			}
			e, err := c.Client.CoreV1().Endpoints("default").Get(ctx, "web", metav1.GetOptions{})
			if err != nil || len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != n || n != want {
				return fmt.Sprintf("%d in slices, %+v, want %d: %v", n, e.Subsets, want, err)
			}
			return ""
		}
	}
	controllertest.Eventually(t, ready(3))
	set := func(status corev1.ConditionStatus) {
		n := node("a")
		n.Status.Conditions[0].Status = status
		if _, err := c.Client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	set(corev1.ConditionUnknown)
	controllertest.Eventually(t, ready(1))
	for _, p := range controller.On(c.Config.Informers.Core().V1().Pods().Informer(), "a") {
		if !controller.Ready(p) {
			t.Errorf("the shared pod %s was changed", p.Name)
		}
	}
	c.Settles(t, 50*time.Millisecond)
	set(corev1.ConditionFalse) // it says itself that something is wrong: that is the pods' affair
	controllertest.Eventually(t, ready(3))
}
