package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttest "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/objects"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

// fakeRuntime runs nothing but tells what a kernel would tell.
type fakeRuntime struct {
	mu    sync.Mutex
	boxes map[string]*fakeSandbox
	all   []*fakeSandbox
	made  int
}

type fakeSandbox struct {
	r   *fakeRuntime
	cfg runtime.SandboxConfig

	mu     sync.Mutex
	alive  bool
	ctrs   []runtime.ContainerStatus
	cfgs   map[string]runtime.ContainerConfig
	subs   []chan runtime.Event
	signal func(c runtime.ContainerStatus, sig syscall.Signal) // default: it ends
	start  func(c runtime.ContainerConfig) error
	exec   func(args []string) int
	log    []string // what was asked, in order
	refuse error    // of UpdateResources
	usage  uint64   // of memory
}

func (r *fakeRuntime) CreateSandbox(_ context.Context, c runtime.SandboxConfig) (Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &fakeSandbox{r: r, cfg: c, alive: true, cfgs: map[string]runtime.ContainerConfig{}}
	if old := r.boxes[c.PodUID]; old != nil {
		s.start, s.signal, s.exec = old.start, old.signal, old.exec
	}
	r.boxes[c.PodUID] = s
	r.all = append(r.all, s)
	r.made++
	return s, nil
}

func (r *fakeRuntime) Sandboxes(context.Context) ([]Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Sandbox
	for _, s := range r.boxes {
		out = append(out, s)
	}
	return out, nil
}

func (r *fakeRuntime) box(uid string) *fakeSandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boxes[uid]
}

func (s *fakeSandbox) PodUID() string                { return s.cfg.PodUID }
func (s *fakeSandbox) Config() runtime.SandboxConfig { return s.cfg }
func (s *fakeSandbox) NetNSPath() string             { return "/proc/1/ns/net" }
func (s *fakeSandbox) Alive() bool                   { s.mu.Lock(); defer s.mu.Unlock(); return s.alive }

func (s *fakeSandbox) StartContainer(_ context.Context, c runtime.ContainerConfig) error {
	s.mu.Lock()
	hook := s.start
	s.mu.Unlock()
	if hook != nil {
		if err := hook(c); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.cfgs[c.ID] = c
	s.log = append(s.log, "start "+c.Name)
	s.ctrs = append(s.ctrs, runtime.ContainerStatus{ID: c.ID, Name: c.Name, Attempt: c.Attempt, State: runtime.Running,
		StartedAt: time.Now(), CreatedAt: time.Now(), Annotations: c.Annotations, LogPath: c.LogPath})
	s.mu.Unlock()
	return os.WriteFile(c.LogPath, nil, 0o600)
}

func (s *fakeSandbox) Containers() []runtime.ContainerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]runtime.ContainerStatus(nil), s.ctrs...)
}

