package deployment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func deploymentOf(replicas int32, surge, unavailable string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: ptr.To(intstr.Parse(surge)), MaxUnavailable: ptr.To(intstr.Parse(unavailable))}},
		},
	}
}

// set makes a ReplicaSet; age orders them, higher is younger.
func set(name string, replicas, available int32, age int) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(age), 0)), Annotations: map[string]string{}},
		Spec:       appsv1.ReplicaSetSpec{Replicas: ptr.To(replicas)},
		Status:     appsv1.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: available, AvailableReplicas: available},
	}
}

func show(steps []step) string {
	var out []string
	for _, s := range steps {
		out = append(out, fmt.Sprintf("%s:%d", s.rs.Name, s.to))
	}
	return strings.Join(out, " ")
}

func TestFenceposts(t *testing.T) {
	for _, tc := range []struct {
		replicas           int32
		surge, unavailable string
		wantS, wantU       int32
	}{
		{10, "25%", "25%", 3, 2}, {1, "25%", "25%", 1, 0}, {10, "0", "0", 0, 1}, {4, "0%", "10%", 0, 1}, {10, "2", "100%", 2, 10},
	} {
		if s, u := fenceposts(deploymentOf(tc.replicas, tc.surge, tc.unavailable)); s != tc.wantS || u != tc.wantU {
			t.Errorf("%d replicas, %s/%s: %d/%d, want %d/%d", tc.replicas, tc.surge, tc.unavailable, s, u, tc.wantS, tc.wantU)
		}
	}
}

