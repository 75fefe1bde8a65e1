package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestPressedNodesTakeOnlyWhatTheyMust(t *testing.T) {
	memory, disk := v1.NodeMemoryPressure, v1.NodeDiskPressure
	burstable := func(p *v1.Pod) {
		p.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Mi")}}}}
	}
	for _, tc := range []struct {
		name  string
		conds []v1.NodeConditionType
		pod   func(*v1.Pod)
		want  string
	}{
		{"nothing", nil, func(*v1.Pod) {}, ""},
		{"memory, best effort", []v1.NodeConditionType{memory}, func(*v1.Pod) {}, "The node had condition: [MemoryPressure]. "},
		{"memory, burstable", []v1.NodeConditionType{memory}, burstable, ""},
		{"memory, tolerated", []v1.NodeConditionType{memory}, func(p *v1.Pod) {
			p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}}
		}, ""},
		{"memory, another taint tolerated", []v1.NodeConditionType{memory}, func(p *v1.Pod) {
			p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeDiskPressure, Operator: v1.TolerationOpExists}}
		}, "The node had condition: [MemoryPressure]. "},
		{"disk, burstable", []v1.NodeConditionType{disk}, burstable, "The node had condition: [DiskPressure]. "},
		{"both", []v1.NodeConditionType{disk, memory}, burstable, "The node had condition: [DiskPressure MemoryPressure]. "},
		{"disk, critical", []v1.NodeConditionType{disk}, func(p *v1.Pod) { p.Spec.Priority = ptr.To[int32](2_000_000_000) }, ""},
		{"disk, static", []v1.NodeConditionType{disk}, func(p *v1.Pod) {
			p.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
		}, ""},
		{"disk, mirror", []v1.NodeConditionType{disk}, func(p *v1.Pod) { p.Annotations = map[string]string{v1.MirrorPodAnnotationKey: "x"} }, ""},
	} {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
		tc.pod(p)
		reason, got := pressed(p, tc.conds)
		if got != tc.want || (reason == Evicted) != (tc.want != "") {
			t.Errorf("%s: %q %q, want %q", tc.name, reason, got, tc.want)
		}
	}
}
