package pod

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/runtime"
)

func sidecar(name string, change ...func(*v1.Container)) v1.Container {
	c := v1.Container{Name: name, Image: "app", ImagePullPolicy: v1.PullIfNotPresent, RestartPolicy: ptr.To(v1.ContainerRestartPolicyAlways)}
	for _, f := range change {
		f(&c)
	}
	return c
}

func says(words ...string) *v1.LifecycleHandler {
	return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: words}}
}

func mainStatus(p *v1.Pod) v1.ContainerStatus {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == "c" {
			return s
		}
	}
	return v1.ContainerStatus{}
}

// TestSidecarsEndLastAndInReverse: their preStop hooks run at once, their
// signals wait for those that came after them.
func TestSidecarsEndLastAndInReverse(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		bye := func(c *v1.Container) { c.Lifecycle = &v1.Lifecycle{PreStop: says("bye", c.Name)} }
		p.Spec.InitContainers = []v1.Container{sidecar("s1", bye), sidecar("s2", bye)}
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	}))
	w.await("a", "runs", isRunning)
	b := w.rt.box("uid-a")
	b.mu.Lock()
	b.signal = func(runtime.ContainerStatus, syscall.Signal) {} // they take their time
	b.mu.Unlock()
	w.remove("a", 30)
	asked := func(what string) func() bool { return func() bool { return strings.Contains(b.asked(), what) } }
	for _, what := range []string{"exec bye s1", "exec bye s2", "terminated c"} {
		w.eventually(what, asked(what))
	}
	for _, step := range []struct{ ends, next, notYet string }{{"c", "terminated s2", "terminated s1"}, {"s2", "terminated s1", "killed"}} {
		if strings.Contains(b.asked(), step.next) {
			t.Errorf("%s before %s has ended: %s", step.next, step.ends, b.asked())
		}
		b.exit(step.ends, 0)
		w.eventually(step.next, asked(step.next))
		if strings.Contains(b.asked(), step.notYet) {
			t.Errorf("%s: %s", step.notYet, b.asked())
		}
	}
	b.exit("s1", 137)
	w.eventually("it is over", func() bool { return w.get("a") == nil })
}

// TestSidecarsShareTheGracePeriod: when it is over, nobody waits for a turn.
func TestSidecarsShareTheGracePeriod(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) { p.Spec.InitContainers = []v1.Container{sidecar("s")} }))
	w.await("a", "runs", isRunning)
	b := w.rt.box("uid-a")
	b.mu.Lock()
	b.signal = func(runtime.ContainerStatus, syscall.Signal) {}
	b.mu.Unlock()
	w.remove("a", 10)
	w.eventually("asked to end", func() bool { return strings.Contains(b.asked(), "terminated c") })
	w.pass(11 * time.Second)
	w.eventually("both", func() bool {
		return strings.Contains(b.asked(), "killed c") && strings.Contains(b.asked(), "terminated s")
	})
	w.pass(minGrace)
	w.eventually("it is over", func() bool { return w.get("a") == nil })
}

// TestSidecarFailsWhileInitContainersRun: it is started again, and holds up
// nobody.
func TestSidecarFailsWhileInitContainersRun(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{sidecar("s"), {Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
	}))
	started := func(name string, n int) func() bool {
		return func() bool {
			b := w.rt.box("uid-a")
			return b != nil && strings.Count(b.asked(), "start "+name) == n
		}
	}
	w.eventually("the init container runs", started("i", 1))
	b := w.rt.box("uid-a")
	b.exit("s", 1)
	w.eventually("the sidecar runs again", started("s", 2))
	b.exit("s", 1) // now it has to wait
	w.await("a", "back-off", func(p *v1.Pod) bool {
		s := p.Status.InitContainerStatuses
		return len(s) == 2 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff" && p.Status.Phase == v1.PodPending
	})
	b.exit("i", 0)
	w.eventually("the pod goes on", started("c", 1))
	p := w.await("a", "runs", isRunning)
	if isReady(p) {
		t.Error("a sidecar is down, the pod is ready")
	}
	w.pass(backoffInitial)
	w.await("a", "ready", isReady)
}

