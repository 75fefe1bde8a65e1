package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttest "k8s.io/client-go/testing"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

// A kill -9 is nothing to the worker but that its steps stop having effects.
// So every step that has one goes through a gate, which counts it under its
// name and can shut right before or right after it. Behind a shut gate nothing
// has an effect any more, and a new agent begins on what is left.

var errKilled = errors.New("the agent is dead")

type gate struct {
	mu    sync.Mutex
	count map[string]int
	order []string // names in the order in which they were met
	at    string   // where to shut: name#n
	after bool
	shut  bool
	dead  chan struct{}
}

func newGate() *gate { return &gate{count: map[string]int{}, dead: make(chan struct{})} }

func (g *gate) die() {
	if !g.shut {
		g.shut = true
		close(g.dead)
	}
}

// step does f unless the agent is dead; its result must not be used when it is
// afterwards.
func (g *gate) step(name string, f func() error) error {
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return errKilled
	}
	g.count[name]++
	point := fmt.Sprintf("%s#%d", name, g.count[name])
	g.order = append(g.order, point)
	here := point == g.at
	if here && !g.after {
		g.die()
		g.mu.Unlock()
		return errKilled
	}
	g.mu.Unlock()
	err := f()
	g.mu.Lock()
	defer g.mu.Unlock()
	if here {
		g.die()
	}
	if g.shut {
		return errKilled
	}
	return err
}

// revive lets a new agent through; what is left of the old one stays dead.
func (w *world) revive() *gate {
	g := newGate()
	w.mu.Lock()
	w.gate = g
	w.mu.Unlock()
	w.runtime, w.store, w.net = gatedRuntime{w.rt, g}, gatedImages{w.images, g}, gatedNetwork{w.network, g}
	return g
}

type gatedRuntime struct {
	*fakeRuntime
	g *gate
}

func (r gatedRuntime) CreateSandbox(ctx context.Context, c runtime.SandboxConfig) (s Sandbox, err error) {
	err = r.g.step("create sandbox", func() (err error) {
		var made Sandbox
		made, err = r.fakeRuntime.CreateSandbox(ctx, c)
		s = gatedSandbox{made, r.g}
		return err
	})
	return s, err
}

func (r gatedRuntime) Sandboxes(ctx context.Context) (out []Sandbox, err error) {
	list, err := r.fakeRuntime.Sandboxes(ctx)
	for _, s := range list {
		out = append(out, gatedSandbox{s, r.g})
	}
	return out, err
}

type gatedSandbox struct {
	Sandbox
	g *gate
}

func (s gatedSandbox) StartContainer(ctx context.Context, c runtime.ContainerConfig) error {
	return s.g.step(fmt.Sprintf("start %s/%d", c.Name, c.Attempt), func() error { return s.Sandbox.StartContainer(ctx, c) })
}

func (s gatedSandbox) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	name := "?"
	for _, c := range s.Containers() {
		if c.ID == id {
			name = c.Name
		}
	}
	return s.g.step(fmt.Sprintf("signal %s", name), func() error { return s.Sandbox.Signal(ctx, id, sig) })
}

func (s gatedSandbox) RemoveContainer(ctx context.Context, id string) error {
	return s.g.step("forget container", func() error { return s.Sandbox.RemoveContainer(ctx, id) })
}

func (s gatedSandbox) Exec(ctx context.Context, id string, c runtime.ExecConfig, in io.Reader, out, errs io.Writer, sizes <-chan runtime.Size) (code int, err error) {
	err = s.g.step("exec "+strings.Join(c.Args, " "), func() (err error) {
		code, err = s.Sandbox.Exec(ctx, id, c, in, out, errs, sizes)
		return err
	})
	return code, err
}

func (s gatedSandbox) Remove(ctx context.Context) error {
	return s.g.step("remove sandbox", func() error { return s.Sandbox.Remove(ctx) })
}

type gatedImages struct {
	*fakeImages
	g *gate
}

