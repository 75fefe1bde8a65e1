package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestAdmission(t *testing.T) {
	w := newWorld(t)
	w.node = &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"disk": "ssd"}}}
	cpu := func(q string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(q)}
			p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80}}
		}
	}
	w.add(w.pod("a", cpu("1500m")))
	w.await("a", "running", isRunning)
	w.add(w.pod("b", cpu("600m")))
	p := w.await("b", "rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != "OutOfcpu" || p.Status.Message != "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000" {
		t.Errorf("%+v", p.Status)
	}
	w.add(w.pod("c", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }))
	w.add(w.pod("d", func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} }))
	w.add(w.pod("e", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{v1.LabelOSStable: "windows"} }))
	port := func(p *v1.Pod) { // of a sidecar
		p.Spec.InitContainers = []v1.Container{sidecar("s", func(c *v1.Container) { c.Ports = []v1.ContainerPort{{ContainerPort: 81, HostPort: 81}} })}
	}
	w.add(w.pod("f", port))
	w.await("f", "running", isRunning)
	w.add(w.pod("g", port))
	for name, reason := range map[string]string{"c": "NodeAffinity", "d": "PodOSNotSupported", "e": "PodOSSelectorNodeLabelDoesNotMatch", "g": "NodePorts"} {
		if p = w.await(name, "rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }); p.Status.Reason != reason {
			t.Errorf("%+v", p.Status)
		}
	}
	w.node = w.node.DeepCopy()
	w.node.Spec.Taints = []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoExecute}, {Key: "l", Effect: v1.TaintEffectNoSchedule}}
	w.add(w.pod("h"))
	p = w.await("h", "rejected", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != "TaintToleration" || p.Status.Message != "Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate" {
		t.Errorf("%+v", p.Status)
	}
	w.add(w.pod("i", func(p *v1.Pod) {
		p.Spec.Tolerations = []v1.Toleration{{Key: "k", Operator: v1.TolerationOpExists, TolerationSeconds: ptr.To[int64](1)}}
	}))
	w.await("i", "running", isRunning)
}
