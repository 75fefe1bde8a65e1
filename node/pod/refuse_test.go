package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSELinuxLabelsAreRefusedWhereTheyMeanSomething(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{
		SecurityContext: &v1.PodSecurityContext{SELinuxOptions: &v1.SELinuxOptions{Level: "s0:c0,c1"}},
		Containers:      []v1.Container{{Name: "c", SecurityContext: &v1.SecurityContext{SELinuxOptions: &v1.SELinuxOptions{Type: "spc_t"}}}},
	}}
	if errs := refused(p, false); len(errs) != 0 {
		t.Errorf("without SELinux: %v", errs)
	}
	if errs := refused(p, true); len(errs) != 2 {
		t.Errorf("with SELinux: %v", errs)
	}
}

// AppArmor is refused by the field and by the annotation that was there before it.
func TestAppArmorIsRefused(t *testing.T) {
	const key = "container.apparmor.security.beta.kubernetes.io/c"
	for _, tc := range []struct {
		annotation string
		field      v1.AppArmorProfileType
		refused    bool
	}{
		{"unconfined", v1.AppArmorProfileTypeUnconfined, false},
		{"runtime/default", v1.AppArmorProfileTypeRuntimeDefault, true},
		{"localhost/x", v1.AppArmorProfileTypeLocalhost, true},
	} {
		annotated := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{key: tc.annotation, "x/y": "localhost/x"}}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
		plain := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", SecurityContext: &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: tc.field}}}}}}
		for where, p := range map[string]*v1.Pod{"metadata.annotations[" + key + "]": annotated, "spec.containers[0].securityContext.appArmorProfile": plain} {
			errs := refused(p, false)
			if tc.refused && (len(errs) != 1 || errs[0].Error() != where+": Forbidden: AppArmor is not supported") || !tc.refused && len(errs) > 0 {
				t.Errorf("%s %s: %v", where, tc.annotation, errs)
			}
		}
	}
}
