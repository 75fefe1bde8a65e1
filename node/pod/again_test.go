package pod

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	clienttest "k8s.io/client-go/testing"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

// neverEnded notes whether a status ever says that the container has terminated:
// the API does not let it run again then, if its restart policy does not.
func (w *world) neverEnded() *atomic.Bool {
	var said atomic.Bool
	w.client.PrependReactor("update", "pods", func(a clienttest.Action) (bool, apiruntime.Object, error) {
		if a.GetSubresource() == "status" && mainStatus(a.(clienttest.UpdateAction).GetObject().(*v1.Pod)).State.Terminated != nil {
			said.Store(true)
		}
		return false, nil, nil
	})
	return &said
}

// A container that is ended for a new image starts again with it, whatever its
// restart policy says of how it ended, and also when the agent dies in between.
func TestNewImageRestartsWhateverThePolicy(t *testing.T) {
	for _, tc := range []struct {
		policy v1.RestartPolicy
		code   int
		killed bool
	}{{v1.RestartPolicyNever, 143, false}, {v1.RestartPolicyOnFailure, 0, false}, {v1.RestartPolicyNever, 0, true}} {
		w := newWorld(t)
		w.images.images["app2"] = &image.Image{ID: "sha256:3", Config: w.images.images["app"].Config}
		said := w.neverEnded()
		w.add(w.pod("a", func(p *v1.Pod) { p.Spec.RestartPolicy = tc.policy }))
		w.await("a", "runs", isRunning)
		box := w.rt.box("uid-a")
		box.mu.Lock()
		box.signal = func(runtime.ContainerStatus, syscall.Signal) {}
		box.mu.Unlock()
		w.change("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "app2" })
		w.eventually("asked to end", func() bool { return strings.Contains(box.asked(), "terminated c") })
		if !w.said("Normal Killing Container c definition changed, will be restarted") {
			t.Errorf("events %q", w.told)
		}
		if tc.killed {
			w.stop()
		}
		box.exit("c", tc.code)
		if tc.killed {
			w.start([]*v1.Pod{w.get("a")})
		}
		p := w.await("a", "runs with the new image, or is over", func(p *v1.Pod) bool {
			s := mainStatus(p)
			return s.RestartCount == 1 && s.State.Running != nil || p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded
		})
		if s := mainStatus(p); p.Status.Phase != v1.PodRunning || s.Image != "docker.io/library/app2:latest" {
			t.Errorf("%s, ended with %d, agent killed %v: phase %s, image %s", tc.policy, tc.code, tc.killed, p.Status.Phase, s.Image)
		}
		if said.Load() {
			t.Error("it was said to have terminated")
		}
		box.exit("c", tc.code) // this time it ends of its own
		w.await("a", "over", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded })
	}
}

// An init container that runs is not ended for a new image: the next attempt
// would have it, if there is one.
func TestNewImageLeavesRunningInitContainers(t *testing.T) {
	w := newWorld(t)
	w.images.images["app2"] = &image.Image{ID: "sha256:3", Config: w.images.images["app"].Config}
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
	}))
	w.eventually("it begins", func() bool { b := w.rt.box("uid-a"); return b != nil && b.started("i") })
	w.change("a", func(p *v1.Pod) { p.Spec.InitContainers[0].Image = "app2" })
	w.await("a", "seen", func(p *v1.Pod) bool { return p.Status.ObservedGeneration == p.Generation })
	w.rt.box("uid-a").exit("i", 0)
	w.await("a", "runs", isRunning)
	if asked := w.rt.box("uid-a").asked(); strings.Contains(asked, "terminated") {
		t.Error(asked)
	}
}

