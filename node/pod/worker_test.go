package pod

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

func TestStatesMoveOneWay(t *testing.T) {
	for from, tos := range moves {
		for _, to := range tos {
			if _, err := from.Move(to); err != nil {
				t.Error(err)
			}
		}
	}
	for _, m := range [][2]State{{Stopped, Running}, {Gone, New}, {Stopping, Running}, {New, Running}, {Running, Initializing}} {
		if s, err := m[0].Move(m[1]); err == nil || s != m[0] {
			t.Errorf("%s may move to %s", m[0], m[1])
		}
	}
}

func TestStatusSaysWhatAContainerWasGiven(t *testing.T) {
	w := newWorld(t)
	given := v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m")}, Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}}
	w.add(w.pod("a", func(p *v1.Pod) { p.Spec.Containers[0].Resources = given }))
	cs := w.await("a", "runs", isRunning).Status.ContainerStatuses[0]
	if cs.Resources == nil || !equality.Semantic.DeepEqual(*cs.Resources, given) || !equality.Semantic.DeepEqual(cs.AllocatedResources, given.Requests) {
		t.Errorf("resources %v, allocated %v", cs.Resources, cs.AllocatedResources)
	}
}

func TestPodRunsAndIsDeleted(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	p := w.await("a", "running and ready", func(p *v1.Pod) bool { return isRunning(p) && isReady(p) })
	st := p.Status
	cs := st.ContainerStatuses[0]
	if st.PodIP != "10.42.0.1" || st.HostIP != "192.0.2.1" || st.QOSClass != v1.PodQOSBestEffort || st.StartTime == nil {
		t.Errorf("status %+v", st)
	}
	if !strings.HasPrefix(cs.ContainerID, "skiff://") || cs.ImageID != "docker.io/library/app@sha256:2" || cs.Image != "docker.io/library/app:latest" || !*cs.Started || cs.State.Running == nil {
		t.Errorf("container status %+v", cs)
	}
	if w.write != 1 {
		t.Errorf("%d status writes for a start, want 1", w.write)
	}
	for _, e := range []string{`Normal Pulled Container image "app" already present on machine`, "Normal Created Container created", "Normal Started Container started"} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
	box := w.rt.box("uid-a")
	for _, c := range box.cfgs {
		if strings.Join(c.Args, " ") != "/app run" || c.Env[0] != "A=image" || c.Resources.OOMScoreAdj != 1000 {
			t.Errorf("container %+v", c)
		}
		if b, _ := os.ReadFile(w.dir + "/pods/uid-a/hosts"); !strings.Contains(string(b), "10.42.0.1\ta\n") {
			t.Errorf("hosts %q", b)
		}
		if b, _ := os.ReadFile(w.dir + "/pods/uid-a/resolv.conf"); string(b) != "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n" {
			t.Errorf("resolv.conf %q", b)
		}
	}
	w.remove("a", 30)
	w.eventually("the object is deleted", func() bool { return w.get("a") == nil })
	if got := box.asked(); got != "start c, terminated c, exit c" {
		t.Errorf("asked of the runtime: %s", got)
	}
	w.m.Remove("uid-a")
	w.eventually("nothing is left", func() bool {
		_, err := os.Stat(w.dir + "/pods/uid-a")
		_, err2 := os.Stat(w.dir + "/logs/default_a_uid-a")
		w.network.mu.Lock()
		defer w.network.mu.Unlock()
		return w.rt.box("uid-a") == nil && len(w.network.addrs) == 0 && os.IsNotExist(err) && os.IsNotExist(err2) && len(w.m.Views()) == 0
	})
	if m, _ := w.images.Mounts(); len(m) != 0 {
		t.Errorf("mounts are left: %v", m)
	}
}

