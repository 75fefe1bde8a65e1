package podspec

import (
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// isSignal tells whether s is one of the signals the API knows by name; real
// time signals count from either end.
func isSignal(s corev1.Signal) bool {
	name := string(s)
	for _, prefix := range []string{"SIGRTMIN+", "SIGRTMAX-"} {
		if n, ok := strings.CutPrefix(name, prefix); ok {
			return isInt32(n) && n >= "1" && len(n) <= 2
		}
	}
	return name == "SIGRTMIN" || name == "SIGRTMAX" || unix.SignalNum(name) != 0
}
