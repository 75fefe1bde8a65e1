package pod

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

func TestTerminationGraceAndHooks(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{
			PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"hello"}}},
			PreStop:   &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"bye"}}}}
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Image: "app"})
	}))
	w.await("a", "ready", isReady)
	box := w.rt.box("uid-a")
	if got := box.asked(); got != "start c, exec hello, start d" {
		t.Error(got)
	}
	box.mu.Lock()
	box.signal = func(c runtime.ContainerStatus, sig syscall.Signal) { // c ignores it
		if c.Name == "d" {
			go box.exit("d", 0)
		}
	}
	box.mu.Unlock()
	w.remove("a", 30)
	w.eventually("asked to stop", func() bool { return strings.Contains(box.asked(), "terminated c") })
	p := w.await("a", "d has ended", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[1].State.Terminated != nil })
	if p.Status.ContainerStatuses[0].State.Running == nil {
		t.Error("c was killed before its grace was over")
	}
	w.pass(31 * time.Second)
	w.eventually("killed and deleted", func() bool { return w.get("a") == nil })
	got := box.asked()
	if !strings.Contains(got, "exec bye") || !strings.Contains(got, "killed c") || strings.Index(got, "exec bye") > strings.Index(got, "terminated c") {
		t.Error(got)
	}
	if !w.said("Normal Killing Stopping container c") {
		t.Error("no event")
	}
}

func TestForceDeletion(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "running", isRunning)
	if err := w.client.CoreV1().Pods("default").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.m.Remove("uid-a")
	w.eventually("gone", func() bool { return w.rt.box("uid-a") == nil && len(w.m.Views()) == 0 })
}

// A preStop hook that never ends takes the whole grace period; the container
// gets its signal and two seconds more.
func TestEndlessHookLeavesTimeForTheSignal(t *testing.T) {
	w := newWorld(t)
	p := w.pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"bye"}}}}
	})
	end := make(chan struct{})
	defer close(end)
	w.rt.boxes["uid-a"] = &fakeSandbox{r: w.rt, exec: func([]string) int { <-end; return 0 }, signal: func(runtime.ContainerStatus, syscall.Signal) {}}
	w.add(p)
	w.await("a", "ready", isReady)
	w.hold()
	w.remove("a", 5)
	box := w.rt.box("uid-a")
	w.eventually("the hook runs", func() bool { return strings.Contains(box.asked(), "exec bye") })
	w.pass(5 * time.Second)
	w.eventually("asked to stop", func() bool { return strings.Contains(box.asked(), "terminated c") })
	w.pass(time.Second)
	for range 2 { // the second look is after the first, which takes no time away
		looked := make(chan struct{})
		w.m.workers["uid-a"].post(func() { close(looked) })
		<-looked
	}
	if strings.Contains(box.asked(), "killed c") {
		t.Error("killed as soon as it got its signal")
	}
	w.pass(time.Second)
	w.eventually("killed", func() bool { return strings.Contains(box.asked(), "killed c") })
}

// A signal that could not be sent is sent again, not forgotten until SIGKILL.
func TestSignalIsSentAgain(t *testing.T) {
	w := newWorld(t)
	w.runtime = deafRuntime{w.rt}
	w.stop()
	w.start(nil)
	w.add(w.pod("a"))
	w.await("a", "ready", isReady)
	box := w.rt.box("uid-a")
	w.remove("a", 600)
	w.eventually("it ends", func() bool { return w.get("a") == nil })
	if got := box.asked(); got != "start c, terminated c, exit c" {
		t.Error(got)
	}
}

// deafRuntime's sandboxes do not get the first signal.
type deafRuntime struct{ *fakeRuntime }

func (r deafRuntime) CreateSandbox(ctx context.Context, c runtime.SandboxConfig) (Sandbox, error) {
	s, err := r.fakeRuntime.CreateSandbox(ctx, c)
	return &deafSandbox{Sandbox: s}, err
}

type deafSandbox struct {
	Sandbox
	heard bool
}

func (s *deafSandbox) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	if !s.heard {
		s.heard = true
		return context.Canceled
	}
	return s.Sandbox.Signal(ctx, id, sig)
}
