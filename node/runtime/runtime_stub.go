package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
)

var errSoon = errors.New("runtime: not built yet")

// Config configures a Runtime.
type Config struct {
	StateDir   string // sockets and records, on a tmpfs: /run/skiff/<id>
	DataDir    string // <data-dir>/node; the shim binary is written below it
	CgroupRoot string // "skiff" when empty
	Logger     *slog.Logger
	// MaxStarts bounds how many sandboxes and containers are being started at
	// one time; a value fitting the machine when 0.
	MaxStarts int
	// ShimPath is a shim binary to use in place of the embedded one.
	ShimPath string
}

// Sentinel errors; compare with errors.Is.
var (
	ErrNotFound    = errors.New("no such container")
	ErrNotRunning  = errors.New("container is not running")
	ErrSandboxGone = errors.New("the pod's supervisor is gone")
)

// Runtime starts and adopts sandboxes.
type Runtime struct{}

// New validates the configuration and writes the shim binary; it starts nothing.
func New(Config) (*Runtime, error) { return nil, errSoon }

// CreateSandbox spawns a pod's shim with its namespaces and cgroup.
func (r *Runtime) CreateSandbox(ctx context.Context, c SandboxConfig) (*Sandbox, error) {
	return nil, errSoon
}

// Sandboxes adopts: it returns every sandbox below StateDir, with living shims
// reconnected; those whose shim died are returned too, with what they recorded
// (Alive reports false) and wait to be removed.
func (r *Runtime) Sandboxes(ctx context.Context) ([]*Sandbox, error) { return nil, errSoon }

// Close drops the connections; shims and containers live on.
func (r *Runtime) Close() error { return nil }

// Sandbox is a pod's shim and what runs below it. Safe for concurrent use.
type Sandbox struct{}

func (s *Sandbox) PodUID() string        { return "" }
func (s *Sandbox) Config() SandboxConfig { return SandboxConfig{} }
func (s *Sandbox) PID() int              { return 0 }     // of the shim
func (s *Sandbox) NetNSPath() string     { return "" }    // "" with HostNetwork
func (s *Sandbox) Alive() bool           { return false } // the shim answers
func (s *Sandbox) Done() <-chan struct{} { return nil }   // closed when the shim is gone

// StartContainer creates and starts a container. A nil error means that its
// process was executed. When it fails the container does not exist.
func (s *Sandbox) StartContainer(ctx context.Context, c ContainerConfig) error { return errSoon }

// Containers returns what is known of all containers, without blocking.
func (s *Sandbox) Containers() []ContainerStatus { return nil }

// Container returns what is known of one container, without blocking.
func (s *Sandbox) Container(id string) (ContainerStatus, bool) { return ContainerStatus{}, false }

// Events returns changes from now on, until ctx ends or the sandbox is gone;
// then the channel is closed. Nothing is dropped.
func (s *Sandbox) Events(ctx context.Context) <-chan Event { return nil }

// Signal sends a signal to the container's first process. SIGKILL ends all its processes.
func (s *Sandbox) Signal(ctx context.Context, id string, sig syscall.Signal) error { return errSoon }

// RemoveContainer forgets an exited container (a running one is killed first).
func (s *Sandbox) RemoveContainer(ctx context.Context, id string) error { return errSoon }

// UpdateResources changes a running container's cgroup limits.
func (s *Sandbox) UpdateResources(ctx context.Context, id string, r Resources) error { return errSoon }

// UpdatePodResources changes the pod cgroup's limits.
func (s *Sandbox) UpdatePodResources(ctx context.Context, r Resources) error { return errSoon }

// ReopenLog makes the shim open LogPath anew, after a rotation renamed it.
func (s *Sandbox) ReopenLog(ctx context.Context, id string) error { return errSoon }

// Exec runs a process in a container until it ends or ctx ends (then it is
// killed). stdin, stdout, stderr and resize may be nil.
func (s *Sandbox) Exec(ctx context.Context, id string, c ExecConfig, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (exitCode int, err error) {
	return 0, errSoon
}

// Attach connects to a running container's streams until it exits, ctx ends
// or, when only stdin is given, stdin ends. Output from before is not
// repeated.
func (s *Sandbox) Attach(ctx context.Context, id string, stdin io.Reader, stdout, stderr io.Writer, tty bool, resize <-chan Size) error {
	return errSoon
}

// DialPort connects to localhost:port inside the sandbox's network namespace.
func (s *Sandbox) DialPort(ctx context.Context, port int32) (net.Conn, error) { return nil, errSoon }

// Stats reads the counters of the running containers, by container ID.
func (s *Sandbox) Stats(ctx context.Context) (map[string]Stats, error) { return nil, errSoon }

// PodStats reads the counters of the whole pod's cgroup.
func (s *Sandbox) PodStats(ctx context.Context) (Stats, error) { return Stats{}, errSoon }

// Remove kills what is left, ends the shim, and removes cgroups, mounts and
// records. Safe to call again.
func (s *Sandbox) Remove(ctx context.Context) error { return errSoon }
