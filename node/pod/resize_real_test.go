package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

// limitOf reads the memory limit of a cgroup, of whichever version it is.
func limitOf(t *testing.T, cgroup string) string {
	t.Helper()
	for _, f := range []string{filepath.Join("/sys/fs/cgroup/memory", cgroup, "memory.limit_in_bytes"), filepath.Join("/sys/fs/cgroup", cgroup, "memory.max")} {
		if b, err := os.ReadFile(f); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatalf("cgroup %s has no memory limit", cgroup)
	return ""
}

// TestRealResize changes the limits of a process that uses memory, across agents.
func TestRealResize(t *testing.T) {
	w := realWorld(t)
	memory := func(s string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: amounts("100m", ""), Limits: amounts("", s)}
		}
	}
	w.add(w.pod("a", memory("128Mi"), func(p *v1.Pod) {
		p.Generation = 1
		script(p, `x=$(head -c 20000000 /dev/zero | tr "\0" a); echo ready > /tmp/ready; while :; do sleep 1; done`)
		p.Spec.Containers[0].ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"cat", "/tmp/ready"}}}, PeriodSeconds: 1, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 3}
	}))
	w.await("a", "ready", isReady)
	cgroups := func() (pod, container string) {
		v, err := w.m.Find("default", "a", "")
		if err != nil {
			t.Fatal(err)
		}
		box := v.Sandbox.(*runtime.Sandbox)
		st, _ := box.Container(v.Containers["c"].ID)
		return box.CgroupPath(), st.CgroupPath
	}
	pod, ctr := cgroups()
	if !strings.Contains(pod, "/burstable/") || limitOf(t, pod) != "134217728" || limitOf(t, ctr) != "134217728" {
		t.Fatalf("cgroup %s has %s, %s has %s", pod, limitOf(t, pod), ctr, limitOf(t, ctr))
	}
	limited := func(bytes string) {
		t.Helper()
		if limitOf(t, pod) != bytes || limitOf(t, ctr) != bytes {
			t.Errorf("limits %s and %s, want %s", limitOf(t, pod), limitOf(t, ctr), bytes)
		}
	}
	done := func(p *v1.Pod) bool {
		return p.Status.ObservedGeneration == p.Generation && findCondition(p, v1.PodResizePending) == nil && findCondition(p, v1.PodResizeInProgress) == nil
	}
	w.change("a", memory("192Mi"))
	w.await("a", "larger", done)
	limited("201326592")
	w.change("a", memory("4Mi"))
	w.await("a", "too small", func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizeInProgress)
		return c != nil && c.Reason == v1.PodReasonError && strings.Contains(c.Message, "memory limit (4194304) below current usage")
	})
	limited("201326592")
	w.stop()
	p := w.get("a")
	w.start([]*v1.Pod{p})
	w.await("a", "still too small", func(p *v1.Pod) bool { return findCondition(p, v1.PodResizeInProgress) != nil })
	w.change("a", memory("64Mi"))
	p = w.await("a", "smaller", done)
	limited("67108864")
	if s := p.Status.ContainerStatuses[0]; s.RestartCount != 0 || s.Resources.Limits.Memory().String() != "64Mi" || !isReady(p) {
		t.Errorf("%+v", s)
	}
	w.remove("a", 0)
	w.eventually("it is gone", func() bool { return w.get("a") == nil })
}
