package pod

import (
	"maps"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestSysctls(t *testing.T) {
	s, err := ParseSysctls([]string{"net.core.somaxconn", "kernel.msg*"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		net, ipc bool
		want     string
	}{
		{"net.ipv4.tcp_syncookies", false, false, ""},
		{"net/ipv4/tcp_syncookies", false, false, ""},
		{"net.ipv4.tcp_syncookies", true, false, `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		{"kernel.shm_rmid_forced", true, false, ""},
		{"kernel.shm_rmid_forced", false, true, `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		{"net.core.somaxconn", false, false, ""},
		{"net.core.rmem_max", false, false, `forbidden sysctl: "net.core.rmem_max" not allowlisted`},
		{"kernel.msgmax", false, false, ""},
		{"kernel/msgmnb", false, false, ""},
		{"kernel.shmmax", false, false, `forbidden sysctl: "kernel.shmmax" not allowlisted`},
		{"vm.swappiness", false, false, `forbidden sysctl: "vm.swappiness" not allowlisted`},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{HostNetwork: tc.net, HostIPC: tc.ipc, SecurityContext: &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: tc.name, Value: "1"}}}}}
		if _, got := s.admit(p); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, bad := range []string{"", "vm.swappiness", "*", "kernel.*", "net core", "net.*.x"} {
		if _, err := ParseSysctls([]string{bad}); err == nil || !strings.Contains(err.Error(), `"`+bad+`"`) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"net.*", "kernel.sem", "kernel.shm*", "fs.mqueue.*", "net/core/somaxconn"} {
		if _, err := ParseSysctls([]string{good}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestPodSysctls(t *testing.T) {
	asked := func(host bool, list ...v1.Sysctl) map[string]string {
		return podSysctls(&v1.PodSpec{HostNetwork: host, SecurityContext: &v1.PodSecurityContext{Sysctls: list}})
	}
	own := v1.Sysctl{Name: "net/ipv4/ip_unprivileged_port_start", Value: "1024"}
	for _, tc := range []struct{ got, want map[string]string }{
		{podSysctls(&v1.PodSpec{}), map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}},
		{asked(false, own), map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "net.ipv4.ping_group_range": "0 2147483647"}},
		{asked(true, v1.Sysctl{Name: "kernel.shm_rmid_forced", Value: "1"}), map[string]string{"kernel.shm_rmid_forced": "1"}},
		{podSysctls(&v1.PodSpec{HostNetwork: true}), map[string]string{}},
	} {
		if !maps.Equal(tc.got, tc.want) {
			t.Errorf("%v, want %v", tc.got, tc.want)
		}
	}
}

// Who is nobody may serve on port 80 of his own pod.
func TestRealLowPort(t *testing.T) {
	w := realWorld(t)
	w.add(w.pod("low", func(p *v1.Pod) {
		script(p, `trap 'exit 0' TERM; busybox nc -l -p 80 & until busybox netstat -ltn | grep -q ":80 "; do sleep 0.1; done; echo "serves as $(id -u)"; while :; do sleep 0.1; done`)
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsUser: ptr.To(int64(1000)), AllowPrivilegeEscalation: ptr.To(false),
			Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}}}
	}))
	w.eventually("it serves", func() bool { return strings.Contains(w.log("uid-low", "low"), "serves as 1000") })
	w.remove("low", 5)
}
