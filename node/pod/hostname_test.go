package pod

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHostname(t *testing.T) {
	yes, override := true, "my.host.example"
	long := strings.Repeat("x", 60)
	for _, tc := range []struct {
		name      string
		spec      v1.PodSpec
		want, bad string
	}{
		{"p", v1.PodSpec{}, "p", ""},
		{"p", v1.PodSpec{Hostname: "h"}, "h", ""},
		{"p", v1.PodSpec{Hostname: "h", Subdomain: "s"}, "h", ""},
		{"p", v1.PodSpec{Hostname: "h", Subdomain: "s", SetHostnameAsFQDN: &yes}, "h.s.ns.svc.cluster.local", ""},
		{"p", v1.PodSpec{SetHostnameAsFQDN: &yes}, "p", ""},
		{"p", v1.PodSpec{Hostname: "h", HostnameOverride: &override}, override, ""},
		{long + "-abc-" + long, v1.PodSpec{}, long + "-ab", ""},
		{long + "---" + long, v1.PodSpec{}, long, ""},
		{long, v1.PodSpec{Subdomain: "s", SetHostnameAsFQDN: &yes}, long + ".s.ns.svc.cluster.local", "is too long (64 characters is the max, 83 characters requested)"},
		{long, v1.PodSpec{Subdomain: "s", SetHostnameAsFQDN: &yes, HostNetwork: true}, long + ".s.ns.svc.cluster.local", ""},
	} {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: tc.name}, Spec: tc.spec}
		if got := hostname(p, "cluster.local"); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
		if err := checkHostname(p, "cluster.local"); tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
			t.Errorf("%s: %v", tc.want, err)
		}
	}
}
