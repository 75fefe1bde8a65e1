package pod

import (
	"context"
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

// debug adds an ephemeral container to a pod, as its subresource does.
func (w *world) debug(name string, e v1.EphemeralContainer) {
	w.t.Helper()
	p := w.get(name).DeepCopy()
	p.Generation++
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, e)
	p, err := w.client.CoreV1().Pods(p.Namespace).Update(context.Background(), p, metav1.UpdateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m.Update(p)
}

func debugger(name string, change ...func(*v1.EphemeralContainer)) v1.EphemeralContainer {
	e := v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
	for _, f := range change {
		f(&e)
	}
	return e
}

// ephemeral is the status of an ephemeral container; nil without one.
func ephemeral(p *v1.Pod, name string) *v1.ContainerStatus {
	for i := range p.Status.EphemeralContainerStatuses {
		if s := &p.Status.EphemeralContainerStatuses[i]; s.Name == name {
			return s
		}
	}
	return nil
}

func debugs(name string) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool { s := ephemeral(p, name); return s != nil && s.State.Running != nil }
}

func ended(name string) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool { s := ephemeral(p, name); return s != nil && s.State.Terminated != nil }
}

func (s *fakeSandbox) config(name string) (c runtime.ContainerConfig, started int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, have := range s.cfgs {
		if have.Name == name {
			c = have
			started++
		}
	}
	return c, started
}

func TestEphemeralContainerRunsOnceInAPodThatRuns(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	w.debug("a", debugger("look", func(e *v1.EphemeralContainer) { e.TargetContainerName, e.Stdin, e.TTY = "c", true, true }))
	p := w.await("a", "is looked at", debugs("look"))
	box := w.rt.box("uid-a")
	app, _ := box.config("c")
	look, n := box.config("look")
	if look.TargetID != app.ID || n != 1 || !look.TTY || !look.Stdin {
		t.Errorf("started %d times: %+v", n, look)
	}
	if s := ephemeral(p, "look"); s.Ready || s.Started != nil || s.RestartCount != 0 || s.ContainerID != "skiff://"+look.ID || !isReady(p) || p.Status.ObservedGeneration != p.Generation {
		t.Errorf("status %+v", s)
	}
	if v, err := w.m.Find("default", "a", ""); err != nil || !v.Containers["look"].Running || !v.Containers["look"].TTY {
		t.Errorf("view %+v, %v", v, err)
	}
	for _, e := range []string{"Normal Created", "Normal Started"} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
	box.exit("look", 3)
	p = w.await("a", "was looked at", ended("look"))
	if s := ephemeral(p, "look"); s.State.Terminated.ExitCode != 3 || s.RestartCount != 0 || !isReady(p) || !isRunning(p) {
		t.Errorf("status %+v", s)
	}
	w.debug("a", debugger("again"))
	w.await("a", "is looked at again", debugs("again"))
	w.pass(backoffMax * 2)
	if _, n := box.config("look"); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	w.remove("a", 30)
	w.eventually("the object is deleted", func() bool { return w.get("a") == nil })
	if got := box.asked(); !strings.Contains(got, "exit again") {
		t.Errorf("asked of the runtime: %s", got)
	}
}

