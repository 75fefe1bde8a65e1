package pod

import (
	"context"
	"io"
	"net"
	"net/netip"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

// Network gives sandboxes their addresses. netproxy/podnet implements it.
// Attach is idempotent: attaching a pod again returns the addresses it has.
type Network interface {
	// Attach connects the network namespace and returns the pod's addresses,
	// the first of each family being the primary one.
	Attach(ctx context.Context, podUID, netnsPath string) ([]netip.Addr, error)
	// Detach gives the pod's addresses back. No error when it has none.
	Detach(ctx context.Context, podUID string) error
	// Adopt tells which pods are still alive after a restart; what belongs to
	// others is released.
	Adopt(ctx context.Context, alive []string) error
	// HostPorts publishes ports of an attached pod on the node, in place of
	// those it published before. A port that another pod holds is an error.
	// Detach withdraws them.
	HostPorts(ctx context.Context, podUID string, ports []HostPort) error
	// DNS returns the cluster's name server and domain, as pods see them.
	DNS() (server netip.Addr, domain string)
}

// HostPort is one port of a container that is reached on the node.
type HostPort struct {
	HostIP        netip.Addr // zero: every address of the node
	HostPort      uint16
	ContainerPort uint16
	Protocol      v1.Protocol
}

// Runtime starts and adopts sandboxes. Wrap makes one of a *runtime.Runtime.
type Runtime interface {
	CreateSandbox(ctx context.Context, c runtime.SandboxConfig) (Sandbox, error)
	Sandboxes(ctx context.Context) ([]Sandbox, error)
}

// Sandbox is what the worker needs of a *runtime.Sandbox.
type Sandbox interface {
	PodUID() string
	Config() runtime.SandboxConfig
	NetNSPath() string
	Alive() bool
	StartContainer(ctx context.Context, c runtime.ContainerConfig) error
	Containers() []runtime.ContainerStatus
	Events(ctx context.Context) <-chan runtime.Event
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateResources(ctx context.Context, id string, r runtime.Resources) error
	UpdatePodResources(ctx context.Context, r runtime.Resources) error
	ReopenLog(ctx context.Context, id string) error
	Exec(ctx context.Context, id string, c runtime.ExecConfig, stdin io.Reader, stdout, stderr io.Writer, resize <-chan runtime.Size) (int, error)
	Attach(ctx context.Context, id string, stdin io.Reader, stdout, stderr io.Writer, tty bool, resize <-chan runtime.Size) error
	DialPort(ctx context.Context, port int32) (net.Conn, error)
	Stats(ctx context.Context) (map[string]runtime.Stats, error)
	PodStats(ctx context.Context) (runtime.Stats, error)
	Remove(ctx context.Context) error
}

// Images is what the worker needs of an *image.Store.
type Images interface {
	Get(ref string) (*image.Image, bool)
	Pull(ctx context.Context, ref string, auth authn.Keychain, progress image.ProgressFunc) (*image.Image, error)
	Mount(ctx context.Context, imageID, key string) (string, error)
	Unmount(key string) error
	Mounts() ([]string, error)
	Mounted(key string) (rootfs string, ok bool)
	MountUsage(key string) (bytes, inodes int64, err error)
}

// Wrap adapts the real runtime, whose methods return concrete types.
func Wrap(r *runtime.Runtime) Runtime { return wrapped{r} }

type wrapped struct{ r *runtime.Runtime }

// Check says why the runtime cannot be used; nil if it can.
func (w wrapped) Check() error { return w.r.Check() }

// AllStats reads the counters of all pods together.
func (w wrapped) AllStats() (runtime.Stats, error) { return w.r.AllStats() }

// SetClass limits the pods of a class together.
func (w wrapped) SetClass(class string, r runtime.Resources) error { return w.r.SetClass(class, r) }

// LimitsHugePages says whether containers can be kept to their huge pages.
func (w wrapped) LimitsHugePages() bool { return w.r.LimitsHugePages() }

func (w wrapped) CreateSandbox(ctx context.Context, c runtime.SandboxConfig) (Sandbox, error) {
	s, err := w.r.CreateSandbox(ctx, c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (w wrapped) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	list, err := w.r.Sandboxes(ctx)
	out := make([]Sandbox, 0, len(list))
	for _, s := range list {
		out = append(out, s)
	}
	return out, err
}