func TestGrowNew(t *testing.T) {
	for _, tc := range []struct {
		name               string
		replicas           int32
		surge, unavailable string
		newer, old         int32
		want               int32
	}{
		{"first", 10, "25%", "25%", 0, 10, 3},
		{"no old ones", 10, "25%", "25%", 0, 0, 10},
		{"no room", 10, "25%", "25%", 3, 10, 3},
		{"room after old went", 10, "25%", "25%", 3, 6, 7},
		{"never beyond the goal", 10, "100%", "0", 8, 2, 10},
		{"too large", 5, "1", "0", 7, 0, 5},
		{"no surge waits for old", 3, "0", "1", 0, 3, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newer := set("new", tc.newer, tc.newer, 2)
			s, ok := growNew(deploymentOf(tc.replicas, tc.surge, tc.unavailable), newer, []*appsv1.ReplicaSet{set("old", tc.old, tc.old, 1)})
			got := tc.newer
			if ok {
				got = s.to
			}
			if got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func TestShrinkOld(t *testing.T) {
	for _, tc := range []struct {
		name  string
		d     *appsv1.Deployment
		newer *appsv1.ReplicaSet
		old   []*appsv1.ReplicaSet
		want  string
	}{
		{"new not ready: maxUnavailable at once", deploymentOf(10, "25%", "25%"), set("new", 3, 0, 9), []*appsv1.ReplicaSet{set("a", 10, 10, 1)}, "a:8"},
		{"nothing may be missing", deploymentOf(10, "1", "0"), set("new", 1, 0, 9), []*appsv1.ReplicaSet{set("a", 10, 10, 1)}, ""},
		{"one for one", deploymentOf(10, "1", "0"), set("new", 1, 1, 9), []*appsv1.ReplicaSet{set("a", 10, 10, 1)}, "a:9"},
		{"broken ones first", deploymentOf(10, "25%", "25%"), set("new", 3, 0, 9), []*appsv1.ReplicaSet{set("a", 8, 8, 1), set("b", 2, 0, 2)}, "b:0"},
		{"done", deploymentOf(10, "1", "0"), set("new", 10, 10, 9), []*appsv1.ReplicaSet{set("a", 0, 0, 1)}, ""},
		{"last ones", deploymentOf(3, "1", "0"), set("new", 3, 3, 9), []*appsv1.ReplicaSet{set("a", 1, 1, 1)}, "a:0"},
		{"status behind its size", deploymentOf(10, "0", "2"), set("new", 2, 2, 9), []*appsv1.ReplicaSet{set("a", 8, 10, 1)}, "a:6"},
		{"oldest first", deploymentOf(4, "4", "0"), set("new", 4, 2, 9), []*appsv1.ReplicaSet{set("b", 2, 2, 2), set("a", 2, 2, 1)}, "a:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(shrinkOld(tc.d, tc.newer, tc.old)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestProportional(t *testing.T) {
	with := func(rs *appsv1.ReplicaSet, desired, most string) *appsv1.ReplicaSet {
		rs.Annotations[desiredKey], rs.Annotations[maxKey] = desired, most
		return rs
	}
	for _, tc := range []struct {
		name  string
		d     *appsv1.Deployment
		newer *appsv1.ReplicaSet
		old   []*appsv1.ReplicaSet
		want  string
	}{
		{"one active", deploymentOf(5, "1", "0"), set("new", 3, 3, 9), []*appsv1.ReplicaSet{set("a", 0, 0, 1)}, "new:5"},
		{"none active takes the new one", deploymentOf(5, "1", "0"), set("new", 0, 0, 9), nil, "new:5"},
		{"none active, no new one: latest", deploymentOf(5, "1", "0"), nil, []*appsv1.ReplicaSet{set("a", 0, 0, 1), set("b", 0, 0, 2)}, "b:5"},
		{"grow in proportion", deploymentOf(15, "3", "2"), with(set("new", 5, 0, 9), "10", "13"), []*appsv1.ReplicaSet{with(set("a", 8, 8, 1), "10", "13")}, "a:11 new:7"},
		{"shrink in proportion", deploymentOf(5, "3", "2"), with(set("new", 5, 0, 9), "10", "13"), []*appsv1.ReplicaSet{with(set("a", 8, 8, 1), "10", "13")}, "a:5 new:3"},
		{"to zero", deploymentOf(0, "25%", "25%"), with(set("new", 5, 0, 9), "10", "13"), []*appsv1.ReplicaSet{with(set("a", 8, 8, 1), "10", "13")}, "a:0 new:0"},
		{"new one saturated", deploymentOf(5, "1", "0"), with(set("new", 5, 5, 9), "5", "6"), []*appsv1.ReplicaSet{with(set("a", 1, 1, 1), "5", "6")}, "a:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(proportional(tc.d, tc.newer, tc.old)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	now := time.Unix(1000, 0)
	d := deploymentOf(4, "1", "1")
	d.Generation = 2
	d.Spec.ProgressDeadlineSeconds = ptr.To[int32](10)
	reason := func(s appsv1.DeploymentStatus, ct appsv1.DeploymentConditionType) string {
		if c := condition(s.Conditions, ct); c != nil {
			return string(c.Status) + " " + c.Reason
		}
		return ""
	}
	step := func(newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, at time.Time) appsv1.DeploymentStatus {
		s := decideStatus(d, newer, old, at)
		judgeProgress(d, &s, newer, old, at)
		d.Status = s
		return s
	}
	s := step(set("new", 2, 0, 2), []*appsv1.ReplicaSet{set("old", 3, 3, 1)}, now)
	if s.Replicas != 5 || s.UpdatedReplicas != 2 || s.AvailableReplicas != 3 || s.UnavailableReplicas != 2 || s.ObservedGeneration != 2 {
		t.Errorf("status %+v", s)
	}
	if got := reason(s, appsv1.DeploymentAvailable); got != "True MinimumReplicasAvailable" {
		t.Errorf("Available: %s", got)
	}
	if got := reason(s, appsv1.DeploymentProgressing); got != "True ReplicaSetUpdated" {
		t.Errorf("Progressing: %s", got)
	}
	if w := deadlineIn(d, &s, now.Add(4*time.Second)); w != 7*time.Second {
		t.Errorf("deadline in %v, want 6 s and a second", w)
	}
	s = step(set("new", 2, 0, 2), []*appsv1.ReplicaSet{set("old", 2, 2, 1)}, now.Add(5*time.Second))
	if got := reason(s, appsv1.DeploymentAvailable); got != "False MinimumReplicasUnavailable" {
		t.Errorf("Available: %s", got)
	}
	s = step(set("new", 2, 0, 2), []*appsv1.ReplicaSet{set("old", 2, 2, 1)}, now.Add(16*time.Second))
	if got := reason(s, appsv1.DeploymentProgressing); got != "False ProgressDeadlineExceeded" {
		t.Errorf("Progressing: %s", got)
	}
	failing := set("new", 2, 0, 2)
	failing.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate"}}
	s = step(failing, nil, now.Add(17*time.Second))
	if got := reason(s, appsv1.DeploymentReplicaFailure); got != "True FailedCreate" {
		t.Errorf("ReplicaFailure: %s", got)
	}
	s = step(set("new", 4, 4, 2), nil, now.Add(18*time.Second))
	if got := reason(s, appsv1.DeploymentProgressing) + reason(s, appsv1.DeploymentReplicaFailure); got != "True NewReplicaSetAvailable" {
		t.Errorf("at the end: %s", got)
	}
}

func TestTemplateHash(t *testing.T) {
	a := corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}
	b := *a.DeepCopy()
	b.Spec.Containers[0].Image = "v2"
	hash := func(t_ corev1.PodTemplateSpec, n *int32) string {
		h, err := templateHash(&t_, n)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	// A literal: pods and ReplicaSets of running clusters carry it.
	if got := hash(a, nil); got != "f5665f6c6" {
		t.Errorf("hash %q; it must not change between releases", got)
	}
	if hash(a, nil) == hash(b, nil) || hash(a, nil) == hash(a, ptr.To[int32](1)) {
		t.Error("different templates or collision counts share a hash")
	}
	labelled := *a.DeepCopy()
	labelled.Labels = map[string]string{hashLabel: "x"}
	if !sameTemplate(&a, &labelled) || sameTemplate(&a, &b) {
		t.Error("templates compared wrongly")
	}
}

func TestPastRevisions(t *testing.T) {
	list := ""
	for i := range 1000 {
		list = addPast(list, fmt.Sprint(i))
	}
	if len(list) > 2000 || !strings.HasSuffix(list, ",999") || strings.HasPrefix(list, "0,") {
		t.Errorf("%d bytes, ends %q", len(list), list[len(list)-8:])
	}
}