func (i gatedImages) Mount(ctx context.Context, id, key string) (path string, err error) {
	err = i.g.step("mount root", func() (err error) { path, err = i.fakeImages.Mount(ctx, id, key); return err })
	return path, err
}

func (i gatedImages) Unmount(key string) error {
	return i.g.step("unmount root", func() error { return i.fakeImages.Unmount(key) })
}

func (i gatedImages) Get(ref string) (*image.Image, bool) { return i.fakeImages.Get(ref) }

type gatedNetwork struct {
	*fakeNetwork
	g *gate
}

func (n gatedNetwork) Attach(ctx context.Context, uid, ns string) (addrs []netip.Addr, err error) {
	err = n.g.step("attach network", func() (err error) { addrs, err = n.fakeNetwork.Attach(ctx, uid, ns); return err })
	return addrs, err
}

func (n gatedNetwork) HostPorts(ctx context.Context, uid string, ports []HostPort) error {
	return n.g.step("publish ports", func() error { return n.fakeNetwork.HostPorts(ctx, uid, ports) })
}

func (n gatedNetwork) Detach(ctx context.Context, uid string) error {
	return n.g.step("detach network", func() error { return n.fakeNetwork.Detach(ctx, uid) })
}

// gateAPI lets the agent's writes to the API through the gate.
func (w *world) gateAPI() {
	pods := v1.SchemeGroupVersion.WithResource("pods")
	w.client.PrependReactor("update", "pods", func(a clienttest.Action) (bool, apiruntime.Object, error) {
		if a.GetSubresource() != "status" {
			return false, nil, nil // the user
		}
		w.mu.Lock()
		g := w.gate
		w.mu.Unlock()
		p := a.(clienttest.UpdateAction).GetObject().(*v1.Pod).DeepCopy()
		err := g.step("write status", func() error {
			have, err := w.client.Tracker().Get(pods, p.Namespace, p.Name)
			if err != nil {
				return err
			}
			next := have.(*v1.Pod).DeepCopy() // a status never changes the rest
			next.Status = p.Status
			w.mu.Lock()
			w.rv++
			next.ResourceVersion = fmt.Sprint(w.rv)
			w.mu.Unlock()
			p = next
			return w.client.Tracker().Update(pods, next, p.Namespace)
		})
		return true, p, err
	})
	w.client.PrependReactor("delete", "pods", func(a clienttest.Action) (bool, apiruntime.Object, error) {
		w.mu.Lock()
		g := w.gate
		w.mu.Unlock()
		d := a.(clienttest.DeleteAction)
		err := g.step("delete object", func() error { return w.client.Tracker().Delete(pods, d.GetNamespace(), d.GetName()) })
		return true, nil, err
	})
}

// A life is what happens to a pod, from the outside.
type life struct {
	name  string
	pod   func(*v1.Pod)
	turns func(w *world, p *v1.Pod) []func() bool // each is tried until it is true
	must  []string                                // steps that it has
	asked map[string]int                          // of the runtime, exactly
	least map[string]int                          // of the runtime, or more often
}

var lives = []life{
	{"service", everything, (*world).service,
		[]string{"create sandbox", "attach network", "publish ports", "mount root", "start i/0", "start s/0", "start c/0", "start c/1",
			"exec hello", "exec ready", "write status", "forget container", "exec bye c", "exec bye s", "signal c", "signal s", "unmount root",
			"remove sandbox", "detach network", "delete object"},
		map[string]int{"start i": 1, "start s": 1, "start c": 2, "killed c": 0, "killed s": 0},
		map[string]int{"exec hello": 2, "exec bye c": 1, "exec bye s": 1, "terminated c": 1, "terminated s": 1}},
	{"job", func(p *v1.Pod) {
		everything(p)
		p.Spec.RestartPolicy, p.Spec.Containers[0].ReadinessProbe = v1.RestartPolicyNever, nil
	}, (*world).job,
		[]string{"start i/0", "start s/0", "start c/0", "exec bye s", "signal s", "write status", "remove sandbox", "delete object"},
		map[string]int{"start i": 1, "start s": 1, "start c": 1, "killed s": 0, "exec bye c": 0},
		map[string]int{"exec hello": 1, "exec bye s": 1, "terminated s": 1}},
}

