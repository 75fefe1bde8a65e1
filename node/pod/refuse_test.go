package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
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