func TestNeverRestarts(t *testing.T) {
	for code, want := range map[int]v1.PodPhase{0: v1.PodSucceeded, 4: v1.PodFailed} {
		w := newWorld(t)
		w.add(w.pod("a", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }))
		w.await("a", "running", isRunning)
		box := w.rt.box("uid-a")
		for _, c := range box.cfgs { // leave a message
			for _, m := range c.Mounts {
				if m.Destination == "/dev/termination-log" {
					if err := os.WriteFile(m.HostPath, []byte("bye"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		box.exit("c", code)
		p := w.await("a", string(want), func(p *v1.Pod) bool { return p.Status.Phase == want })
		term := p.Status.ContainerStatuses[0].State.Terminated
		if term == nil || term.ExitCode != int32(code) || term.Message != "bye" || p.Status.PodIP == "" {
			t.Errorf("%+v", p.Status)
		}
		w.eventually("sandbox released", func() bool { return w.rt.box("uid-a") == nil })
		// A later agent leaves it alone, and deletes it when asked.
		w.stop()
		w.start([]*v1.Pod{p})
		w.remove("a", 0)
		w.eventually("deleted", func() bool { return w.get("a") == nil })
		if w.rt.made != 1 {
			t.Errorf("%d sandboxes were made", w.rt.made)
		}
	}
}

func TestInitContainersInOrder(t *testing.T) {
	w := newWorld(t)
	always := v1.ContainerRestartPolicyAlways
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{{Name: "i1", Image: "app"}, {Name: "side", Image: "app", RestartPolicy: &always}, {Name: "i2", Image: "app"}}
	}))
	p := w.await("a", "first init runs", func(p *v1.Pod) bool {
		return len(p.Status.InitContainerStatuses) == 3 && p.Status.InitContainerStatuses[0].State.Running != nil
	})
	if s := p.Status.ContainerStatuses[0].State.Waiting; s == nil || s.Reason != "PodInitializing" || p.Status.Phase != v1.PodPending {
		t.Errorf("%+v", p.Status)
	}
	box := w.rt.box("uid-a")
	box.exit("i1", 1)
	w.await("a", "init retried", func(p *v1.Pod) bool { return p.Status.InitContainerStatuses[0].RestartCount == 1 })
	box.exit("i1", 0)
	w.await("a", "second init runs beside the sidecar", func(p *v1.Pod) bool {
		return p.Status.InitContainerStatuses[2].State.Running != nil && p.Status.InitContainerStatuses[1].State.Running != nil
	})
	box.exit("i2", 0)
	w.await("a", "ready", isReady)
	if got := box.asked(); got != "start i1, exit i1, start i1, exit i1, start side, start i2, exit i2, start c" {
		t.Error(got)
	}
	w.remove("a", 30)
	w.eventually("gone", func() bool { return w.get("a") == nil })
	if got := box.asked(); !strings.HasSuffix(got, "terminated c, exit c, terminated side, exit side") {
		t.Errorf("the sidecar must outlive the container: %s", got)
	}
}

func TestInitFailureIsFinalWithNever(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app"}}
	}))
	w.await("a", "init runs", func(p *v1.Pod) bool {
		return len(p.Status.InitContainerStatuses) == 1 && p.Status.InitContainerStatuses[0].State.Running != nil
	})
	w.rt.box("uid-a").exit("i", 2)
	p := w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if s := p.Status.ContainerStatuses[0].State.Waiting; s == nil || s.Reason != "PodInitializing" {
		t.Errorf("%+v", p.Status.ContainerStatuses[0])
	}
}

func TestMissingConfigMapThenThere(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "X", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}, Key: "k"}}},
			{Name: "Y", Value: "$(X)-$(A)-$$(X)"}}
		p.Spec.Containers[0].Args = []string{"$(Y)", "$(NONE)"}
	}))
	p := w.await("a", "config error", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	if msg := p.Status.ContainerStatuses[0].State.Waiting.Message; msg != `configmap "cfg" not found` {
		t.Error(msg)
	}
	if !w.said(`Warning Failed Error: configmap "cfg" not found`) {
		t.Error("no event")
	}
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "v"}}
	if _, err := w.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("a", "runs as soon as it is there", isRunning)
	for _, c := range w.rt.box("uid-a").cfgs {
		if got := strings.Join(c.Args, " "); got != "/app v-$(A)-$(X) $(NONE)" {
			t.Errorf("args %q", got)
		}
	}
}

func TestMissingVolumeSource(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/s"}}
	}))
	w.eventually("event", func() bool {
		return w.said(`Warning FailedMount MountVolume.SetUp failed for volume "v" : secret "s" not found`)
	})
	w.await("a", "creating", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting.Reason == "ContainerCreating"
	})
	for _, step := range []struct {
		after time.Duration
		told  int
	}{{faultAgain - time.Minute, 1}, {2 * time.Minute, 2}} {
		w.pass(step.after)
		for range 2 { // the first look may have begun before
			looked := make(chan struct{})
			w.m.workers["uid-a"].post(func() { close(looked) })
			<-looked
		}
		w.eventually("told while it lasts", func() bool { return w.times("FailedMount") == step.told })
	}
	s := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"k": []byte("v")}}
	if _, err := w.client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("a", "running", isRunning)
	s = s.DeepCopy()
	s.Data["k"] = []byte("new")
	if _, err := w.client.CoreV1().Secrets("default").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the running pod sees the change", func() bool {
		b, _ := os.ReadFile(w.dir + "/mem/uid-a/v/k")
		return string(b) == "new"
	})
}