func (s *fakeSandbox) Events(ctx context.Context) <-chan runtime.Event {
	ch := make(chan runtime.Event, 100)
	out := make(chan runtime.Event)
	s.mu.Lock()
	s.subs = append(s.subs, ch)
	s.mu.Unlock()
	go func() {
		defer close(out)
		for {
			select {
			case ev := <-ch:
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// exit ends the newest attempt of a container.
func (s *fakeSandbox) exit(name string, code int, change ...func(*runtime.ContainerStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.ctrs) - 1; i >= 0; i-- {
		c := &s.ctrs[i]
		if c.Name != name || c.State == runtime.Exited {
			continue
		}
		c.State, c.ExitCode, c.FinishedAt = runtime.Exited, code, time.Now()
		for _, f := range change {
			f(c)
		}
		s.log = append(s.log, "exit "+name)
		for _, ch := range s.subs {
			ch <- runtime.Event{Type: runtime.ContainerExited, Container: *c}
		}
		return
	}
}

func (s *fakeSandbox) die() {
	for _, c := range s.Containers() {
		s.exit(c.Name, 137)
	}
	s.mu.Lock()
	s.alive = false
	for _, ch := range s.subs {
		ch <- runtime.Event{Type: runtime.SandboxGone}
	}
	s.mu.Unlock()
}

func (s *fakeSandbox) Signal(_ context.Context, id string, sig syscall.Signal) error {
	for _, c := range s.Containers() {
		if c.ID != id {
			continue
		}
		if c.State == runtime.Exited {
			return runtime.ErrNotRunning
		}
		s.mu.Lock()
		s.log = append(s.log, fmt.Sprintf("%v %s", sig, c.Name))
		f := s.signal
		s.mu.Unlock()
		if f != nil && sig != syscall.SIGKILL {
			f(c, sig)
			return nil
		}
		code := 128 + int(sig)
		go s.exit(c.Name, code)
		return nil
	}
	return runtime.ErrNotFound
}

func (s *fakeSandbox) RemoveContainer(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.ctrs {
		if c.ID == id {
			s.ctrs = append(s.ctrs[:i:i], s.ctrs[i+1:]...)
			return nil
		}
	}
	return runtime.ErrNotFound
}
func (s *fakeSandbox) UpdateResources(_ context.Context, id string, r runtime.Resources) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return s.refuse
	}
	for _, c := range s.ctrs {
		if c.ID == id {
			cfg := s.cfgs[id]
			cfg.Resources = r
			s.cfgs[id] = cfg
			s.log = append(s.log, fmt.Sprintf("update %s cpu=%d/%d memory=%d", c.Name, r.CPUShares, r.CPUQuota, r.MemoryLimit))
		}
	}
	return nil
}

func (s *fakeSandbox) UpdatePodResources(_ context.Context, r runtime.Resources) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("update pod cpu=%d/%d memory=%d", r.CPUShares, r.CPUQuota, r.MemoryLimit))
	return nil
}

func (s *fakeSandbox) ReopenLog(context.Context, string) error { return nil }
func (s *fakeSandbox) Exec(_ context.Context, _ string, c runtime.ExecConfig, _ io.Reader, out, _ io.Writer, _ <-chan runtime.Size) (int, error) {
	s.mu.Lock()
	s.log = append(s.log, "exec "+strings.Join(c.Args, " "))
	f := s.exec
	s.mu.Unlock()
	if f == nil {
		return 0, nil
	}
	code := f(c.Args)
	if code < 0 {
		return 0, errors.New("exec failed")
	}
	fmt.Fprintf(out, "exited with %d", code)
	return code, nil
}
func (s *fakeSandbox) Attach(context.Context, string, io.Reader, io.Writer, io.Writer, bool, <-chan runtime.Size) error {
	return nil
}
func (s *fakeSandbox) DialPort(context.Context, int32) (net.Conn, error) {
	return nil, errors.New("no port")
}
func (s *fakeSandbox) Stats(context.Context) (map[string]runtime.Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]runtime.Stats{}
	for _, c := range s.ctrs {
		out[c.ID] = runtime.Stats{MemoryUsage: s.usage}
	}
	return out, nil
}
func (s *fakeSandbox) PodStats(context.Context) (runtime.Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return runtime.Stats{MemoryUsage: s.usage}, nil
}
func (s *fakeSandbox) Remove(context.Context) error {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.r.boxes[s.cfg.PodUID] == s {
		delete(s.r.boxes, s.cfg.PodUID)
	}
	s.mu.Lock()
	s.alive = false
	s.mu.Unlock()
	return nil
}

func (s *fakeSandbox) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, ", ")
}

type fakeImages struct {
	mu      sync.Mutex
	images  map[string]*image.Image
	pull    func(ref string) (*image.Image, error)
	mounted map[string]bool
}

