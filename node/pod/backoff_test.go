package pod

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

func TestCrashLoopBackOff(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "running", isRunning)
	box := w.rt.box("uid-a")
	box.exit("c", 3)
	p := w.await("a", "restarted at once", func(p *v1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last state %+v", last)
	}
	box.exit("c", 3)
	p = w.await("a", "backing off", func(p *v1.Pod) bool {
		s := p.Status.ContainerStatuses[0].State.Waiting
		return s != nil && s.Reason == "CrashLoopBackOff"
	})
	if msg := p.Status.ContainerStatuses[0].State.Waiting.Message; msg != "back-off 10s restarting failed container=c pod=a_default(uid-a)" {
		t.Errorf("message %q", msg)
	}
	if isReady(p) || p.Status.Phase != v1.PodRunning {
		t.Errorf("phase %s", p.Status.Phase)
	}
	if !w.said("Warning BackOff Back-off restarting failed container c in pod a_default(uid-a)") {
		t.Error("no event")
	}
	w.pass(11 * time.Second)
	w.await("a", "restarted after the delay", func(p *v1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 2 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	box.exit("c", 137, func(c *runtime.ContainerStatus) { c.OOMKilled = true })
	w.await("a", "OOMKilled", func(p *v1.Pod) bool {
		l := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
		return l != nil && l.Reason == "OOMKilled" && l.ExitCode == 137
	})
}

// A new image is tried at once, whatever became of the one before: a container
// that crashed, a pull that goes on.
func TestNewImageStartsAtOnce(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	defer close(block)
	w.images.pull = func(string) (*image.Image, error) { <-block; return nil, image.ErrNotFound }
	w.add(w.pod("a"))
	w.await("a", "running", isRunning)
	box := w.rt.box("uid-a")
	for range 2 {
		restarts := w.get("a").Status.ContainerStatuses[0].RestartCount
		box.exit("c", 3)
		w.await("a", "noticed", func(p *v1.Pod) bool {
			s := p.Status.ContainerStatuses[0]
			return s.RestartCount > restarts && s.State.Running != nil || s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff"
		})
	}
	w.change("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "slow" })
	w.eventually("pulling without a delay", func() bool { return w.said("Pulling image \"slow\"") })
	w.change("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "app" })
	p := w.await("a", "running again", func(p *v1.Pod) bool {
		s := p.Status.ContainerStatuses[0]
		return s.RestartCount == 2 && s.State.Running != nil
	})
	if p.Status.ContainerStatuses[0].Image != "docker.io/library/app:latest" {
		t.Errorf("image %q", p.Status.ContainerStatuses[0].Image)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Unix(1e9, 0)
	var got []string
	for range 7 {
		got = append(got, b.wait(now, now).String())
		now = now.Add(b.wait(now, now))
		b.next(now, now)
	}
	if s := strings.Join(got, " "); s != "0s 10s 20s 40s 1m20s 2m40s 5m0s" {
		t.Error(s)
	}
	if d := b.wait(now.Add(11*time.Minute), now.Add(11*time.Minute)); d != 0 {
		t.Errorf("after eleven quiet minutes still %s", d)
	}
}