// job ends well, is looked at by a later agent, and is deleted.
func (w *world) job(p *v1.Pod) []func() bool {
	main := func() *v1.ContainerStatus {
		got := w.get(p.Name)
		if got == nil || len(got.Status.ContainerStatuses) == 0 {
			return &v1.ContainerStatus{}
		}
		return &got.Status.ContainerStatuses[0]
	}
	done := func() bool { got := w.get(p.Name); return got != nil && got.Status.Phase == v1.PodSucceeded }
	return []func() bool{
		func() bool { return w.exitOnce(p, "i", 0) },
		func() bool { return main().State.Running != nil && w.exitOnce(p, "c", 0) },
		done,
		func() bool {
			w.stop()
			w.start([]*v1.Pod{w.get(p.Name)})
			return true
		},
		func() bool {
			v, err := w.m.Find(p.Namespace, p.Name, "")
			return err == nil && v.State == Gone && done()
		},
		func() bool { w.remove(p.Name, 30); return true },
		func() bool { return w.get(p.Name) == nil },
	}
}

// exitOnce ends a container as soon as it runs.
func (w *world) exitOnce(p *v1.Pod, name string, code int) bool {
	b := w.rt.box(string(p.UID))
	if b == nil || !b.started(name) {
		return false
	}
	b.exit(name, code)
	return true
}

// service starts, its main container fails once and is restarted, and it is
// deleted.
func (w *world) service(p *v1.Pod) []func() bool {
	name := p.Name
	status := func() *v1.ContainerStatus {
		got := w.get(name)
		if got == nil || len(got.Status.ContainerStatuses) == 0 {
			return &v1.ContainerStatus{}
		}
		return &got.Status.ContainerStatuses[0]
	}
	return []func() bool{
		func() bool { return w.exitOnce(p, "i", 0) },
		func() bool {
			if s := status(); s.State.Running == nil || !s.Ready {
				return false
			}
			w.rt.box(string(p.UID)).exit("c", 1)
			return true
		},
		func() bool {
			if s := status(); s.State.Running == nil || s.RestartCount != 1 || !s.Ready {
				return false
			}
			w.remove(name, 30)
			return true
		},
		func() bool { return w.get(name) == nil },
	}
}

func (s *fakeSandbox) started(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.log, "start "+name)
}

func everything(p *v1.Pod) {
	always := v1.ContainerRestartPolicyAlways
	hook := func(words ...string) *v1.LifecycleHandler {
		return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: words}}
	}
	p.Spec.InitContainers = []v1.Container{{Name: "i", Image: "app"},
		{Name: "s", Image: "app", RestartPolicy: &always, Lifecycle: &v1.Lifecycle{PreStop: hook("bye", "s")}}}
	c := &p.Spec.Containers[0]
	c.Lifecycle = &v1.Lifecycle{PostStart: hook("hello"), PreStop: hook("bye", "c")}
	c.Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: v1.ProtocolTCP}}
	c.ReadinessProbe = &v1.Probe{PeriodSeconds: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ready"}}}}
	c.LivenessProbe = &v1.Probe{InitialDelaySeconds: 3600, ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(1)}}}
	p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
	c.VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
}

// live runs the pod's life, with one death of the agent where the gate says,
// and returns the names of the steps. dead is whether it died.
func (w *world) live(t *testing.T, g *gate, l life) (dead bool) {
	w.stop()
	w.start(nil)
	p := w.pod("a", l.pod)
	w.add(p)
	turns := l.turns(w, p)
	for end := time.Now().Add(2 * time.Minute); len(turns) > 0; time.Sleep(time.Millisecond) {
		select {
		case <-g.dead:
			if !dead {
				dead = true
				w.stop()
				w.revive()
				var list []*v1.Pod
				if got := w.get("a"); got != nil {
					list = append(list, got)
				}
				w.start(list)
			}
		default:
		}
		if turns[0]() {
			turns = turns[1:]
		}
		if time.Now().After(end) {
			got := w.get("a")
			w.said("")
			t.Fatalf("it never came to its end, %d turns are left: %+v\nevents %q", len(turns), got, w.told)
		}
	}
	w.m.Remove(p.UID)
	w.eventually("nothing is left", func() bool {
		mounts, _ := w.images.Mounts()
		w.network.mu.Lock()
		addrs := len(w.network.addrs)
		w.network.mu.Unlock()
		_, files := os.Stat(filepath.Join(w.dir, "pods", string(p.UID)))
		_, logs := os.Stat(filepath.Join(w.dir, "logs", logBase(p)))
		return w.rt.box(string(p.UID)) == nil && len(mounts) == 0 && addrs == 0 && os.IsNotExist(files) && os.IsNotExist(logs)
	})
	return dead
}