func (f *fakeImages) Get(ref string) (*image.Image, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.images[ref]
	return i, ok
}
func (f *fakeImages) Pull(_ context.Context, ref string, _ authn.Keychain, _ image.ProgressFunc) (*image.Image, error) {
	img, err := f.pull(ref)
	if err == nil {
		f.mu.Lock()
		f.images[ref] = img
		f.mu.Unlock()
	}
	return img, err
}
func (f *fakeImages) Mount(_ context.Context, _, key string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted[key] = true
	return "/rootfs/" + key, nil
}
func (f *fakeImages) Unmount(key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounted, key)
	return nil
}
func (f *fakeImages) Mounts() (out []string, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.mounted {
		out = append(out, k)
	}
	return out, nil
}
func (f *fakeImages) Mounted(key string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "/rootfs/" + key, f.mounted[key]
}
func (f *fakeImages) MountUsage(string) (int64, int64, error) { return 0, 0, nil }

type fakeNetwork struct {
	mu    sync.Mutex
	addrs map[string]netip.Addr
	n     byte
	alive []string
	// hostPorts by pod UID.
	hostPorts map[string][]HostPort
}

func (f *fakeNetwork) Attach(_ context.Context, uid, _ string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.addrs[uid]; !ok {
		f.n++
		f.addrs[uid] = netip.AddrFrom4([4]byte{10, 42, 0, f.n})
	}
	return []netip.Addr{f.addrs[uid]}, nil
}
func (f *fakeNetwork) HostPorts(_ context.Context, uid string, ports []HostPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hostPorts == nil {
		f.hostPorts = map[string][]HostPort{}
	}
	f.hostPorts[uid] = ports
	return nil
}
func (f *fakeNetwork) Detach(_ context.Context, uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.addrs, uid)
	return nil
}
func (f *fakeNetwork) Adopt(_ context.Context, alive []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alive = alive
	return nil
}
func (f *fakeNetwork) DNS() (netip.Addr, string) {
	return netip.MustParseAddr("10.43.0.10"), "cluster.local"
}

// world is a node with fakes below and a fake API above.
type world struct {
	t       *testing.T
	rt      *fakeRuntime
	images  *fakeImages
	network *fakeNetwork
	client  *fake.Clientset
	objects *objects.Source
	events  *record.FakeRecorder
	m       *Manager
	runtime Runtime // rt, unless the test runs real containers
	store   Images
	net     Network // network, unless the test puts something in between
	gate    *gate   // see crash_test.go
	dir     string
	logDir  string // in place of dir/logs
	cancel  context.CancelFunc

	mu    sync.Mutex
	told  []string // events
	skew  time.Duration
	clock time.Time // stands still at this; zero: runs
	rv    int
	node  *v1.Node
	write int // status writes
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), rt: &fakeRuntime{boxes: map[string]*fakeSandbox{}},
		network: &fakeNetwork{addrs: map[string]netip.Addr{}},
		images: &fakeImages{mounted: map[string]bool{}, images: map[string]*image.Image{
			"app": {ID: "sha256:1", RepoDigests: []string{"docker.io/library/app@sha256:2"}, Config: ocispec.ImageConfig{Entrypoint: []string{"/app"}, Cmd: []string{"run"}, Env: []string{"A=image"}}}},
			pull: func(ref string) (*image.Image, error) { return nil, image.ErrNotFound }},
		client: fake.NewSimpleClientset()}
	w.runtime, w.store, w.net = w.rt, w.images, w.network
	// The fake API does not count versions; the worker wants them.
	w.client.PrependReactor("update", "pods", func(a clienttest.Action) (bool, apiruntime.Object, error) {
		p := a.(clienttest.UpdateAction).GetObject().(*v1.Pod)
		w.mu.Lock()
		w.rv++
		w.write++
		p.ResourceVersion = fmt.Sprint(w.rv)
		w.mu.Unlock()
		// As in the real one, a status changes nothing else, and nothing else a status.
		if have, err := w.client.Tracker().Get(v1.SchemeGroupVersion.WithResource("pods"), p.Namespace, p.Name); err == nil {
			if old := have.(*v1.Pod).DeepCopy(); a.GetSubresource() == "status" {
				p.Spec, p.Generation, p.DeletionTimestamp = old.Spec, old.Generation, old.DeletionTimestamp
			} else {
				p.Status = old.Status
			}
		}
		return false, nil, nil
	})
	w.objects = objects.New(objects.Config{Client: w.client, Logger: slog.New(slog.DiscardHandler)})
	w.start(nil)
	t.Cleanup(func() {
		w.stop()
		w.objects.Close()
	})
	return w
}

