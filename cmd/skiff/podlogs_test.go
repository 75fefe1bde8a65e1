package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestPodLogDir(t *testing.T) {
	here, err := filepath.Abs("x")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args          []string
		want, refused string
	}{
		{nil, "/var/log/pods", ""},
		{[]string{"--data-dir", "/var/lib/skiff/"}, "/var/log/pods", ""},
		{[]string{"--data-dir", "/srv/skiff"}, "", ""},
		{[]string{"--pod-log-dir", "/var/lib/skiff/node/logs"}, "", ""},
		{[]string{"--data-dir", "/srv/skiff", "--pod-log-dir", "/srv/skiff/node/logs/"}, "", ""},
		{[]string{"--data-dir", "/srv/skiff", "--pod-log-dir", "/srv/log/pods"}, "/srv/log/pods", ""},
		{[]string{"--pod-log-dir", "x"}, here, ""},
		{[]string{"--pod-log-dir", "/var/lib/skiff/node/pods"}, "", `--pod-log-dir "/var/lib/skiff/node/pods": is in the data directory`},
		{[]string{"--pod-log-dir", "/var/lib/skiff"}, "", "is in the data directory"},
		{[]string{"--pod-log-dir", "/var/lib"}, "", `--pod-log-dir "/var/lib": want a folder that does not hold the data directory`},
		{[]string{"--pod-log-dir", "/"}, "", `--pod-log-dir "/"`},
	} {
		o, err := parsed(t, append([]string{"--advertise-address", "192.0.2.1"}, tc.args...)...)
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%v: %v, want %q", tc.args, err, tc.refused)
			}
			continue
		}
		if err != nil || o.podLogDir != tc.want {
			t.Errorf("%v: %q, %v; want %q", tc.args, o.podLogDir, err, tc.want)
		}
	}
}
