package admission

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
)

// A pod learns from its labels in which zone and region it runs.
func TestPodsGetTheZoneOfTheirNode(t *testing.T) {
	o := usual()
	o.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{
		corev1.LabelTopologyZone: "a", corev1.LabelTopologyRegion: "eu", corev1.LabelHostname: "n1"}}}
	want := map[string]string{corev1.LabelTopologyZone: "a", corev1.LabelTopologyRegion: "eu"}
	for _, tc := range []struct {
		kind, node string
		want       map[string]string
	}{{"Node", "n1", want}, {"Node", "n2", nil}, {"Pod", "n1", nil}} {
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Target: corev1.ObjectReference{Kind: tc.kind, Name: tc.node}}
		if err := run(t, o, admin, admission.Create, "pods", "binding", "ns", "p", b, nil); err != nil || !maps.Equal(b.Labels, tc.want) {
			t.Errorf("binding to %s %s: %v, %v; want %v", tc.kind, tc.node, b.Labels, err, tc.want)
		}
	}
	for node, want := range map[string]map[string]string{"n1": want, "": nil} {
		p := pod(func(p *corev1.Pod) { p.Spec.NodeName = node })
		if err := createPod(t, o, p); err != nil || !maps.Equal(p.Labels, want) {
			t.Errorf("pod on node %q: %v, %v; want %v", node, p.Labels, err, want)
		}
	}
}
