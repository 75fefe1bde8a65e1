package replicaset

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func replicaSet(replicas int32) *appsv1.ReplicaSet {
	l := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 1},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}},
		},
	}
}

func start(t *testing.T, c *controllertest.Cluster) {
	t.Helper()
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
}

func pods(t *testing.T, c *controllertest.Cluster) []corev1.Pod {
	t.Helper()
	list, err := c.Client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func status(t *testing.T, c *controllertest.Cluster) appsv1.ReplicaSetStatus {
	t.Helper()
	rs, err := c.Client.AppsV1().ReplicaSets("default").Get(context.Background(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return rs.Status
}

func TestCreatesExactlyWhatIsMissing(t *testing.T) {
	c := controllertest.New(t, replicaSet(100))
	start(t, c)
	controllertest.Eventually(t, func() string {
		if s := status(t, c); s.Replicas != 100 || s.ObservedGeneration != 1 {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	c.Settles(t, 100*time.Millisecond)
	if n := len(pods(t, c)); n != 100 {
		t.Errorf("%d pods, want 100: expectations must prevent double creation", n)
	}
	for _, p := range pods(t, c) {
		if ref := metav1.GetControllerOf(&p); ref == nil || ref.Name != "web" || !strings.HasPrefix(p.Name, "web-") {
			t.Fatalf("pod %s has controller %v", p.Name, ref)
		}
	}
}

func TestDeletedPodIsReplaced(t *testing.T) {
	c := controllertest.New(t, replicaSet(2))
	start(t, c)
	controllertest.Eventually(t, func() string { return wantPods(len(pods(t, c)), 2) })
	victim := pods(t, c)[0].Name
	if err := c.Client.CoreV1().Pods("default").Delete(context.Background(), victim, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		for _, p := range pods(t, c) {
			if p.Name == victim {
				return "victim still there"
			}
		}
		return wantPods(len(pods(t, c)), 2)
	})
}

func wantPods(got, want int) string {
	if got != want {
		return fmt.Sprintf("%d pods, want %d", got, want)
	}
	return ""
}

func TestAdoptsAndReleases(t *testing.T) {
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orphan", Labels: map[string]string{"app": "web"}}}
	c := controllertest.New(t, replicaSet(1), orphan)
	start(t, c)
	controllertest.Eventually(t, func() string {
		got := pods(t, c)
		if len(got) != 1 || metav1.GetControllerOf(&got[0]) == nil {
			return fmt.Sprintf("%d pods, first controlled by %v", len(got), metav1.GetControllerOf(&got[0]))
		}
		return ""
	})
	// Relabelled, it is released and replaced.
	got := pods(t, c)[0]
	got.Labels = map[string]string{"app": "debug"}
	if _, err := c.Client.CoreV1().Pods("default").Update(context.Background(), &got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		all := pods(t, c)
		for _, p := range all {
			if p.Name == "orphan" && metav1.GetControllerOf(&p) != nil {
				return "not released"
			}
		}
		return wantPods(len(all), 2)
	})
}

func TestFailedCreateIsShownOnce(t *testing.T) {
	c := controllertest.New(t, replicaSet(50))
	c.Client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("exceeded quota")
	})
	start(t, c)
	controllertest.Eventually(t, func() string {
		s := status(t, c)
		if len(s.Conditions) != 1 || s.Conditions[0].Type != appsv1.ReplicaSetReplicaFailure ||
			s.Conditions[0].Reason != "FailedCreate" || s.Conditions[0].Message != "exceeded quota" {
			return fmt.Sprintf("conditions %+v", s.Conditions)
		}
		return ""
	})
	if got := <-c.Events.Events; got != "Warning FailedCreate Error creating: exceeded quota" {
		t.Errorf("event %q", got)
	}
}

func TestReplicationController(t *testing.T) {
	l := map[string]string{"app": "old"}
	c := controllertest.New(t, &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old"},
		Spec: corev1.ReplicationControllerSpec{Replicas: ptr.To[int32](3), Selector: l,
			Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}},
	})
	ctl, err := NewForReplicationControllers(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	controllertest.Eventually(t, func() string {
		rc, err := c.Client.CoreV1().ReplicationControllers("default").Get(context.Background(), "old", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if rc.Status.Replicas != 3 || len(rc.Spec.Selector) != 1 {
			return fmt.Sprintf("status %+v", rc.Status)
		}
		return ""
	})
	for _, p := range pods(t, c) {
		if ref := metav1.GetControllerOf(&p); ref == nil || ref.Kind != "ReplicationController" {
			t.Errorf("pod %s: controller %v", p.Name, ref)
		}
	}
}

func TestSlowStartStopsAtFirstBadBatch(t *testing.T) {
	calls := 0
	tried, err := slowStart(100, func() error { calls++; return errors.New("no") })
	if tried != 1 || calls != 1 || err == nil {
		t.Errorf("tried %d, called %d, error %v; want one call and its error", tried, calls, err)
	}
	if tried, err := slowStart(100, func() error { return nil }); tried != 100 || err != nil {
		t.Errorf("tried %d, error %v; want 100 and none", tried, err)
	}
}

func TestDecideRemovesLeastUseful(t *testing.T) {
	now := time.Now()
	pod := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
			Spec:       corev1.PodSpec{NodeName: name + "-node"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour)),
			}}},
		}
		if change != nil {
			change(p)
		}
		return p
	}
	notReady := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	for _, tc := range []struct {
		name string
		pods []*corev1.Pod
		want string
	}{
		{"unassigned", []*corev1.Pod{pod("a", notReady), pod("b", func(p *corev1.Pod) { p.Spec.NodeName = "" })}, "b"},
		{"pending", []*corev1.Pod{pod("a", notReady), pod("b", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending })}, "b"},
		{"not ready", []*corev1.Pod{pod("a", nil), pod("b", notReady)}, "b"},
		{"cheaper", []*corev1.Pod{
			pod("a", func(p *corev1.Pod) {
				p.Annotations = map[string]string{"controller.kubernetes.io/pod-deletion-cost": "10"}
			}), pod("b", nil)}, "b"},
		{"crowded node", []*corev1.Pod{pod("a", nil), pod("b", func(p *corev1.Pod) { p.Spec.NodeName = "x" }),
			pod("c", func(p *corev1.Pod) { p.Spec.NodeName = "x" })}, "b"},
		{"ready later", []*corev1.Pod{pod("a", nil), pod("b", func(p *corev1.Pod) {
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
		})}, "b"},
		{"more restarts", []*corev1.Pod{pod("a", nil), pod("b", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
		})}, "b"},
		{"younger", []*corev1.Pod{pod("a", nil), pod("b", func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute))
		})}, "b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			owner := replicaSet(int32(len(tc.pods) - 1))
			got := decide(owner, tc.pods, tc.pods, now)
			if len(got.remove) != 1 || got.remove[0].Name != tc.want || got.create != 0 {
				t.Errorf("plan %+v, want removal of %s", got, tc.want)
			}
		})
	}
}

func TestStatusCountsAndWaits(t *testing.T) {
	now := time.Now()
	owner := replicaSet(3)
	owner.Spec.MinReadySeconds = 10
	ready := func(since time.Duration) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Labels: labels.Set{"app": "web"}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue,
				LastTransitionTime: metav1.NewTime(now.Add(-since))}}},
		}
	}
	leaving := ready(time.Hour)
	leaving.DeletionTimestamp = ptr.To(metav1.NewTime(now))
	s, wait := decideStatus(owner, []*corev1.Pod{ready(time.Minute), ready(4 * time.Second), leaving}, nil, now)
	if s.Replicas != 2 || s.ReadyReplicas != 2 || s.AvailableReplicas != 1 || *s.TerminatingReplicas != 1 || wait != 6*time.Second {
		t.Errorf("status %+v, terminating %d, wait %v", s, *s.TerminatingReplicas, wait)
	}
}
