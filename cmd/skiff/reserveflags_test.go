package main

import (
	"strings"
	"testing"
)

func TestReserveFlags(t *testing.T) {
	address := []string{"--advertise-address", "192.0.2.1"}
	o, err := parsed(t, append(address, "--kube-reserved", "cpu=100m,memory=1Gi", "--system-reserved", "memory=512Mi", "--system-reserved", "pid=1000")...)
	if err != nil {
		t.Fatal(err)
	}
	if r := o.reserved; len(r) != 3 || r.Cpu().String() != "100m" || r.Memory().String() != "1536Mi" {
		t.Errorf("%v", r)
	}
	for _, tc := range []struct{ flag, value, want string }{
		{"--kube-reserved", "disk=1Gi", `--kube-reserved "disk=1Gi": want cpu, memory, ephemeral-storage or pid`},
		{"--system-reserved", "cpu", `--system-reserved "cpu": want a quantity`},
		{"--system-reserved", "cpu=-1", `--system-reserved "cpu=-1": want a quantity`},
		{"--kube-reserved", "cpu=1,cpu=2", "--kube-reserved: cpu is there twice"},
	} {
		if _, err := parsed(t, append(address, tc.flag, tc.value)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v", tc.flag, tc.value, err)
		}
	}
}