func crashWorld(t *testing.T) (*world, *gate) {
	w := newWorld(t)
	w.gateAPI()
	return w, w.revive()
}

// TestKilledBetweenEachTwoSteps kills the agent right before and right after
// each step of a pod's life. Whatever the point, the life comes to the same
// end: each container is started as often as without a death, its hooks run at
// least once, nothing is left behind.
func TestKilledBetweenEachTwoSteps(t *testing.T) {
	for _, l := range lives {
		t.Run(l.name, func(t *testing.T) { l.killed(t) })
	}
}

func (l life) killed(t *testing.T) {
	w, g := crashWorld(t)
	if w.live(t, g, l) {
		t.Fatal("it died of itself")
	}
	l.check(t, w)
	var points []string
	missing := map[string]bool{}
	for _, name := range l.must {
		missing[name] = true
	}
	for _, p := range g.order {
		name, n, _ := strings.Cut(p, "#")
		delete(missing, name)
		if name == "exec ready" && n != "1" {
			continue // it goes on for as long as the pod runs
		}
		points = append(points, p)
	}
	if len(missing) > 0 {
		t.Fatalf("steps that were not met: %v; met: %q", missing, g.order)
	}
	var mu sync.Mutex
	met := map[string]bool{}
	t.Run("kill", func(t *testing.T) {
		for _, p := range points {
			for _, after := range []bool{false, true} {
				where := map[bool]string{false: "before ", true: "after "}[after] + p
				t.Run(strings.NewReplacer(" ", "_", "/", "-").Replace(where), func(t *testing.T) {
					t.Parallel()
					w, g := crashWorld(t)
					g.mu.Lock()
					g.at, g.after = p, after
					g.mu.Unlock()
					if w.live(t, g, l) {
						mu.Lock()
						met[where] = true
						mu.Unlock()
					}
					l.check(t, w)
				})
			}
		}
	})
	t.Logf("%d points, %d met", 2*len(points), len(met))
	sure, missed := 0, 0
	for _, p := range points {
		if strings.HasPrefix(p, "write status#") || strings.HasPrefix(p, "unmount root#") {
			continue // how many there are, and before the end, depends on the moment
		}
		for _, where := range []string{"before " + p, "after " + p} {
			if sure++; !met[where] {
				missed++
			}
		}
	}
	if missed > sure/10 {
		t.Errorf("%d of %d points were never met", missed, sure)
	}
}

// check looks at what the runtime was asked over the whole life.
func (l life) check(t *testing.T, w *world) {
	t.Helper()
	w.rt.mu.Lock()
	boxes, made := slices.Clone(w.rt.all), w.rt.made
	w.rt.mu.Unlock()
	asked := map[string]int{}
	for _, b := range boxes {
		b.mu.Lock()
		for _, what := range b.log {
			asked[what]++
		}
		b.mu.Unlock()
	}
	if made != 1 {
		t.Errorf("%d sandboxes were made", made)
	}
	for what, n := range l.asked {
		if asked[what] != n {
			t.Errorf("%s: %d times, want %d", what, asked[what], n)
		}
	}
	for what, n := range l.least {
		if asked[what] < n {
			t.Errorf("%s: %d times, want %d or more; asked %v", what, asked[what], n, asked)
		}
	}
}
