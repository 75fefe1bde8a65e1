package nodelifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func node(ready corev1.ConditionStatus, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if ready != "" {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func show(taints []corev1.Taint) string {
	var out []string
	for _, t := range taints {
		out = append(out, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestDecideTaints(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tc := range []struct {
		name string
		node *corev1.Node
		want string
	}{
		{"ready", node(corev1.ConditionTrue), ""},
		{"never reported", node(""), "not-ready:NoSchedule"},
		{"not ready", node(corev1.ConditionFalse), "not-ready:NoExecute not-ready:NoSchedule"},
		{"unknown", node(corev1.ConditionUnknown), "unreachable:NoExecute unreachable:NoSchedule"},
		{"ready again", node(corev1.ConditionTrue, func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute}, {Key: "mine", Effect: corev1.TaintEffectNoSchedule}}
		}), "mine:NoSchedule"},
		{"cordoned under pressure", node(corev1.ConditionTrue, func(n *corev1.Node) {
			n.Spec.Unschedulable = true
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue},
				corev1.NodeCondition{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse})
		}), "disk-pressure:NoSchedule unschedulable:NoSchedule"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(decideTaints(tc.node, now, true)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	// The time since when a taint holds survives.
	first := decideTaints(node(corev1.ConditionFalse), now, true)
	again := decideTaints(node(corev1.ConditionFalse, func(n *corev1.Node) { n.Spec.Taints = first }), now.Add(time.Hour), true)
	for _, taint := range again {
		if taint.Effect == corev1.TaintEffectNoExecute && !taint.TimeAdded.Time.Equal(now) {
			t.Errorf("taint %s since %v, want %v", taint.Key, taint.TimeAdded, now)
		}
	}
}

func TestEvictAt(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	taint := func(key string, added int64) corev1.Taint {
		return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute, TimeAdded: ptr.To(metav1.NewTime(at(added)))}
	}
	tolerate := func(key string, seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
	}
	for _, tc := range []struct {
		name        string
		created     int64
		tolerations []corev1.Toleration
		taints      []corev1.Taint
		want        int64 // 0: stays
	}{
		{"no taints", 10, nil, nil, 0},
		{"not tolerated", 10, nil, []corev1.Taint{taint("a", 100)}, 100},
		{"tolerated for ever", 10, []corev1.Toleration{tolerate("a", nil)}, []corev1.Taint{taint("a", 100)}, 0},
		{"tolerated for a while", 10, []corev1.Toleration{tolerate("a", ptr.To[int64](300))}, []corev1.Taint{taint("a", 100)}, 400},
		{"younger than the taint", 200, []corev1.Toleration{tolerate("a", ptr.To[int64](300))}, []corev1.Taint{taint("a", 100)}, 500},
		{"shortest of several", 10, []corev1.Toleration{tolerate("a", ptr.To[int64](300)), tolerate("", ptr.To[int64](30))}, []corev1.Taint{taint("a", 100)}, 130},
		{"first of two taints", 10, []corev1.Toleration{tolerate("a", ptr.To[int64](300)), tolerate("b", ptr.To[int64](10))}, []corev1.Taint{taint("a", 100), taint("b", 200)}, 210},
		{"negative", 10, []corev1.Toleration{tolerate("a", ptr.To[int64](-1))}, []corev1.Taint{taint("a", 100)}, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(at(tc.created))}, Spec: corev1.PodSpec{Tolerations: tc.tolerations}}
			got, evict := evictAt(pod, tc.taints)
			if evict != (tc.want != 0) || evict && got.Unix() != tc.want {
				t.Errorf("got %v, %v; want %d", got.Unix(), evict, tc.want)
			}
		})
	}
}

func TestUnreachableNodeLosesItsPods(t *testing.T) {
	ctx := context.Background()
	pod := func(name string, tolerations ...corev1.Toleration) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:   corev1.PodSpec{NodeName: "n", Tolerations: tolerations},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	}
	always := corev1.Toleration{Operator: corev1.TolerationOpExists}
	oneSecond := corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](1)}
	other := func(name string) func(*corev1.Node) { return func(n *corev1.Node) { n.Name = name } }
	c := controllertest.New(t, node(corev1.ConditionTrue), node(corev1.ConditionTrue, other("m")), pod("stays", always), pod("leaves", oneSecond))
	ctl, err := New(Config{Config: c.Config})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	c.Quiet(t, 50*time.Millisecond)
	n, err := c.Client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Conditions[0].Status = corev1.ConditionUnknown
	if _, err := c.Client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		p, err := c.Client.CoreV1().Pods("default").Get(ctx, "stays", metav1.GetOptions{})
		if err != nil || p.Status.Conditions[0].Status != corev1.ConditionFalse {
			return fmt.Sprintf("pod not taken out of service: %v", err)
		}
		return ""
	})
	controllertest.Eventually(t, func() string {
		if _, err := c.Client.CoreV1().Pods("default").Get(ctx, "leaves", metav1.GetOptions{}); err == nil {
			return "not evicted"
		}
		return ""
	})
	if _, err := c.Client.CoreV1().Pods("default").Get(ctx, "stays", metav1.GetOptions{}); err != nil {
		t.Errorf("pod that tolerates everything: %v", err)
	}
	c.Settles(t, 50*time.Millisecond)
}