// TestPostStartHook: until it has ended, the container is being created.
func TestPostStartHook(t *testing.T) {
	w := newWorld(t)
	p := w.pod("a", func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.Lifecycle = &v1.Lifecycle{PostStart: says("hello")}
		c.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ready"}}}}
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Image: "app", ImagePullPolicy: v1.PullIfNotPresent})
	})
	release, fails := make(chan struct{}), atomic.Bool{}
	fails.Store(true)
	box := &fakeSandbox{exec: func(args []string) int {
		if args[0] == "hello" {
			<-release
			if fails.Load() {
				return 3
			}
		}
		return 0
	}}
	w.rt.mu.Lock()
	w.rt.boxes["uid-a"] = box // its ways are taken over
	w.rt.mu.Unlock()
	w.add(p)
	w.eventually("the hook runs", func() bool { return strings.Contains(w.rt.box("uid-a").asked(), "exec hello") })
	got := w.await("a", "being created", func(p *v1.Pod) bool { return len(p.Status.ContainerStatuses) == 2 })
	if s := mainStatus(got); s.State.Waiting == nil || s.State.Waiting.Reason != "ContainerCreating" || s.ContainerID != "" || *s.Started || got.Status.Phase != v1.PodPending {
		t.Errorf("%+v", s)
	}
	if asked := w.rt.box("uid-a").asked(); strings.Contains(asked, "start d") || strings.Contains(asked, "exec ready") {
		t.Errorf("the hook runs still: %s", asked)
	}
	close(release)
	got = w.await("a", "the hook has failed", func(p *v1.Pod) bool {
		s := mainStatus(p)
		return s.State.Waiting != nil && s.State.Waiting.Reason == "PostStartHookError"
	})
	if msg := mainStatus(got).State.Waiting.Message; !strings.Contains(msg, `Exec lifecycle hook ([hello]) for Container "c" in Pod "a_default(uid-a)" failed - error: command 'hello' exited with 3`) {
		t.Errorf("message %q", msg)
	}
	for _, e := range []string{"Warning FailedPostStartHook PostStartHook failed", "Normal Killing FailedPostStartHook"} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
	fails.Store(false)
	w.pass(backoffInitial)
	w.await("a", "runs", func(p *v1.Pod) bool { return isReady(p) && mainStatus(p).RestartCount > 0 })
}

// TestContainersOwnRestartPolicies: rules come before the container's policy,
// and that before the pod's.
func TestContainersOwnRestartPolicies(t *testing.T) {
	never, always, onFailure := v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyOnFailure
	in := func(op v1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) []v1.ContainerRestartRule {
		return []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}}
	}
	for _, tc := range []struct {
		name  string
		pod   v1.RestartPolicy
		own   *v1.ContainerRestartPolicy
		rules []v1.ContainerRestartRule
		code  int32
		again bool
	}{
		{"the pod's", v1.RestartPolicyNever, nil, nil, 1, false},
		{"its own", v1.RestartPolicyNever, &always, nil, 0, true},
		{"its own says no", v1.RestartPolicyAlways, &never, nil, 1, false},
		{"on failure, failed", v1.RestartPolicyNever, &onFailure, nil, 1, true},
		{"on failure, ended well", v1.RestartPolicyAlways, &onFailure, nil, 0, false},
		{"a rule is met", v1.RestartPolicyNever, &never, in("In", 42, 43), 43, true},
		{"no rule is met", v1.RestartPolicyAlways, &never, in("In", 42), 1, false},
		{"any other code", v1.RestartPolicyNever, &never, in("NotIn", 0), 1, true},
		{"not that one", v1.RestartPolicyNever, &never, in("NotIn", 0), 0, false},
		{"rules without a policy of its own", v1.RestartPolicyNever, nil, in("In", 1), 1, false},
	} {
		c := &v1.Container{RestartPolicy: tc.own, RestartPolicyRules: tc.rules}
		if got := restartsAfter(c, tc.pod, tc.code); got != tc.again {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestFailureOfOneContainerRestartsAll(t *testing.T) {
	for _, killed := range []bool{false, true} { // the agent, in the middle
		w := newWorld(t)
		w.add(w.pod("a", func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyNever
			p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}, sidecar("s")}
			c := &p.Spec.Containers[0]
			c.RestartPolicy = ptr.To(v1.ContainerRestartPolicyNever)
			c.RestartPolicyRules = []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestartAllContainers,
				ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "d", Image: "app", ImagePullPolicy: v1.PullIfNotPresent})
		}))
		count := func(b *fakeSandbox, name string) int { return strings.Count(b.asked(), "start "+name) }
		w.eventually("it begins", func() bool { b := w.rt.box("uid-a"); return b != nil && count(b, "i") == 1 })
		b := w.rt.box("uid-a")
		b.exit("i", 0)
		w.await("a", "runs", isRunning)
		b.mu.Lock()
		b.signal = func(runtime.ContainerStatus, syscall.Signal) {}
		b.mu.Unlock()
		b.exit("c", 42)
		p := w.await("a", "all are restarting", func(p *v1.Pod) bool {
			for _, c := range p.Status.Conditions {
				if c.Type == v1.AllContainersRestarting {
					return c.Status == v1.ConditionTrue && c.Reason == "RestartAllContainersStarted"
				}
			}
			return false
		})
		if p.Status.Phase != v1.PodRunning {
			t.Errorf("phase %s", p.Status.Phase)
		}
		if killed {
			w.stop()
			w.start([]*v1.Pod{w.get("a")})
		}
		w.eventually("the others are asked", func() bool {
			return strings.Contains(b.asked(), "terminated d") && strings.Contains(b.asked(), "terminated s")
		})
		b.exit("d", 0)
		b.exit("s", 0)
		w.eventually("init containers begin again", func() bool { return count(b, "i") == 2 })
		if n := count(b, "c") + count(b, "d"); n != 2 {
			t.Errorf("main containers were started %d times before the init containers were done", n)
		}
		b.exit("i", 0)
		p = w.await("a", "runs again", func(p *v1.Pod) bool { return isReady(p) && mainStatus(p).RestartCount == 1 })
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if l := s.LastTerminationState.Terminated; s.RestartCount != 1 || l == nil || l.Reason != reasonRestartingAll || l.ExitCode != 137 {
				t.Errorf("%s: %+v", s.Name, s)
			}
		}
		if w.rt.made != 1 {
			t.Errorf("%d sandboxes", w.rt.made)
		}
	}
}

