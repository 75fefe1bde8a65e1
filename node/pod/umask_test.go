package pod

import (
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// Whatever the umask is with which skiff was started, containers of any user read
// what is theirs.
func TestRealUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	w := realWorld(t)
	w.add(w.pod("mask", func(p *v1.Pod) {
		script(p, `trap 'exit 0' TERM; for f in /etc/hosts /etc/resolv.conf /etc/hostname /dev/null; do test -r $f || echo "no $f"; done
			test -w /dev/null || echo no-null; ls / >/dev/null || echo no-root
			test -d /dev/shm && touch /dev/shm/x || echo no-shm; echo seen > /dev/termination-log; umask; echo done; while :; do sleep 0.1; done`)
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsUser: ptr.To(int64(1000))}
	}))
	w.eventually("done", func() bool { return strings.Contains(w.log("uid-mask", "mask"), "done\n") })
	if got := w.log("uid-mask", "mask"); !strings.Contains(got, " 0022\n") || strings.Contains(got, "no") || strings.Contains(got, "denied") {
		t.Error(got)
	}
	w.remove("mask", 5)
}
