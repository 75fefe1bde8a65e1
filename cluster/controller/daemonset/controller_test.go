package daemonset

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func set(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	l := map[string]string{"app": "log"}
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "log", UID: "ds"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0))}},
			RevisionHistoryLimit: ptr.To[int32](10),
		},
	}
	for _, c := range change {
		c(ds)
	}
	return ds
}

func surge(n int32) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: ptr.To(intstr.FromInt32(n)), MaxUnavailable: ptr.To(intstr.FromInt32(0))}
	}
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}}
	for _, c := range change {
		c(n)
	}
	return n
}

func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func pod(name, node, hash string, ready bool, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "log", controller.RevisionLabel: hash}},
		Spec:       corev1.PodSpec{NodeName: node},
	}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func show(p plan) string {
	var out []string
	slices.Sort(p.create)
	for _, n := range p.create {
		out = append(out, "+"+n)
	}
	var gone []string
	for _, x := range append(p.remove, p.failed...) {
		gone = append(gone, "-"+x.Name)
	}
	slices.Sort(gone)
	return strings.Join(append(out, gone...), " ")
}

func TestDecide(t *testing.T) {
	failed := func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }
	ending := func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
	for _, tc := range []struct {
		name  string
		set   *appsv1.DaemonSet
		nodes []*corev1.Node
		pods  []*corev1.Pod
		want  string
	}{
		{"one on each", set(), []*corev1.Node{node("a"), node("b")}, nil, "+a +b"},
		{"missing one", set(), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "h", true)}, "+b"},
		{"taints", set(), []*corev1.Node{node("a", taint("k", corev1.TaintEffectNoSchedule)), node("b", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)),
			node("c", taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute))}, nil, "+b +c"},
		{"NoSchedule lets stay, NoExecute does not", set(), []*corev1.Node{node("a", taint("k", corev1.TaintEffectNoSchedule)), node("b", taint("k", corev1.TaintEffectNoExecute))},
			[]*corev1.Pod{pod("x", "a", "h", true), pod("y", "b", "h", true)}, "-y"},
		{"node selector", set(func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": "b"}
		}), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "h", true)}, "+b -x"},
		{"two on one node", set(), []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", "a", "h", true), pod("y", "a", "h", true)}, "-y"},
		{"failed", set(), []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", "a", "h", false, failed)}, "-x"},
		{"ending", set(), []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", "a", "h", false, ending)}, ""},
		{"waiting for a node that is gone", set(), nil, []*corev1.Pod{pod("x", "", "h", false, func(p *corev1.Pod) { pin(&p.Spec, "gone") })}, "-x"},
		{"update one at a time", set(), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "old", true), pod("y", "b", "old", true)}, "-x"},
		{"update waits for the new one", set(), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "h", false), pod("y", "b", "old", true)}, ""},
		{"update replaces broken ones at once", set(), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "old", false), pod("y", "b", "old", false)}, "-x -y"},
		{"no update on delete", set(func(ds *appsv1.DaemonSet) { ds.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType }),
			[]*corev1.Node{node("a")}, []*corev1.Pod{pod("x", "a", "old", true)}, ""},
		{"surge adds first", set(surge(1)), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "old", true), pod("y", "b", "old", true)}, "+a"},
		{"surge waits", set(surge(1)), []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", "a", "old", true), pod("n", "a", "h", false), pod("y", "b", "old", true)}, ""},
		{"surge removes the old one", set(surge(1)), []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", "a", "old", true), pod("n", "a", "h", true)}, "-x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(decide(input{set: tc.set, nodes: tc.nodes, pods: tc.pods, hash: "h", now: time.Now()})); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	in := input{set: set(), hash: "h", now: time.Now(), nodes: []*corev1.Node{node("a"), node("b"), node("c"), node("d", taint("k", corev1.TaintEffectNoSchedule))},
		pods: []*corev1.Pod{pod("x", "a", "h", true), pod("y", "b", "old", false), pod("z", "d", "h", true)}}
	s, _ := decideStatus(in)
	if s.DesiredNumberScheduled != 3 || s.CurrentNumberScheduled != 2 || s.NumberMisscheduled != 1 || s.NumberReady != 1 ||
		s.UpdatedNumberScheduled != 1 || s.NumberAvailable != 1 || s.NumberUnavailable != 2 {
		t.Errorf("status %+v", s)
	}
}

func TestRollsAndGoesBack(t *testing.T) {
	ctx := context.Background()
	objs := []runtime.Object{set()}
	for i := range 3 {
		objs = append(objs, node(fmt.Sprint("n", i)))
	}
	c := controllertest.New(t, objs...)
	c.RunPods(t, time.Millisecond, nil)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	rolled := func(image string, nodes int32) func() string {
		return func() string {
			ds, err := c.Client.AppsV1().DaemonSets("default").Get(ctx, "log", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			s := ds.Status
			if s.ObservedGeneration != ds.Generation || s.UpdatedNumberScheduled != nodes || s.NumberAvailable != nodes || s.DesiredNumberScheduled != nodes {
				return fmt.Sprintf("status %+v", s)
			}
			pods, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
			if err != nil {
				return err.Error()
			}
			for _, p := range pods.Items {
				if p.Spec.Containers[0].Image != image {
					return p.Spec.Containers[0].Image
				}
			}
			if len(pods.Items) != int(nodes) {
				return fmt.Sprintf("%d pods", len(pods.Items))
			}
			return ""
		}
	}
	controllertest.Eventually(t, rolled("v1", 3))
	setImage := func(image string) {
		data, _ := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []map[string]any{{"name": "c", "image": image}}}}}})
		if _, err := c.Client.AppsV1().DaemonSets("default").Patch(ctx, "log", types.StrategicMergePatchType, data, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	setImage("v2")
	controllertest.Eventually(t, rolled("v2", 3))
	setImage("v1")
	controllertest.Eventually(t, rolled("v1", 3))
	revisions, err := c.Client.AppsV1().ControllerRevisions("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(revisions.Items) != 2 {
		t.Errorf("%d revisions, want 2", len(revisions.Items))
	}
	for _, r := range revisions.Items {
		template, err := controller.TemplateOf(&r)
		if err != nil {
			t.Fatal(err)
		}
		if image := template.Spec.Containers[0].Image; (image == "v1") != (r.Revision == 3) || (image == "v2") != (r.Revision == 2) {
			t.Errorf("revision %d has image %s", r.Revision, image)
		}
	}
	if _, err := c.Client.CoreV1().Nodes().Create(ctx, node("n3"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		ds, err := c.Client.AppsV1().DaemonSets("default").Get(ctx, "log", metav1.GetOptions{})
		if err != nil || ds.Status.DesiredNumberScheduled != 4 || ds.Status.NumberAvailable != 4 {
			return fmt.Sprintf("%v, %v", err, ds)
		}
		return ""
	})
	c.Settles(t, 100*time.Millisecond)
}

func TestBackoff(t *testing.T) {
	b := newBackoff()
	now := time.Now()
	if w := b.wait("k", now); w != 0 {
		t.Errorf("first failure waits %v", w)
	}
	if w := b.wait("k", now); w != time.Second {
		t.Errorf("second failure waits %v", w)
	}
	if w := b.wait("k", now.Add(time.Second)); w != 0 {
		t.Errorf("after the wait: %v", w)
	}
	if w := b.wait("k", now.Add(time.Second)); w != 2*time.Second {
		t.Errorf("third failure waits %v", w)
	}
}