// start begins an agent on what is there.
func (w *world) start(pods []*v1.Pod) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.events = record.NewFakeRecorder(1000)
	w.m = NewManager(Config{NodeName: "n1", HostIPs: []string{"192.0.2.1"}, Client: w.client, Runtime: w.runtime, Images: w.store, Network: w.net,
		Volumes: volume.New(volume.Config{Root: filepath.Join(w.dir, "pods"), MemRoot: filepath.Join(w.dir, "mem"), Objects: w.objects, Logger: slog.New(slog.DiscardHandler)}),
		Objects: w.objects, Services: func(context.Context) ([]*v1.Service, error) { return nil, nil }, Node: func() *v1.Node { return w.node },
		Recorder: w.events, DataDir: w.dir, LogDir: cmp.Or(w.logDir, filepath.Join(w.dir, "logs")), ResolvConf: "/dev/null",
		DNS:            DNS{Server: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"},
		Allocatable:    v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("4Gi"), v1.ResourcePods: resource.MustParse("10")},
		MemoryCapacity: 4 << 30, Logger: slog.New(slog.DiscardHandler),
		save: w.save, now: w.now})
	if err := w.m.Start(ctx, pods); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stop() {
	w.cancel()
	w.m.Wait()
	w.said("")
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.clock.IsZero() {
		return w.clock.Add(w.skew)
	}
	return time.Now().Add(w.skew)
}

// hold stops the clock: time passes only by pass.
func (w *world) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = time.Now()
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	w.skew += d
	w.mu.Unlock()
	w.m.Poke()
}

func (w *world) said(part string) bool { return w.times(part) > 0 }

// times counts the events so far with part in them.
func (w *world) times(part string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		select {
		case e := <-w.events.Events:
			w.told = append(w.told, e)
			continue
		default:
		}
		break
	}
	for _, e := range w.told {
		if strings.Contains(e, part) {
			n++
		}
	}
	return n
}

func (w *world) pod(name string, change ...func(*v1.Pod)) *v1.Pod {
	w.mu.Lock()
	w.rv++
	rv := w.rv
	w.mu.Unlock()
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), ResourceVersion: fmt.Sprint(rv)},
		Spec: v1.PodSpec{NodeName: "n1", RestartPolicy: v1.RestartPolicyAlways, DNSPolicy: v1.DNSClusterFirst,
			Containers: []v1.Container{{Name: "c", Image: "app", ImagePullPolicy: v1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log"}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func (w *world) add(p *v1.Pod) {
	w.t.Helper()
	if _, err := w.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.m.Update(p)
}

func (w *world) get(name string) *v1.Pod {
	p, err := w.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

// await waits until the API's pod is as wanted.
func (w *world) await(name, what string, ok func(*v1.Pod) bool) *v1.Pod {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		p := w.get(name)
		if p != nil && ok(p) {
			return p
		}
		if time.Now().After(end) {
			w.said("")
			w.t.Fatalf("%s never came to be: %s; status %+v\nevents %q", name, what, p.Status, w.told)
		}
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.said("")
			w.t.Fatalf("never: %s\nevents %q", what, w.told)
		}
	}
}

// remove asks for a pod's deletion as the API server does.
func (w *world) remove(name string, grace int64) {
	p := w.get(name).DeepCopy()
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	p, err := w.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m.Update(p)
}

func isRunning(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning }
func isReady(p *v1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}
