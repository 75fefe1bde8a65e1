package disruption

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func budget(change func(*policyv1.PodDisruptionBudgetSpec)) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", Generation: 1},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	change(&b.Spec)
	return b
}

func atLeast(v intstr.IntOrString) func(*policyv1.PodDisruptionBudgetSpec) {
	return func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable = &v }
}

func atMost(v intstr.IntOrString) func(*policyv1.PodDisruptionBudgetSpec) {
	return func(s *policyv1.PodDisruptionBudgetSpec) { s.MaxUnavailable = &v }
}

func pod(n int, ready bool, owner *metav1.OwnerReference) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("web-%d", n), Labels: map[string]string{"app": "web"}}}
	if owner != nil {
		p.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

func TestDecide(t *testing.T) {
	five := func([]*corev1.Pod) (int32, error) { return 5, nil }
	none := func([]*corev1.Pod) (int32, error) { return 0, errors.New("no owner") }
	for _, tc := range []struct {
		name           string
		spec           func(*policyv1.PodDisruptionBudgetSpec)
		scale          func([]*corev1.Pod) (int32, error)
		ready, unready int
		want           string // allowed of healthy, desired, expected
		reason         string
	}{
		{"a number of pods", atLeast(intstr.FromInt32(2)), none, 3, 1, "1 of 3, 2, 4", policyv1.SufficientPodsReason},
		{"just enough", atLeast(intstr.FromInt32(3)), none, 3, 0, "0 of 3, 3, 3", policyv1.InsufficientPodsReason},
		{"too few", atLeast(intstr.FromInt32(3)), none, 1, 2, "0 of 1, 3, 3", policyv1.InsufficientPodsReason},
		{"no pods", atLeast(intstr.FromInt32(0)), none, 0, 0, "0 of 0, 0, 0", policyv1.InsufficientPodsReason},
		{"a share is rounded up", atLeast(intstr.FromString("50%")), five, 5, 0, "2 of 5, 3, 5", policyv1.SufficientPodsReason},
		{"one may be missing", atMost(intstr.FromInt32(1)), five, 5, 0, "1 of 5, 4, 5", policyv1.SufficientPodsReason},
		{"one may be missing, and is", atMost(intstr.FromInt32(1)), five, 4, 0, "0 of 4, 4, 5", policyv1.InsufficientPodsReason},
		{"a share may be missing", atMost(intstr.FromString("30%")), five, 5, 0, "2 of 5, 3, 5", policyv1.SufficientPodsReason},
		{"all may be missing", atMost(intstr.FromInt32(9)), five, 5, 0, "5 of 5, 0, 5", policyv1.SufficientPodsReason},
		{"unknown owner", atMost(intstr.FromInt32(1)), none, 5, 0, "0 of 0, 0, 0", policyv1.SyncFailedReason},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input{budget: budget(tc.spec), scale: tc.scale, now: time.Now()}
			for n := range tc.ready + tc.unready {
				in.pods = append(in.pods, pod(n, n < tc.ready, nil))
			}
			out, err := decide(in)
			s := out.status
			if got := fmt.Sprintf("%d of %d, %d, %d", s.DisruptionsAllowed, s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			if s.Conditions[0].Reason != tc.reason || (err != nil) != (tc.reason == policyv1.SyncFailedReason) {
				t.Errorf("condition %+v, error %v", s.Conditions[0], err)
			}
		})
	}
}

func TestEvictedPodsCountUntilTheyStay(t *testing.T) {
	now := time.Now()
	b := budget(atLeast(intstr.FromInt32(1)))
	b.Status.DisruptedPods = map[string]metav1.Time{
		"web-0": metav1.NewTime(now.Add(-time.Minute)), "web-1": metav1.NewTime(now.Add(-time.Hour)), "gone": metav1.NewTime(now)}
	in := input{budget: b, pods: []*corev1.Pod{pod(0, true, nil), pod(1, true, nil), pod(2, true, nil)}, now: now}
	deleted := metav1.NewTime(now)
	in.pods[2].DeletionTimestamp = &deleted
	out, err := decide(in)
	if err != nil {
		t.Fatal(err)
	}
	if _, kept := out.status.DisruptedPods["web-0"]; !kept || len(out.status.DisruptedPods) != 1 || out.status.CurrentHealthy != 1 {
		t.Errorf("status %+v", out.status)
	}
	if len(out.stayed) != 1 || out.stayed[0].Name != "web-1" || out.again < 59*time.Second || out.again > time.Minute {
		t.Errorf("stayed %v, again in %v", out.stayed, out.again)
	}
}

func TestFollowsPodsAndOwners(t *testing.T) {
	ctx := context.Background()
	ref := func(kind, name string) *metav1.OwnerReference {
		return &metav1.OwnerReference{APIVersion: "apps/v1", Kind: kind, Name: name, UID: types.UID("uid-" + name), Controller: ptr.To(true)}
	}
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rs", UID: "uid-rs", OwnerReferences: []metav1.OwnerReference{*ref("Deployment", "d")}},
		Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](2)}}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "d", UID: "uid-d"}, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](4)}}
	c := controllertest.New(t, d, rs, budget(atMost(intstr.FromInt32(2))), pod(0, true, ref("ReplicaSet", "rs")), pod(1, true, ref("ReplicaSet", "rs")))
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	status := func(want string) {
		t.Helper()
		controllertest.Eventually(t, func() string {
			b, err := c.Client.PolicyV1().PodDisruptionBudgets("ns").Get(ctx, "b", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			s := b.Status
			if got := fmt.Sprintf("%d of %d, %d, %d", s.DisruptionsAllowed, s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods); got != want || s.ObservedGeneration != b.Generation {
				return fmt.Sprintf("%s, generation %d of %d", got, s.ObservedGeneration, b.Generation)
			}
			return ""
		})
	}
	status("0 of 2, 2, 4")
	if _, err := c.Client.CoreV1().Pods("ns").Create(ctx, pod(2, true, ref("ReplicaSet", "rs")), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	status("1 of 3, 2, 4")
	if _, err := c.Client.CoreV1().Pods("ns").Update(ctx, pod(0, false, ref("ReplicaSet", "rs")), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	status("0 of 2, 2, 4")
	if err := c.Client.CoreV1().Pods("ns").Delete(ctx, "web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	status("0 of 1, 2, 4")
	c.Settles(t, 100*time.Millisecond)
}

func TestConfigIsChecked(t *testing.T) {
	c := controllertest.New(t)
	c.Config.Client = nil
	if _, err := New(c.Config); err == nil {
		t.Error("accepted without a client")
	}
}