// TestMachineStartsAnew: the sandbox is gone, and nobody knows how containers
// ended; or its remains are found.
func TestMachineStartsAnew(t *testing.T) {
	for _, tc := range []struct {
		policy  v1.RestartPolicy
		remains bool
		reason  string
	}{{v1.RestartPolicyNever, false, reasonUnknown}, {v1.RestartPolicyAlways, false, reasonUnknown},
		{v1.RestartPolicyNever, true, "Error"}, {v1.RestartPolicyAlways, true, "Error"}} {
		policy := tc.policy
		w := newWorld(t)
		w.add(w.pod("a", func(p *v1.Pod) {
			p.Spec.RestartPolicy = policy
			p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app", ImagePullPolicy: v1.PullIfNotPresent}}
		}))
		w.eventually("it begins", func() bool { b := w.rt.box("uid-a"); return b != nil && b.started("i") })
		w.rt.box("uid-a").exit("i", 0)
		w.await("a", "runs", isRunning)
		w.stop()
		if old := w.rt.box("uid-a"); tc.remains {
			old.die()
			old.log = nil
		} else {
			delete(w.rt.boxes, "uid-a")
		}
		w.start([]*v1.Pod{w.get("a")})
		if policy == v1.RestartPolicyNever {
			p := w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
			if s := mainStatus(p).State.Terminated; s == nil || s.ExitCode != 137 || s.Reason != tc.reason || w.rt.made != 1 {
				t.Errorf("%d sandboxes, %+v", w.rt.made, mainStatus(p))
			}
			continue
		}
		w.eventually("init containers run again", func() bool { b := w.rt.box("uid-a"); return b != nil && b.started("i") })
		w.rt.box("uid-a").exit("i", 0)
		p := w.await("a", "runs again", func(p *v1.Pod) bool { return isReady(p) && mainStatus(p).RestartCount == 1 })
		if l := mainStatus(p).LastTerminationState.Terminated; l == nil || l.Reason != tc.reason || p.Status.InitContainerStatuses[0].RestartCount != 1 {
			t.Errorf("%+v", p.Status)
		}
	}
}

// TestDeletedBeforeItRan: what never ran has failed.
func TestDeletedBeforeItRan(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Finalizers = []string{"example.com/stay"}
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "none", v1.PullNever
	}))
	w.await("a", "waits", func(p *v1.Pod) bool {
		return mainStatus(p).State.Waiting != nil && mainStatus(p).State.Waiting.Reason == "ErrImageNeverPull"
	})
	w.remove("a", 1)
	w.eventually("failed", func() bool {
		v, err := w.m.Find("default", "a", "")
		return err == nil && v.Pod.Status.Phase == v1.PodFailed && mainStatus(v.Pod).State.Terminated != nil && mainStatus(v.Pod).State.Terminated.ExitCode == 137
	})
}

