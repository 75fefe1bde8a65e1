package runtime

import (
	"testing"
)

func TestSmoke(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	t.Log(e.output(s, e.sh("id; hostname; ps; cat /proc/self/cgroup; grep -E 'Seccomp|NoNew|CapEff' /proc/self/status; ls /; ls /sys/fs/cgroup/memory; cat /proc/mounts; ip a")))
}