func TestImagePullErrors(t *testing.T) {
	w := newWorld(t)
	ok := false
	w.images.pull = func(ref string) (*image.Image, error) {
		if ok {
			return &image.Image{ID: "sha256:9", Config: w.images.images["app"].Config}, nil
		}
		return nil, errors.New("registry says no")
	}
	waits := func(reason string) func(*v1.Pod) bool {
		return func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
		}
	}
	w.add(w.pod("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "other" }))
	w.await("a", "error", waits("ErrImagePull"))
	w.pass(3 * time.Second)
	p := w.await("a", "backoff", waits("ImagePullBackOff"))
	if msg := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(msg, `Back-off pulling image "other": ErrImagePull: `) {
		t.Error(msg)
	}
	ok = true
	w.pass(11 * time.Second)
	w.await("a", "running", isRunning)
	for _, e := range []string{`Normal Pulling Pulling image "other"`, `Warning Failed Failed to pull image "other": registry says no`, "Warning Failed Error: ErrImagePull",
		`Normal BackOff Back-off pulling image "other"`, "Warning Failed Error: ImagePullBackOff", `Normal Pulled Successfully pulled image "other" in `} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
	w.add(w.pod("b", func(p *v1.Pod) { p.Spec.Containers[0].Image = "UPPER CASE" }))
	w.await("b", "invalid", waits("InvalidImageName"))
	w.add(w.pod("n", func(p *v1.Pod) {
		p.Spec.Containers[0].Image = "nowhere"
		p.Spec.Containers[0].ImagePullPolicy = v1.PullNever
	}))
	w.await("n", "never", waits("ErrImageNeverPull"))
}

func TestCommandThatDoesNotExist(t *testing.T) {
	w := newWorld(t)
	w.images.images["bad"] = w.images.images["app"]
	var pods []*v1.Pod
	for _, policy := range []v1.RestartPolicy{v1.RestartPolicyNever, v1.RestartPolicyAlways} {
		name := strings.ToLower(string(policy))
		pods = append(pods, w.pod(name, func(p *v1.Pod) { p.Spec.RestartPolicy = policy; p.Spec.Volumes = nil }))
		w.rt.boxes["uid-"+name] = &fakeSandbox{r: w.rt, start: func(runtime.ContainerConfig) error {
			return errors.New(`exec: "/nope": stat /nope: no such file or directory`)
		}}
	}
	for _, p := range pods { // the workers read the boxes from here on
		w.add(p)
	}
	p := w.await("never", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "StartError" || s.ExitCode != 128 {
		t.Errorf("%+v", p.Status.ContainerStatuses[0])
	}
	p = w.await("always", "run error", func(p *v1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "RunContainerError"
	})
	if p.Status.ContainerStatuses[0].LastTerminationState.Terminated == nil {
		t.Error("no last state")
	}
	w.pass(2 * time.Second)
	w.pass(2 * time.Second)
	w.eventually("back-off", func() bool {
		w.pass(2 * time.Second)
		return w.said("Back-off restarting failed container c in pod always")
	})
}

func TestDeletionWhilePulling(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	defer close(block)
	w.images.pull = func(string) (*image.Image, error) { <-block; return nil, errors.New("late") }
	w.add(w.pod("a", func(p *v1.Pod) { p.Spec.Containers[0].Image = "slow" }))
	w.eventually("pulling", func() bool { return w.said("Pulling image") })
	w.remove("a", 30)
	w.eventually("deleted without waiting for the pull", func() bool { return w.get("a") == nil })
}

func TestLivenessRestartsAndReadinessUnreadies(t *testing.T) {
	w := newWorld(t)
	exit := make(chan int, 1)
	exit <- 0
	answer := func([]string) int { c := <-exit; exit <- c; return c }
	p := w.pod("a", func(p *v1.Pod) {
		h := v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check"}}}
		p.Spec.Containers[0].LivenessProbe = &v1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 1}
		p.Spec.Containers[0].ReadinessProbe = &v1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 1}
	})
	w.rt.boxes["uid-a"] = &fakeSandbox{r: w.rt, exec: answer}
	w.add(p)
	w.await("a", "ready", isReady)
	<-exit
	exit <- 1
	w.await("a", "restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && !isReady(p) })
	for _, e := range []string{"Warning Unhealthy Liveness probe failed: exited with 1", "Normal Killing Container c failed liveness probe, will be restarted"} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
}

func TestSandboxDies(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.await("a", "running", isRunning)
	w.rt.box("uid-a").die()
	p := w.await("a", "again in a new sandbox", func(p *v1.Pod) bool {
		return isReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1
	})
	if box := w.rt.box("uid-a"); box.cfg.Attempt != 1 || p.Status.PodIP == "" {
		t.Errorf("attempt %d", box.cfg.Attempt)
	}
}

func TestAdoption(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	w.add(w.pod("b"))
	w.add(w.pod("c"))
	var pods []*v1.Pod
	for _, n := range []string{"a", "b", "c"} {
		pods = append(pods, w.await(n, "ready", isReady))
	}
	before := w.rt.box("uid-a").Containers()[0].ID
	ip := pods[0].Status.PodIP
	writes := w.write
	w.stop() // as if killed: containers live on
	w.rt.box("uid-b").exit("c", 5)
	w.start(pods[:2]) // c was deleted meanwhile
	p := w.await("b", "restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 })
	if l := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; l == nil || l.ExitCode != 5 {
		t.Errorf("how it ended is lost: %+v", p.Status.ContainerStatuses[0])
	}
	w.eventually("c is cleaned up", func() bool { return w.rt.box("uid-c") == nil })
	w.eventually("a is adopted", func() bool {
		v, err := w.m.Find("default", "a", "")
		return err == nil && v.State == Running
	})
	a := w.get("a")
	if got := w.rt.box("uid-a").Containers(); len(got) != 1 || got[0].ID != before || a.Status.PodIP != ip || a.Status.ContainerStatuses[0].RestartCount != 0 || !isReady(a) {
		t.Errorf("adoption changed the pod: %+v %+v", got, a.Status)
	}
	if w.write-writes > 2 {
		t.Errorf("%d writes, want those of b only", w.write-writes)
	}
	if w.rt.made != 3 {
		t.Errorf("%d sandboxes were made, want 3", w.rt.made)
	}
}

// A pod that was ending when the agent was killed keeps its grace period, its
// address and its way to an end with nothing left behind.
func TestAdoptionOfEndingPods(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	ip := w.await("a", "ready", isReady).Status.PodIP
	w.stop()
	w.remove("a", 5)
	box := w.rt.box("uid-a")
	var asked atomic.Bool
	box.signal = func(runtime.ContainerStatus, syscall.Signal) { asked.Store(true) }
	w.start([]*v1.Pod{w.get("a")})
	w.eventually("the container is asked to end", asked.Load)
	if p := w.get("a"); p.Status.PodIP != ip {
		t.Errorf("address %q while it ends, want %q", p.Status.PodIP, ip)
	}
	box.exit("c", 0)
	w.eventually("the sandbox is removed", func() bool { return w.rt.box("uid-a") == nil })
}

func TestHostPorts(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1", Protocol: v1.ProtocolUDP}}
	}))
	w.await("a", "running", isRunning)
	w.network.mu.Lock()
	defer w.network.mu.Unlock()
	want := HostPort{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, ContainerPort: 53, Protocol: v1.ProtocolUDP}
	if got := w.network.hostPorts["uid-a"]; len(got) != 1 || got[0] != want {
		t.Errorf("published %+v, want %+v", got, want)
	}
}

