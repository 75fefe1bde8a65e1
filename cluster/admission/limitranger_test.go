package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/utils/ptr"
)

func limits(item corev1.LimitRangeItem) []corev1.LimitRange {
	return []corev1.LimitRange{{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}}}}
}

// A claim that is too large for limits of today has to be able to go: its
// finalizers are removed by an update.
func TestLimitsLetClaimsGo(t *testing.T) {
	o := usual()
	o.limits = limits(corev1.LimitRangeItem{Type: corev1.LimitTypePersistentVolumeClaim, Max: corev1.ResourceList{"storage": resource.MustParse("1Gi")}})
	old := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", Finalizers: []string{claimProtection}}}
	old.Spec.Resources.Requests = corev1.ResourceList{"storage": resource.MustParse("2Gi")}
	now := old.DeepCopy()
	now.Finalizers = nil
	update := func() error {
		return run(t, o, admin, admission.Update, "persistentvolumeclaims", "", "ns", "c", now, old)
	}
	if err := update(); err == nil || !strings.Contains(err.Error(), "maximum storage usage per PersistentVolumeClaim is 1Gi") {
		t.Errorf("a claim that stays: %v", err)
	}
	old.DeletionTimestamp = ptr.To(metav1.Now())
	if err := update(); err != nil {
		t.Errorf("a claim that goes: %v", err)
	}
}

// What a runtime class adds to a pod does not count against its limits.
func TestLimitsOfPodsLeaveOverheadOut(t *testing.T) {
	cpu := func(s string) corev1.ResourceList { return corev1.ResourceList{"cpu": resource.MustParse(s)} }
	o := usual()
	o.classes = []nodev1.RuntimeClass{{ObjectMeta: metav1.ObjectMeta{Name: "kata"}, Handler: "kata", Overhead: &nodev1.Overhead{PodFixed: cpu("500m")}}}
	o.limits = limits(corev1.LimitRangeItem{Type: corev1.LimitTypePod, Max: cpu("1")})
	for _, tc := range []struct{ limit, want string }{
		{"1", ""},
		{"1100m", "maximum cpu usage per Pod is 1, but limit is 1100m"},
	} {
		p := pod(func(p *corev1.Pod) {
			p.Spec.RuntimeClassName = ptr.To("kata")
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: cpu(tc.limit), Limits: cpu(tc.limit)}
		})
		err := createPod(t, o, p)
		if p.Spec.Overhead.Cpu().String() != "500m" || tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q; overhead %v", tc.limit, err, tc.want, p.Spec.Overhead)
		}
	}
}