func TestReasonsComeWhenAllIsOver(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "runs", isRunning)
	b := w.rt.box("uid-a")
	b.mu.Lock()
	b.signal = func(runtime.ContainerStatus, syscall.Signal) {}
	b.mu.Unlock()
	w.m.End("uid-a", Eviction{Reason: "Evicted", Message: "too big", Disruption: true})
	w.eventually("asked to end", func() bool { return strings.Contains(b.asked(), "terminated c") })
	if p := w.get("a"); p.Status.Reason != "" || p.Status.Phase != v1.PodRunning {
		t.Errorf("%+v", p.Status)
	}
	w.pass(minGrace)
	p := w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	conds := map[v1.PodConditionType]v1.ConditionStatus{}
	for _, c := range p.Status.Conditions {
		conds[c.Type] = c.Status
	}
	if p.Status.Reason != "Evicted" || p.Status.Message != "too big" || conds[v1.DisruptionTarget] != v1.ConditionTrue || conds[v1.PodReadyToStartContainers] != v1.ConditionFalse {
		t.Errorf("%+v", p.Status)
	}
}

func TestProbeOfAContainerThatDoesNotRestart(t *testing.T) {
	w := newWorld(t)
	p := w.pod("a", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		c := &p.Spec.Containers[0]
		c.Env = []v1.EnvVar{{Name: "WHAT", Value: "health"}}
		c.LivenessProbe = &v1.Probe{FailureThreshold: 1, PeriodSeconds: 1, TerminationGracePeriodSeconds: ptr.To[int64](5),
			ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"$(WHAT)", "$(OTHER)"}}}}
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](500)
	})
	w.rt.mu.Lock()
	w.rt.boxes["uid-a"] = &fakeSandbox{exec: func([]string) int { return 1 }, signal: func(runtime.ContainerStatus, syscall.Signal) {}}
	w.rt.mu.Unlock()
	w.add(p)
	b := w.rt.box
	w.eventually("asked to end", func() bool { return strings.Contains(b("uid-a").asked(), "terminated c") })
	if asked := b("uid-a").asked(); !strings.Contains(asked, "exec health $(OTHER)") {
		t.Errorf("asked %s", asked)
	}
	if !w.said("Normal Killing Container c failed liveness probe") || w.said("will be restarted") {
		t.Errorf("events %q", w.told)
	}
	w.pass(5 * time.Second) // of the probe, not of the pod
	w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
}

func TestClockGoesBack(t *testing.T) {
	now := time.Now()
	b := backoff{}
	b.next(now, now)
	if left := b.wait(now.Add(time.Minute), now); left != backoffInitial {
		t.Errorf("waits %v", left)
	}
}

func TestMessagesOfAPodAreBounded(t *testing.T) {
	long := strings.Repeat("ä", 4000)
	one := v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Message: long}}
	st := v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{State: one}, {LastTerminationState: one}, {State: one}}, InitContainerStatuses: []v1.ContainerStatus{{State: one}}}
	shorten(&st)
	if got := len(st.ContainerStatuses[0].State.Terminated.Message); got > 3<<10 || got < 3<<10-2 || len(one.Terminated.Message) != len(long) {
		t.Errorf("%d bytes", got)
	}
}

func TestStatusTellsUserAndMounts(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: ptr.To[int64](7), RunAsGroup: ptr.To[int64](8), SupplementalGroups: []int64{9}}
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: true}}
	}))
	w.await("a", "runs", isRunning)
	w.stop()
	w.start([]*v1.Pod{w.get("a")}) // it is known to the next agent, too
	w.eventually("adopted", func() bool { v, err := w.m.Find("default", "a", ""); return err == nil && v.State == Running })
	s := mainStatus(w.get("a"))
	if u := s.User; u == nil || u.Linux.UID != 7 || u.Linux.GID != 8 || len(u.Linux.SupplementalGroups) != 2 {
		t.Errorf("%+v", u)
	}
	if m := s.VolumeMounts; len(m) != 1 || m[0].Name != "v" || m[0].MountPath != "/v" || *m[0].RecursiveReadOnly != v1.RecursiveReadOnlyDisabled {
		t.Errorf("%+v", m)
	}
}
