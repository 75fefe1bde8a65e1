package statefulset

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func set(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	l := map[string]string{"app": "db"}
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "set"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To(replicas), ServiceName: "peers", Selector: &metav1.LabelSelector{MatchLabels: l},
			Template:            corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}},
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](0)}},
			RevisionHistoryLimit: ptr.To[int32](10),
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
func partition(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
}

func revision(hash string) *appsv1.ControllerRevision {
	return &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: "db-" + hash, Labels: map[string]string{controller.RevisionLabel: hash}}}
}

// pods reads "0:new 1:old! 2:new~": ! is not ready, ~ is ending, # has failed.
func pods(text string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, f := range strings.Fields(text) {
		n, rest, _ := strings.Cut(f, ":")
		hash := strings.TrimRight(rest, "!~#")
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-" + n, Labels: map[string]string{controller.RevisionLabel: "db-" + hash}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		if !strings.Contains(rest, "!") {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if strings.Contains(rest, "~") {
			now := metav1.Now()
			p.DeletionTimestamp = &now
		}
		if strings.Contains(rest, "#") {
			p.Status.Phase = corev1.PodFailed
		}
		out = append(out, p)
	}
	return out
}

func show(p plan) string {
	var out []string
	for _, n := range p.create {
		out = append(out, fmt.Sprintf("+%d:%s", n.ordinal, n.revision.Labels[controller.RevisionLabel]))
	}
	for _, pod := range append(p.remove, p.failed...) {
		out = append(out, "-"+strings.TrimPrefix(pod.Name, "db-"))
	}
	return strings.Join(out, " ")
}

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  *appsv1.StatefulSet
		pods string
		want string
	}{
		{"first one first", set(3), "", "+0:new"},
		{"waits for the first", set(3), "0:new!", ""},
		{"then the next", set(3), "0:new", "+1:new"},
		{"fills a gap", set(3), "0:new 2:new", "+1:new"},
		{"waits for one that ends", set(3), "0:new 1:new~ 2:new", ""},
		{"failed is removed", set(2), "0:new# 1:new", "-0"},
		{"last one goes first", set(1), "0:new 1:new 2:new", "-2"},
		{"one goes at a time", set(1), "0:new 1:new 2:new~", ""},
		{"shrinking waits for the rest to be ready", set(1), "0:new! 1:new", ""},
		{"parallel makes all", set(3, parallel), "1:new!", "+0:new +2:new"},
		{"parallel removes all", set(1, parallel), "0:new 1:new 2:new", "-2 -1"},
		{"update from the end", set(3), "0:old 1:old 2:old", "-2"},
		{"update waits", set(3), "0:old 1:old 2:new!", ""},
		{"update goes on", set(3), "0:old 1:old 2:new", "-1"},
		{"update stops at the partition", set(3, partition(2)), "0:old 1:old 2:new", ""},
		{"below the partition the old one comes back", set(3, partition(2)), "0:old 2:new", "+1:old"},
		{"updated and complete", set(3), "0:new 1:new 2:new", ""},
		{"on delete", set(2, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType }), "0:old 1:old", ""},
		{"two may be missing", set(4, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt32(2))
		}), "0:old 1:old 2:old 3:old", "-3 -2"},
		{"parallel update counts what is missing", set(3, parallel), "0:old 1:old 2:old!", "-2"},
		{"ordinals start elsewhere", set(2, func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5} }), "5:new", "+6:new"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(decide(input{set: tc.set, pods: pods(tc.pods), current: revision("old"), update: revision("new"), now: time.Now()})); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	in := input{set: set(3), pods: pods("0:old 1:old 2:new!"), current: revision("old"), update: revision("new"), now: time.Now()}
	s, _ := decideStatus(in)
	if s.Replicas != 3 || s.ReadyReplicas != 2 || s.AvailableReplicas != 2 || s.CurrentReplicas != 2 || s.UpdatedReplicas != 1 || s.CurrentRevision != "db-old" || s.UpdateRevision != "db-new" {
		t.Errorf("on the way: %+v", s)
	}
	in.pods = pods("0:new 1:new 2:new")
	if s, _ = decideStatus(in); s.CurrentRevision != "db-new" || s.CurrentReplicas != 3 {
		t.Errorf("at the end: %+v", s)
	}
}

func TestParse(t *testing.T) {
	for name, want := range map[string]int{"db-0": 0, "a-b-12": 12, "db": -1, "db-01": -1, "db-x": -1, "db--1": 1} {
		_, n, ok := parse(name)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("parse(%q) = %d, %v", name, n, ok)
		}
	}
}

func TestComesUpInOrderRollsAndShrinks(t *testing.T) {
	ctx := context.Background()
	c := controllertest.New(t, set(3, func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	}))
	c.RunPods(t, time.Millisecond, nil)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	rolled := func(image string, n int32) func() string {
		return func() string {
			s, err := c.Client.AppsV1().StatefulSets("default").Get(ctx, "db", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			st := s.Status
			if st.ObservedGeneration != s.Generation || st.UpdatedReplicas != n || st.ReadyReplicas != n || st.Replicas != n || st.CurrentRevision != st.UpdateRevision {
				return fmt.Sprintf("status %+v", st)
			}
			list, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
			if err != nil || len(list.Items) != int(n) {
				return fmt.Sprintf("%d pods, %v", len(list.Items), err)
			}
			for i, p := range list.Items {
				name := fmt.Sprintf("db-%d", i)
				if p.Name != name || p.Spec.Hostname != name || p.Spec.Subdomain != "peers" || p.Labels["apps.kubernetes.io/pod-index"] != fmt.Sprint(i) ||
					p.Spec.Containers[0].Image != image || p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-"+name {
					return fmt.Sprintf("pod %s: %+v", p.Name, p.Spec)
				}
			}
			return ""
		}
	}
	controllertest.Eventually(t, rolled("v1", 3))
	patch := func(spec map[string]any) {
		data, _ := json.Marshal(map[string]any{"spec": spec})
		if _, err := c.Client.AppsV1().StatefulSets("default").Patch(ctx, "db", types.StrategicMergePatchType, data, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch(map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []map[string]any{{"name": "c", "image": "v2"}}}}})
	controllertest.Eventually(t, rolled("v2", 3))
	patch(map[string]any{"replicas": 1})
	controllertest.Eventually(t, rolled("v2", 1))
	claims, err := c.Client.CoreV1().PersistentVolumeClaims("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(claims.Items) != 3 {
		t.Errorf("%d claims, %v; all must outlive their pods", len(claims.Items), err)
	}
	c.Settles(t, 100*time.Millisecond)
}
