package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/runtime"
)

func amounts(cpu, memory string) v1.ResourceList {
	l := v1.ResourceList{}
	if cpu != "" {
		l[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[v1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

// sized gives all containers of a pod these requests, and the same limits.
func sized(cpu, memory string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Generation = 1
		for i := range p.Spec.Containers {
			p.Spec.Containers[i].Resources = v1.ResourceRequirements{Requests: amounts(cpu, memory), Limits: amounts(cpu, memory)}
		}
	}
}

// change has the API's pod changed, as by pods/resize.
func (w *world) change(name string, f func(*v1.Pod)) {
	w.t.Helper()
	p := w.get(name).DeepCopy()
	before := p.Generation
	f(p)
	p.Generation = before + 1
	p, err := w.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m.Update(p)
}

// has says that the pod's status shows these resources and no change under way.
func has(cpu, memory string) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.Resources == nil || s.Resources.Limits.Cpu().String() != cpu || s.Resources.Limits.Memory().String() != memory || s.AllocatedResources.Cpu().String() != cpu {
				return false
			}
		}
		return p.Status.AllocatedResources.Cpu().String() == cpu && p.Status.Resources.Limits.Memory().String() == memory &&
			findCondition(p, v1.PodResizePending) == nil && findCondition(p, v1.PodResizeInProgress) == nil && p.Status.ObservedGeneration == p.Generation
	}
}

func TestResizeInPlace(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", sized("100m", "64Mi")))
	w.await("a", "runs", has("100m", "64Mi"))
	w.change("a", sized("200m", "32Mi"))
	p := w.await("a", "resized", has("200m", "32Mi"))
	if p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("it was restarted")
	}
	// cpu grows: first the pod, then the container; memory shrinks: the other way round.
	want := "start c, update pod cpu=204/20000 memory=67108864, update c cpu=204/20000 memory=33554432, update pod cpu=204/20000 memory=33554432"
	if got := w.rt.box("uid-a").asked(); got != want {
		t.Errorf("asked %q", got)
	}
	for _, e := range []string{"Normal ResizeStarted Pod resize started: {\"containers\":[{\"name\":\"c\",\"resources\":{\"limits\":{\"cpu\":\"200m\",\"memory\":\"32Mi\"}", "Normal ResizeCompleted Pod resize completed"} {
		if !w.said(e) {
			t.Errorf("no event %q in %q", e, w.told)
		}
	}
}

func TestResizeWithRestart(t *testing.T) {
	for _, policy := range []v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure} {
		w := newWorld(t)
		w.add(w.pod("a", sized("100m", "64Mi"), func(p *v1.Pod) {
			p.Spec.RestartPolicy = policy
			p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1)
			p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
		}))
		w.await("a", "runs", has("100m", "64Mi"))
		box := w.rt.box("uid-a")
		w.change("a", func(p *v1.Pod) { sized("100m", "128Mi")(p) })
		p := w.await("a", "restarted", func(p *v1.Pod) bool {
			return has("100m", "128Mi")(p) && p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p)
		})
		if p.Status.Phase != v1.PodRunning {
			t.Errorf("phase %s", p.Status.Phase)
		}
		w.change("a", func(p *v1.Pod) { sized("200m", "128Mi")(p) })
		w.await("a", "cpu without a restart", func(p *v1.Pod) bool {
			return has("200m", "128Mi")(p) && p.Status.ContainerStatuses[0].RestartCount == 1
		})
		if asked := box.asked(); strings.Count(asked, "start c") != 2 || !strings.Contains(asked, "update c cpu=204/20000 memory=134217728") {
			t.Error(asked)
		}
		if !w.said("Killing Container c resize requires restart") {
			t.Errorf("events %q", w.told)
		}
	}
}

