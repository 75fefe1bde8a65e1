package podspec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

func TestPodResize(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for name, v := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
			if v != "" {
				l[name] = resource.MustParse(v)
			}
		}
		return l
	}
	old := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "once", Image: "i"}, {Name: "side", Image: "i", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}},
		Containers: []corev1.Container{
			{Name: "a", Image: "i", Resources: corev1.ResourceRequirements{Requests: list("100m", "10Mi"), Limits: list("", "20Mi")}},
			{Name: "b", Image: "i"},
		}}}
	old.Name, old.Namespace = "p", "default"
	SetPodDefaults(old)
	old.Status.QOSClass = QOS(old)
	for _, tc := range []struct {
		name, want string
		before     func(*corev1.Pod)
		change     func(*corev1.Pod)
	}{
		{"cpu and memory up", "", nil, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list("200m", "20Mi"), Limits: list("1", "30Mi")}
		}},
		{"resources where there were none", "", nil, func(p *corev1.Pod) { p.Spec.Containers[1].Resources.Requests = list("1", "") }},
		{"init containers", "", nil, func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Resources.Requests = list("1", "")
			p.Spec.InitContainers[1].Resources.Requests = list("1", "")
		}},
		{"of the pod as a whole", "", nil, func(p *corev1.Pod) { p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("2", "50Mi")} }},
		{"another class", "Pod QOS Class may not change as a result of resizing", nil, func(p *corev1.Pod) {
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].Resources = corev1.ResourceRequirements{Requests: list("1", "20Mi"), Limits: list("1", "20Mi")}
			}
			for i := range p.Spec.InitContainers {
				p.Spec.InitContainers[i].Resources = p.Spec.Containers[0].Resources
			}
		}},
		{"a request removed", "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed", nil,
			func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list("100m", "") }},
		{"a limit removed", "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed", nil,
			func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits = nil }},
		{"request above limit", "must be less than or equal to memory limit of 20Mi", nil,
			func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list("100m", "30Mi") }},
		{"disk space", "only cpu and memory resources are mutable", nil,
			func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests[corev1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
			}},
		{"the policy", "only cpu and memory resources are mutable", nil, func(p *corev1.Pod) {
			p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
		}},
		{"a container less", "containers may not be added or removed on resize", nil, func(p *corev1.Pod) { p.Spec.Containers = p.Spec.Containers[:1] }},
		{"another order", "containers may not be renamed or reordered on resize", nil,
			func(p *corev1.Pod) {
				p.Spec.Containers[0], p.Spec.Containers[1] = p.Spec.Containers[1], p.Spec.Containers[0]
			}},
		{"static", "static pods cannot be resized", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }, func(*corev1.Pod) {}},
		{"on a node that reports nothing", "without support for resize", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		}, func(*corev1.Pod) {}},
		{"of the whole, removed", "pod-level resources cannot be removed", func(p *corev1.Pod) { p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("2", "50Mi")} },
			func(p *corev1.Pod) { p.Spec.Resources = nil }},
		{"of the whole, one removed", "spec.resources.requests: Forbidden: pod-level resource requests cannot be removed",
			func(p *corev1.Pod) { p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("2", "50Mi")} },
			func(p *corev1.Pod) { delete(p.Spec.Resources.Requests, "cpu") }},
		{"once, with a restart", "non-sidecar init containers with a resize policy of RestartContainer", func(p *corev1.Pod) {
			p.Spec.InitContainers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
		}, func(p *corev1.Pod) { p.Spec.InitContainers[0].Resources.Requests = list("1", "") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := old.DeepCopy()
			if tc.before != nil {
				tc.before(before)
			}
			p := before.DeepCopy()
			tc.change(p)
			got := ValidatePodResize(p, before).ToAggregate()
			if tc.want == "" && got != nil || tc.want != "" && (got == nil || !strings.Contains(got.Error(), tc.want)) {
				t.Errorf("%v, want %q", got, tc.want)
			}
		})
	}
}