func TestActiveDeadlineAndEviction(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](60) }))
	w.add(w.pod("b"))
	w.await("a", "running", isRunning)
	w.await("b", "running", isRunning)
	w.pass(61 * time.Second)
	p := w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
		t.Errorf("%+v", p.Status)
	}
	w.m.End("uid-b", Eviction{Reason: Evicted, Message: "The node was low on resource: memory. ", Grace: 1, Disruption: true})
	p = w.await("b", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	found := false
	for _, c := range p.Status.Conditions {
		found = found || c.Type == v1.DisruptionTarget && c.Reason == v1.PodReasonTerminationByKubelet
	}
	if p.Status.Reason != "Evicted" || !found {
		t.Errorf("%+v", p.Status)
	}
}

func TestRefusedFieldsAreNamed(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.HostUsers = ptr.To(false)
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{}}}}
		p.Spec.Containers[0].VolumeDevices = []v1.VolumeDevice{{Name: "v", DevicePath: "/dev/x"}}
	}))
	p := w.await("a", "refused", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	for _, f := range []string{"spec.hostUsers", "spec.volumes[0]", "spec.containers[0].volumeDevices"} {
		if !strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, f) || !w.said(f) {
			t.Errorf("%s is not named in %q", f, p.Status.ContainerStatuses[0].State.Waiting.Message)
		}
	}
	w.remove("a", 0)
	w.eventually("deleted", func() bool { return w.get("a") == nil })
}