// What a probe has ended failed, even if it ended well when it was asked to; also
// when the agent dies before it has started it again.
func TestProbeRestartsWhatEndsWell(t *testing.T) {
	for _, tc := range []struct {
		policy v1.RestartPolicy
		killed bool
	}{{v1.RestartPolicyOnFailure, false}, {v1.RestartPolicyOnFailure, true}, {v1.RestartPolicyNever, false}} {
		w := newWorld(t)
		var sick atomic.Bool
		pull, end := make(chan struct{}, 2), make(chan struct{})
		pull <- struct{}{}
		img := w.images.images["app"]
		w.images.pull = func(string) (*image.Image, error) { <-pull; return img, nil }
		box := &fakeSandbox{r: w.rt, exec: func([]string) int {
			if sick.Load() {
				return 1
			}
			return 0
		}}
		box.signal = func(c runtime.ContainerStatus, _ syscall.Signal) {
			go func() { <-end; w.rt.box("uid-a").exit("c", 0) }()
		}
		w.rt.boxes["uid-a"] = box
		said := w.neverEnded()
		w.add(w.pod("a", func(p *v1.Pod) {
			p.Spec.RestartPolicy = tc.policy
			p.Spec.Containers[0].ImagePullPolicy = v1.PullAlways // it takes its time
			p.Spec.Containers[0].LivenessProbe = &v1.Probe{PeriodSeconds: 1, FailureThreshold: 1,
				ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check"}}}}
		}))
		w.await("a", "runs", isRunning)
		sick.Store(true)
		w.eventually("asked to end", func() bool { return strings.Contains(w.rt.box("uid-a").asked(), "terminated c") })
		if tc.killed {
			w.stop()
		}
		close(end)
		if tc.killed {
			w.start([]*v1.Pod{w.get("a")})
		}
		if tc.policy == v1.RestartPolicyNever {
			w.await("a", "over", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
			continue
		}
		w.await("a", "waits for its image", func(p *v1.Pod) bool { s := mainStatus(p).State; return s.Waiting != nil || s.Terminated != nil })
		sick.Store(false)
		pull <- struct{}{}
		w.eventually("it starts again", func() bool { return strings.Count(w.rt.box("uid-a").asked(), "start c") == 2 })
		w.await("a", "runs again", func(p *v1.Pod) bool {
			return isRunning(p) && mainStatus(p).RestartCount == 1 && mainStatus(p).State.Running != nil
		})
		if said.Load() {
			t.Error("it was said to have terminated")
		}
	}
}

// What has ended for good stays so for a later agent, though its sandbox does
// not know of it: it never became a process, or ended in a sandbox before.
func TestEndedContainersStayEnded(t *testing.T) {
	for _, tc := range []struct {
		name   string
		policy v1.RestartPolicy
	}{{"never started", v1.RestartPolicyNever}, {"before this sandbox", v1.RestartPolicyOnFailure}} {
		w := newWorld(t)
		fails := tc.policy == v1.RestartPolicyNever
		w.rt.boxes["uid-a"] = &fakeSandbox{r: w.rt, start: func(c runtime.ContainerConfig) error {
			if fails && c.Name == "c" {
				return errors.New("no such file")
			}
			return nil
		}}
		w.add(w.pod("a", func(p *v1.Pod) {
			p.Spec.RestartPolicy = tc.policy
			p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Image: "app", ImagePullPolicy: v1.PullIfNotPresent})
		}))
		w.eventually("it begins", func() bool { return w.exitOnce(w.get("a"), "i", 0) })
		if fails {
			w.await("a", "half runs", func(p *v1.Pod) bool {
				return isRunning(p) && mainStatus(p).State.Terminated != nil
			})
		} else {
			w.await("a", "runs", isRunning)
			w.rt.box("uid-a").exit("c", 0)
			w.await("a", "half has ended", func(p *v1.Pod) bool { return mainStatus(p).State.Terminated != nil })
			w.rt.box("uid-a").die()
			w.eventually("init containers come first", func() bool {
				b := w.rt.box("uid-a")
				return b != nil && b.cfg.Attempt == 1 && w.exitOnce(w.get("a"), "i", 0)
			})
			w.await("a", "the rest runs again", func(p *v1.Pod) bool {
				return p.Status.ContainerStatuses[1].RestartCount == 1 && p.Status.ContainerStatuses[1].State.Running != nil
			})
		}
		before := w.get("a")
		w.stop()
		w.start([]*v1.Pod{before})
		w.eventually("adopted", func() bool { v, err := w.m.Find("default", "a", ""); return err == nil && v.State == Running })
		w.rt.box("uid-a").exit("d", 0)
		p := w.await("a", "over", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded })
		if s := mainStatus(p); s.RestartCount != mainStatus(before).RestartCount || s.ContainerID != mainStatus(before).ContainerID || s.ImageID != mainStatus(before).ImageID || (p.Status.Phase == v1.PodFailed) != fails {
			t.Errorf("%s: phase %s, %+v", tc.name, p.Status.Phase, s)
		}
	}
}

// A pod that is not to start again does not, even if the sandbox was lost before
// its main container began.
func TestNeverHoldsForInitContainers(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
	}))
	w.await("a", "begins", func(p *v1.Pod) bool {
		return len(p.Status.InitContainerStatuses) == 1 && p.Status.InitContainerStatuses[0].State.Running != nil
	})
	w.rt.box("uid-a").die()
	p := w.await("a", "over, or begun again", func(p *v1.Pod) bool {
		return p.Status.Phase == v1.PodFailed || p.Status.InitContainerStatuses[0].RestartCount > 0
	})
	if p.Status.Phase != v1.PodFailed {
		t.Errorf("%+v", p.Status.InitContainerStatuses[0])
	}
}

// A pod that the API says is over is ended.
func TestPodThatIsOverForTheAPIEnds(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	p := w.await("a", "runs", isRunning)
	st := *p.Status.DeepCopy()
	st.Phase, st.Reason = v1.PodFailed, "Lost"
	p = w.later(p, st)
	if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), p, "default"); err != nil {
		t.Fatal(err)
	}
	w.m.Update(p)
	w.eventually("it ends", func() bool { return w.rt.box("uid-a") == nil })
	p = w.await("a", "its end is told", func(p *v1.Pod) bool { return mainStatus(p).State.Terminated != nil })
	if p.Status.Phase != v1.PodFailed || p.Status.Reason != "Lost" {
		t.Errorf("%+v", p.Status)
	}
}