// What does not fit waits until another pod leaves; the important one comes first.
func TestResizeDeferred(t *testing.T) {
	w := newWorld(t) // 2 cpus
	w.add(w.pod("big", sized("1", "64Mi")))
	w.add(w.pod("a", sized("400m", "64Mi")))
	w.add(w.pod("b", sized("400m", "64Mi"), func(p *v1.Pod) { p.Spec.Priority = ptr.To[int32](5) }))
	for _, n := range []string{"a", "b"} {
		w.await(n, "runs", has("400m", "64Mi"))
	}
	w.await("big", "runs", isRunning)
	deferred := func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizePending)
		return c != nil && c.Reason == v1.PodReasonDeferred && c.ObservedGeneration == 2 && p.Status.ContainerStatuses[0].AllocatedResources.Cpu().String() == "400m"
	}
	w.change("a", sized("1200m", "64Mi"))
	p := w.await("a", "deferred", deferred)
	if got := findCondition(p, v1.PodResizePending).Message; got != "Node didn't have enough resource: cpu, requested: 1200, used: 1400, capacity: 2000" {
		t.Error(got)
	}
	w.change("b", sized("1200m", "64Mi"))
	w.await("b", "deferred", deferred)
	if !w.said("Warning ResizeDeferred Pod resize Deferred: ") {
		t.Errorf("events %q", w.told)
	}
	w.change("big", sized("3", "64Mi"))
	w.await("big", "infeasible", func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizePending)
		return c != nil && c.Reason == v1.PodReasonInfeasible && c.Message == "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000"
	})
	// A new pod does not get what was not granted either.
	w.add(w.pod("c", sized("500m", "64Mi")))
	w.await("c", "refused", func(p *v1.Pod) bool { return p.Status.Reason == "OutOfcpu" })
	w.remove("big", 0)
	w.await("b", "granted", has("1200m", "64Mi"))
	w.await("a", "deferred", deferred)
	w.change("b", sized("400m", "64Mi"))
	w.await("b", "smaller", has("400m", "64Mi"))
	w.await("a", "granted", has("1200m", "64Mi"))
}

// A limit below what is in use fails before anything is changed, and works once
// it is taken back.
func TestResizeBelowUsage(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", sized("100m", "64Mi")))
	w.await("a", "runs", has("100m", "64Mi"))
	box := w.rt.box("uid-a")
	box.mu.Lock()
	box.usage = 50 << 20
	box.mu.Unlock()
	w.change("a", sized("100m", "10Ki"))
	p := w.await("a", "fails", func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizeInProgress)
		return c != nil && c.Reason == v1.PodReasonError && strings.Contains(c.Message, "memory limit (10240) below current usage (52428800)")
	})
	if got := p.Status.ContainerStatuses[0].Resources.Limits.Memory().String(); got != "64Mi" || strings.Contains(box.asked(), "update") {
		t.Errorf("limit %s, asked %q", got, box.asked())
	}
	w.change("a", sized("100m", "64Mi"))
	w.await("a", "as before", has("100m", "64Mi"))

	box.mu.Lock()
	box.refuse = errors.New("no such file")
	box.mu.Unlock()
	w.change("a", sized("200m", "64Mi"))
	w.await("a", "fails again", func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizeInProgress)
		return c != nil && strings.Contains(c.Message, `changing the resources of container "c": no such file`)
	})
	box.mu.Lock()
	box.refuse = nil
	box.mu.Unlock()
	w.pass(10 * time.Second)
	w.await("a", "tried again", has("200m", "64Mi"))
}

// What was granted, and how far that was carried out, is known to the next agent.
func TestResizeSurvivesAgent(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("big", sized("1", "64Mi")))
	w.add(w.pod("a", sized("400m", "64Mi")))
	w.await("big", "runs", isRunning)
	w.await("a", "runs", has("400m", "64Mi"))
	w.change("a", sized("500m", "64Mi"))
	w.await("a", "resized", has("500m", "64Mi"))
	box := w.rt.box("uid-a")
	asked := box.asked()
	w.stop()
	// Meanwhile more is asked for than there is.
	p := w.get("a").DeepCopy()
	sized("1500m", "64Mi")(p)
	p.Generation = 3
	if _, err := w.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.start([]*v1.Pod{w.get("big"), w.get("a")})
	w.await("a", "deferred", func(p *v1.Pod) bool {
		c := findCondition(p, v1.PodResizePending)
		return c != nil && c.ObservedGeneration == 3 && p.Status.ContainerStatuses[0].Resources.Limits.Cpu().String() == "500m" && p.Status.ContainerStatuses[0].AllocatedResources.Cpu().String() == "500m"
	})
	if got := box.asked(); got != asked {
		t.Errorf("asked %q, and then %q", asked, got)
	}
	if w.told = nil; w.said("ResizeCompleted") {
		t.Errorf("events %q", w.told)
	}
	w.remove("big", 0)
	w.await("a", "granted", has("1500m", "64Mi"))

	// The agent dies between the decision to restart a container and its start.
	w.add(w.pod("b", sized("100m", "64Mi"), func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyOnFailure
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceCPU, RestartPolicy: v1.RestartContainer}}
	}))
	w.await("b", "runs", has("100m", "64Mi"))
	box = w.rt.box("uid-b")
	box.mu.Lock()
	box.signal = func(runtime.ContainerStatus, syscall.Signal) {} // it takes its time
	box.mu.Unlock()
	w.change("b", sized("200m", "64Mi"))
	w.eventually("it is being ended", func() bool { return strings.Contains(box.asked(), "terminated c") })
	w.stop()
	box.exit("c", 0) // which its restartPolicy takes for the end
	w.start([]*v1.Pod{w.get("a"), w.get("b")})
	w.await("b", "started again", func(p *v1.Pod) bool {
		return has("200m", "64Mi")(p) && p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p)
	})

	w.remove("b", 0)
	w.eventually("nothing is left", func() bool {
		_, err := os.Stat(filepath.Join(w.dir, "pods", "uid-b"))
		return os.IsNotExist(err)
	})
}