func TestEphemeralContainerWaitsForItsTargetAndImage(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "none", v1.PullNever
	}))
	w.await("a", "waits", func(p *v1.Pod) bool { return len(p.Status.ContainerStatuses) > 0 })
	w.debug("a", debugger("look", func(e *v1.EphemeralContainer) { e.TargetContainerName = "c" }))
	w.debug("a", debugger("noimage", func(e *v1.EphemeralContainer) { e.Image, e.ImagePullPolicy = "none", v1.PullNever }))
	w.debug("a", debugger("refused", func(e *v1.EphemeralContainer) {
		e.SecurityContext = &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}}
	}))
	w.debug("a", debugger("free"))
	// A pod whose own containers do not start can be looked at.
	p := w.await("a", "is looked at", debugs("free"))
	for name, want := range map[string][2]string{
		"look":    {"CreateContainerConfigError", "unable to find target container c"},
		"noimage": {"ErrImageNeverPull", `Container image "none" is not present with pull policy of Never`},
		"refused": {"CreateContainerConfigError", "spec.ephemeralContainers[2].securityContext.appArmorProfile: Forbidden: AppArmor is not supported"},
	} {
		s := ephemeral(p, name)
		if s == nil || s.State.Waiting == nil || s.State.Waiting.Reason != want[0] || s.State.Waiting.Message != want[1] {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if !w.said("Warning Failed Error: unable to find target container c") {
		t.Errorf("events %q", w.told)
	}
	img, _ := w.images.Get("app")
	w.images.mu.Lock()
	w.images.images["none"] = img
	w.images.mu.Unlock()
	w.pass(2 * backoffInitial)
	w.await("a", "the target runs, and is looked at", debugs("look"))
	w.await("a", "the image is there", debugs("noimage"))
}

func TestEphemeralContainerThatCannotStartEnds(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	box := w.rt.box("uid-a")
	tries := 0
	box.mu.Lock()
	box.start = func(c runtime.ContainerConfig) error {
		if c.Name == "look" {
			tries++
			return errors.New("no such file")
		}
		return nil
	}
	box.mu.Unlock()
	w.debug("a", debugger("look"))
	p := w.await("a", "look has ended", ended("look"))
	w.pass(backoffMax * 2)
	w.debug("a", debugger("other"))
	w.await("a", "is looked at", debugs("other"))
	box.mu.Lock()
	defer box.mu.Unlock()
	if s := ephemeral(p, "look").State.Terminated; s.Reason != "StartError" || tries != 1 {
		t.Errorf("%+v after %d tries", s, tries)
	}
}

func TestEphemeralContainersOverARestartOfTheAgent(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	w.debug("a", debugger("ends"))
	w.debug("a", debugger("stays"))
	w.await("a", "is looked at", debugs("ends"))
	before := ephemeral(w.await("a", "is looked at", debugs("stays")), "stays").ContainerID
	w.stop()
	box := w.rt.box("uid-a")
	box.exit("ends", 4)
	w.start([]*v1.Pod{w.get("a")})
	p := w.await("a", "the end was noticed", ended("ends"))
	if s := ephemeral(p, "ends"); s.State.Terminated.ExitCode != 4 {
		t.Errorf("%+v", s)
	}
	if s := ephemeral(p, "stays"); s.State.Running == nil || s.ContainerID != before {
		t.Errorf("%+v", s)
	}

	// The machine starts anew: the pod's containers start again, these do not.
	w.stop()
	w.rt.mu.Lock()
	delete(w.rt.boxes, "uid-a")
	w.rt.mu.Unlock()
	w.start([]*v1.Pod{w.get("a")})
	p = w.await("a", "runs again", func(p *v1.Pod) bool { return isReady(p) && ended("stays")(p) })
	if s := ephemeral(p, "stays").State.Terminated; s.Reason != "ContainerStatusUnknown" || s.ExitCode != 137 || s.ContainerID != before {
		t.Errorf("%+v", s)
	}
	if s := ephemeral(p, "ends").State.Terminated; s == nil || s.ExitCode != 4 {
		t.Errorf("%+v", s)
	}
	if p.Status.ContainerStatuses[0].RestartCount != 1 {
		t.Errorf("%+v", p.Status.ContainerStatuses[0])
	}
}

func TestEphemeralContainerEndsWithItsSandbox(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	w.debug("a", debugger("look"))
	w.await("a", "is looked at", debugs("look"))
	w.rt.box("uid-a").die()
	p := w.await("a", "runs again", func(p *v1.Pod) bool {
		return isReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1
	})
	if s := ephemeral(p, "look"); s.State.Terminated == nil || s.State.Terminated.ExitCode != 137 || s.RestartCount != 0 {
		t.Errorf("%+v", s)
	}
	if _, n := w.rt.box("uid-a").config("look"); n != 0 {
		t.Errorf("it was started again")
	}
}

func TestEphemeralContainersObjectsAreHeld(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	w.debug("a", debugger("look", func(e *v1.EphemeralContainer) {
		e.EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}}}}
	}))
	w.await("a", "look waits", func(p *v1.Pod) bool {
		s := ephemeral(p, "look")
		return s != nil && s.State.Waiting != nil && s.State.Waiting.Reason == "CreateContainerConfigError"
	})
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"K": "v"}}
	if _, err := w.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("a", "is looked at as soon as the ConfigMap is there", debugs("look"))
	if c, _ := w.rt.box("uid-a").config("look"); !strings.Contains(strings.Join(c.Env, " "), "K=v") {
		t.Errorf("environment %q", c.Env)
	}
}
