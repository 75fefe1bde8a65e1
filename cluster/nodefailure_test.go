package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// The endpoints of a full node go with its Ready condition, long before all its
// pods are marked; its taints follow, and node leases cannot be written.
func TestLostNodeOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	for _, n := range []string{"n1", "n2", "n3"} {
		s.addNode(t, n)
	}
	s.playNode(t)
	ns := s.newNamespace(t)
	const many = 110
	if _, err := s.client.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d := webDeployment("web", many)
	d.Spec.Template.Labels = map[string]string{"app": "web"}
	d.Spec.Selector.MatchLabels = d.Spec.Template.Labels
	d.Spec.Template.Spec.NodeName = "n1"
	if _, err := s.client.AppsV1().Deployments(ns).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	endpoints := func() (ready int) {
		list, err := s.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{ResourceVersion: "0", LabelSelector: discoveryv1.LabelServiceName + "=web"})
		if err != nil {
			t.Fatal(err)
		}
		for _, sl := range list.Items {
			for _, e := range sl.Endpoints {
				if ptr.Deref(e.Conditions.Ready, false) {
					ready++
				}
			}
		}
		return ready
	}
	pods := func() (ready int) {
		list, err := s.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if controller.Ready(&list.Items[i]) {
				ready++
			}
		}
		return ready
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s; %d endpoints, %d pods ready", what, endpoints(), pods())
			}
		}
	}
	until("all ready", func() bool { return endpoints() == many })
	n, err := s.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.ResourceVersion = "" // controllers write it, too
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	began := time.Now()
	if _, err := s.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("endpoints gone", func() bool { return endpoints() == 0 })
	gone := time.Since(began)
	until("pods marked", func() bool { return pods() == 0 })
	t.Logf("endpoints gone after %v, all %d pods marked after %v", gone, many, time.Since(began))
	until("tainted", func() bool {
		n, err := s.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		have := map[string]bool{}
		for _, taint := range n.Spec.Taints {
			have[fmt.Sprint(taint.Key, taint.Effect)] = true
		}
		return err == nil && have[corev1.TaintNodeUnreachable+"NoExecute"] && have[corev1.TaintNodeUnreachable+"NoSchedule"]
	})
	_, err = s.client.CoordinationV1().Leases("kube-node-lease").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Error(err)
	}
	err = s.client.CoordinationV1().Leases("kube-node-lease").Delete(ctx, "n1", metav1.DeleteOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("deletion of a node's lease: %v", err)
	}
}
