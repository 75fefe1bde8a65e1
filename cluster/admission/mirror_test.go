package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
)

func TestNodeCreatesMirrorPods(t *testing.T) {
	yes := true
	mirror := func(change ...func(*corev1.Pod)) *corev1.Pod {
		p := pod(func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "abc"}
			p.Spec.NodeName = "n1"
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node-uid", Controller: &yes}}
		})
		for _, f := range change {
			f(p)
		}
		return p
	}
	agent := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	for _, c := range []struct {
		name, want string
		change     func(*corev1.Pod)
	}{
		{"as it should be", "", func(*corev1.Pod) {}},
		{"of another node", "with spec.nodeName set to itself", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }},
		{"without owner", "with a single owner reference set to itself", func(p *corev1.Pod) { p.OwnerReferences = nil }},
		{"two owners", "with a single owner reference set to itself", func(p *corev1.Pod) { p.OwnerReferences = append(p.OwnerReferences, p.OwnerReferences[0]) }},
		{"owned by a Deployment", "with an owner reference set to itself", func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Deployment" }},
		{"owned by another node", "with an owner reference set to itself", func(p *corev1.Pod) { p.OwnerReferences[0].Name = "n2" }},
		{"not its controller", "with a controller owner reference set to itself", func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil }},
		{"keeps the Node", "must not set blockOwnerDeletion", func(p *corev1.Pod) { p.OwnerReferences[0].BlockOwnerDeletion = &yes }},
		{"of the Node before", "UID mismatch: expected old got node-uid", func(p *corev1.Pod) { p.OwnerReferences[0].UID = "old" }},
		{"with an account", "can not create pods that reference a service account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "default" }},
		{"with a secret", "can not create pods that reference secrets", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := usual()
			o.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}}
			p := mirror(c.change)
			err := run(t, o, agent, admission.Create, "pods", "", "ns", "p", p, nil)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
