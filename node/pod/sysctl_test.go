package pod

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
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
