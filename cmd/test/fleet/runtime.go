package fleet

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// containers is a container runtime without processes: what is started runs
// until it is signalled. It survives its agent, as real containers do. (The
// fakes of package pod's own tests cannot be used here, nor these there: they
// are below the interfaces that package pod declares.)
type containers struct {
	mu      sync.Mutex
	boxes   map[string]*sandbox // by UID of the pod
	started int                 // of all time
}

// sandbox is one pod on it.
type sandbox struct {
	all *containers
	cfg runtime.SandboxConfig

	mu    sync.Mutex
	alive bool
	ctrs  []runtime.ContainerStatus
	subs  map[chan runtime.Event]struct{}
}

var errNotHere = errors.New("containers of the simulated fleet have no processes")

func newContainers() *containers { return &containers{boxes: map[string]*sandbox{}} }

func (c *containers) CreateSandbox(_ context.Context, cfg runtime.SandboxConfig) (pod.Sandbox, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &sandbox{all: c, cfg: cfg, alive: true, subs: map[chan runtime.Event]struct{}{}}
	c.boxes[cfg.PodUID] = s
	c.started++
	return s, nil
}

func (c *containers) Sandboxes(context.Context) ([]pod.Sandbox, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]pod.Sandbox, 0, len(c.boxes))
	for _, s := range c.boxes {
		out = append(out, s)
	}
	return out, nil
}

// lose ends all of them at once, as when the machine is switched off.
func (c *containers) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.boxes)
}

// count is how many pods were started so far.
func (c *containers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}

// running returns the number of running containers of each pod, by UID.
func (c *containers) running() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for uid, s := range c.boxes {
		for _, ctr := range s.Containers() {
			if ctr.State == runtime.Running {
				out[uid]++
			}
		}
	}
	return out
}

func (s *sandbox) PodUID() string                { return s.cfg.PodUID }
func (s *sandbox) Config() runtime.SandboxConfig { return s.cfg }
func (s *sandbox) NetNSPath() string             { return "/proc/self/ns/net" }

func (s *sandbox) Alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alive
}

func (s *sandbox) StartContainer(_ context.Context, c runtime.ContainerConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.ctrs = append(s.ctrs, runtime.ContainerStatus{ID: c.ID, Name: c.Name, Attempt: c.Attempt, State: runtime.Running,
		StartedAt: now, CreatedAt: now, Annotations: c.Annotations})
	return nil
}

func (s *sandbox) Containers() []runtime.ContainerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ctrs)
}

func (s *sandbox) Events(ctx context.Context) <-chan runtime.Event {
	in, out := make(chan runtime.Event, 64), make(chan runtime.Event)
	s.mu.Lock()
	s.subs[in] = struct{}{}
	s.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			s.mu.Lock()
			delete(s.subs, in)
			s.mu.Unlock()
		}()
		for {
			select {
			case ev := <-in:
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

func (s *sandbox) Signal(_ context.Context, id string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ctrs {
		c := &s.ctrs[i]
		if c.ID != id {
			continue
		}
		if c.State == runtime.Exited {
			return runtime.ErrNotRunning
		}
		c.State, c.ExitCode, c.FinishedAt = runtime.Exited, 128+int(sig), time.Now()
		for ch := range s.subs {
			select {
			case ch <- runtime.Event{Type: runtime.ContainerExited, Container: *c}:
			default: // nobody reads any more
			}
		}
		return nil
	}
	return runtime.ErrNotFound
}

func (s *sandbox) RemoveContainer(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.ctrs, func(c runtime.ContainerStatus) bool { return c.ID == id })
	if i < 0 {
		return runtime.ErrNotFound
	}
	s.ctrs = slices.Delete(s.ctrs, i, i+1)
	return nil
}

func (s *sandbox) Remove(context.Context) error {
	s.all.mu.Lock()
	if s.all.boxes[s.cfg.PodUID] == s {
		delete(s.all.boxes, s.cfg.PodUID)
	}
	s.all.mu.Unlock()
	s.mu.Lock()
	s.alive = false
	s.mu.Unlock()
	return nil
}

func (s *sandbox) UpdateResources(context.Context, string, runtime.Resources) error { return nil }
func (s *sandbox) UpdatePodResources(context.Context, runtime.Resources) error      { return nil }

func (s *sandbox) ReopenLog(context.Context, string) error { return nil }
func (s *sandbox) Exec(context.Context, string, runtime.ExecConfig, io.Reader, io.Writer, io.Writer, <-chan runtime.Size) (int, error) {
	return 0, errNotHere
}
func (s *sandbox) Attach(context.Context, string, io.Reader, io.Writer, io.Writer, bool, <-chan runtime.Size) error {
	return errNotHere
}
func (s *sandbox) DialPort(context.Context, int32) (net.Conn, error) { return nil, errNotHere }
func (s *sandbox) Stats(context.Context) (map[string]runtime.Stats, error) {
	return map[string]runtime.Stats{}, nil
}
func (s *sandbox) PodStats(context.Context) (runtime.Stats, error) { return runtime.Stats{}, nil }