func TestPodLevelResize(t *testing.T) {
	w := newWorld(t)
	whole := func(cpu, memory string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Resources = &v1.ResourceRequirements{Requests: amounts(cpu, memory), Limits: amounts(cpu, memory)}
		}
	}
	w.add(w.pod("a", whole("200m", "64Mi")))
	w.await("a", "runs", isRunning)
	box := w.rt.box("uid-a")
	for _, c := range box.cfgs {
		if c.Resources.CPUQuota != 20000 || c.Resources.MemoryLimit != 64<<20 {
			t.Errorf("container %+v", c.Resources)
		}
	}
	if r := box.cfg.Resources; r.CPUShares != 204 || r.CPUQuota != 20000 || r.MemoryLimit != 64<<20 {
		t.Errorf("pod %+v", r)
	}
	w.change("a", whole("400m", "128Mi"))
	w.await("a", "resized", func(p *v1.Pod) bool {
		r := p.Status.Resources
		return r != nil && r.Limits.Memory().String() == "128Mi" && p.Status.AllocatedResources.Cpu().String() == "400m" && findCondition(p, v1.PodResizeInProgress) == nil
	})
	if got := box.asked(); got != "start c, update pod cpu=409/40000 memory=134217728, update c cpu=2/40000 memory=134217728, update pod cpu=409/40000 memory=134217728" {
		t.Error(got)
	}
}

func TestRuntimeClassOfNode(t *testing.T) {
	w := newWorld(t)
	class := func(name, handler string) {
		if _, err := w.client.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: handler}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	class("plain", "runc")
	class("vm", "kata")
	for _, name := range []string{"plain", "vm", "late"} {
		w.add(w.pod(name, func(p *v1.Pod) { p.Spec.RuntimeClassName = ptr.To(name) }))
	}
	w.await("plain", "runs", isRunning)
	for _, e := range []string{`FailedCreatePodSandBox Failed to create pod sandbox: no runtime for "kata" is configured`, `runtimeclasses.node.k8s.io "late" not found`} {
		w.eventually(e, func() bool { return w.said(e) })
	}
	class("late", "runc")
	w.pass(time.Minute)
	w.await("late", "runs", isRunning)
	if p := w.get("vm"); p.Status.Phase != v1.PodPending {
		t.Errorf("phase %s", p.Status.Phase)
	}
}

// A note of what was granted that a power failure has spoilt is one that is missing.
func TestDamagedAllocation(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "torn": `{"containers":{"c":{"li`, "zeros": "\x00\x00\x00"} {
		w := newWorld(t)
		w.add(w.pod("a", sized("400m", "64Mi")))
		w.await("a", "runs", has("400m", "64Mi"))
		w.stop()
		file := filepath.Join(w.dir, "pods", "uid-a", allocationName)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		w.start([]*v1.Pod{w.get("a")})
		w.change("a", sized("500m", "64Mi"))
		w.await("a", name, has("500m", "64Mi"))
		if a, err := readAllocation(filepath.Dir(file)); err != nil || a == nil || !sameQuantity(v1.ResourceCPU, a.Containers["c"].Limits, amounts("500m", "")) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		left, err := filepath.Glob(file + ".*")
		if err != nil || len(left) != 0 {
			t.Errorf("%s: %v is left, %v", name, left, err)
		}
	}
}

// A pod that was removed by force gives its room at once, as for the scheduler,
// though it takes a while to end.
func TestRoomOfRemovedPods(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("old", sized("1500m", "64Mi")))
	w.await("old", "runs", isRunning)
	box := w.rt.box("uid-old")
	box.mu.Lock()
	box.signal = func(runtime.ContainerStatus, syscall.Signal) {} // it takes its time
	box.mu.Unlock()
	w.m.Remove("uid-old")
	w.add(w.pod("new", sized("1500m", "64Mi")))
	w.await("new", "runs", isRunning)
}
