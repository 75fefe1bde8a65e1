package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
	"github.com/skiff-sh/skiff/node/unmount"
)

// SandboxConfig describes the surroundings that a pod's containers share. It
// is recorded with the sandbox and returned by Sandbox.Config after adoption.
type SandboxConfig struct {
	PodUID    string `json:"podUID"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Attempt   uint32 `json:"attempt"`

	Hostname string `json:"hostname,omitempty"` // ignored with HostNetwork

	HostNetwork           bool `json:"hostNetwork,omitempty"` // the host's network and UTS namespaces
	HostPID               bool `json:"hostPID,omitempty"`
	HostIPC               bool `json:"hostIPC,omitempty"`
	ShareProcessNamespace bool `json:"shareProcessNamespace,omitempty"`

	// Class is the cgroup in Config.CgroupRoot in which the pod's is made: Burstable,
	// BestEffort, or "" for the root itself.
	Class     string    `json:"class,omitempty"`
	Resources Resources `json:"resources"` // of the pod as a whole

	// FenceFile and FenceAfter: the shim ends all containers when the last contact
	// that shimproto.FenceRecord in this file tells of is longer ago; "": never.
	FenceFile  string        `json:"fenceFile,omitempty"`
	FenceAfter time.Duration `json:"fenceAfter,omitempty"`

	Sysctls map[string]string `json:"sysctls,omitempty"` // net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*
	LogDir  string            `json:"logDir,omitempty"`
	ShmSize int64             `json:"shmSize,omitempty"` // bytes of /dev/shm; 64 MiB when 0

	Annotations map[string]string `json:"annotations,omitempty"` // the caller's own
}

const (
	removeTimeout = 15 * time.Second // for a shim to end its containers
	killTimeout   = 10 * time.Second
	// exitCodeLost is the exit code of a container whose end nobody saw, as
	// kubelet reports it too.
	exitCodeLost = 137
)

// Sandbox is a pod's shim and what runs below it. Safe for concurrent use.
type Sandbox struct {
	r      *Runtime
	cfg    SandboxConfig
	dir    string
	cgroup string
	pid    int
	pidfd  *shimproto.Pidfd

	removing sync.Mutex // serializes Remove

	mu    sync.Mutex
	known map[string]ContainerStatus
	subs  map[*subscriber]struct{}
	watch net.Conn // nil when not connected
	left  bool     // by disconnect, for good
	gone  bool
	done  chan struct{}
}

// PodUID is the pod's UID.
func (s *Sandbox) PodUID() string { return s.cfg.PodUID }

// Config is what the sandbox was created with, also after adoption.
func (s *Sandbox) Config() SandboxConfig { return s.cfg }

// PID is the shim's process; 0 when it was dead at adoption.
func (s *Sandbox) PID() int { return s.pid }

// CgroupPath is the pod's cgroup below the mount points.
func (s *Sandbox) CgroupPath() string { return s.cgroup }

// NetNSPath is the pod's network namespace; "" with HostNetwork. It is valid
// while the sandbox is alive.
func (s *Sandbox) NetNSPath() string {
	if s.cfg.HostNetwork || s.pid == 0 {
		return ""
	}
	return "/proc/" + strconv.Itoa(s.pid) + "/ns/net"
}

// Alive says whether the shim lives.
func (s *Sandbox) Alive() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// Done is closed when the shim is gone.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Containers returns what is known of all containers, without blocking.
func (s *Sandbox) Containers() []ContainerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ContainerStatus, 0, len(s.known))
	for _, c := range s.known {
		out = append(out, c)
	}
	return out
}

// Container returns what is known of one container, without blocking.
func (s *Sandbox) Container(id string) (ContainerStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.known[id]
	return c, ok
}

// StartContainer creates and starts a container. A nil error means that its
// command was executed. When it fails, the container does not exist. A start
// that ctx interrupts may still succeed; Containers and Events tell.
func (s *Sandbox) StartContainer(ctx context.Context, c ContainerConfig) error {
	if err := validUID(c.ID); err != nil {
		return fmt.Errorf("start container %q: its ID: %w", c.Name, err)
	}
	release, err := s.bindDescriptors(&c)
	if err != nil {
		return fmt.Errorf("start container %q: %w", c.Name, err)
	}
	unsure := false // whether the shim goes on: then it needs them until the sandbox ends
	defer func() {
		if unsure {
			return
		}
		if err := release(); err != nil {
			s.r.log.Error("release a container's mount sources", "container", c.Name, "err", err)
		}
	}()
	pid, closePID, err := s.pidNamespace(&c)
	if err != nil {
		return fmt.Errorf("start container %q: %w", c.Name, err)
	}
	defer closePID()
	spec, err := s.spec(&c, pid)
	if err != nil {
		return fmt.Errorf("start container %q: %w", c.Name, err)
	}
	logPath := c.LogPath
	if logPath != "" && !filepath.IsAbs(logPath) {
		logPath = filepath.Join(s.cfg.LogDir, logPath)
	}
	done, err := s.r.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	res, err := s.call(ctx, &shimproto.Request{Op: shimproto.OpStart, ID: c.ID, Start: &shimproto.Start{
		Status: ContainerStatus{
			ID: c.ID, Name: c.Name, Attempt: c.Attempt, LogPath: logPath, CgroupPath: spec.Linux.CgroupsPath,
			TTY: c.TTY, Stdin: c.Stdin, Annotations: c.Annotations,
		},
		Spec: spec, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
	}})
	if err != nil {
		var answer *shimError
		unsure = !errors.As(err, &answer)
		return fmt.Errorf("start container %q: %w", c.Name, err)
	}
	if res.Status != nil {
		s.learn(*res.Status)
	}
	return nil
}

// Signal sends a signal to the container's first process; SIGKILL ends all of
// the container's processes. ErrNotRunning when it has ended.
func (s *Sandbox) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := s.call(ctx, &shimproto.Request{Op: shimproto.OpSignal, ID: id, Signal: int(sig)})
	return err
}

// RemoveContainer forgets an exited container; a running one is killed first.
// ErrNotFound when there is none.
func (s *Sandbox) RemoveContainer(ctx context.Context, id string) error {
	if !s.Alive() {
		if _, ok := s.Container(id); !ok {
			return ErrNotFound
		}
		s.forget(id)
		return shimproto.RemoveRecord(s.dir, id)
	}
	_, err := s.call(ctx, &shimproto.Request{Op: shimproto.OpRemove, ID: id})
	if err == nil {
		s.forget(id)
	}
	return err
}

// UpdateResources changes a running container's cgroup limits. OOMScoreAdj
// does not change.
func (s *Sandbox) UpdateResources(ctx context.Context, id string, r Resources) error {
	lr, err := s.r.linuxResources(r)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, &shimproto.Request{Op: shimproto.OpUpdate, ID: id, Resources: lr})
	return err
}

// UpdatePodResources changes the limits of the pod's cgroup.
func (s *Sandbox) UpdatePodResources(ctx context.Context, r Resources) error {
	return s.UpdateResources(ctx, "", r)
}

// ReopenLog makes the shim open LogPath anew, after a rotation renamed it.
func (s *Sandbox) ReopenLog(ctx context.Context, id string) error {
	_, err := s.call(ctx, &shimproto.Request{Op: shimproto.OpReopen, ID: id})
	return err
}

// Remove kills what is left, ends the shim, and removes cgroups, mounts and
// records. It may be called again, after an error or not.
func (s *Sandbox) Remove(ctx context.Context) error {
	s.removing.Lock()
	defer s.removing.Unlock()
	if s.Alive() {
		sctx, cancel := context.WithTimeout(ctx, removeTimeout)
		_, err := s.call(sctx, &shimproto.Request{Op: shimproto.OpShutdown})
		cancel()
		if err != nil && !errors.Is(err, ErrSandboxGone) {
			if ctx.Err() != nil {
				return fmt.Errorf("remove sandbox of pod %s: %w", s.cfg.PodUID, ctx.Err())
			}
			s.r.log.Warn("a shim does not end by itself and is killed", "pod", s.cfg.PodUID, "err", err)
			if err := s.pidfd.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill the shim of pod %s: %w", s.cfg.PodUID, err)
			}
		}
		if err := s.pidfd.Wait(); err != nil {
			return err
		}
		select {
		case <-s.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.cleanUp(); err != nil {
		return fmt.Errorf("remove sandbox of pod %s: %w", s.cfg.PodUID, err)
	}
	return nil
}

// cleanUp removes what a dead shim left: processes, cgroups, mounts, files.
func (s *Sandbox) cleanUp() error {
	if err := s.r.cgroups.kill(s.cgroup, killTimeout); err != nil {
		return err
	}
	if err := s.r.cgroups.remove(s.cgroup); err != nil {
		return err
	}
	if err := unmount.Below(s.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	s.r.mu.Lock()
	if name := filepath.Base(s.dir); s.r.sandboxes[name] == s {
		delete(s.r.sandboxes, name)
	}
	s.r.mu.Unlock()
	return nil
}

// shimLog is what the shim last wrote, for error messages.
func (s *Sandbox) shimLog() string {
	f, err := os.Open(filepath.Join(s.dir, shimproto.LogName))
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 2000
	if fi, err := f.Stat(); err == nil && fi.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, tail))
	if err != nil || len(b) == 0 {
		return ""
	}
	return "; its log ends with: " + strings.TrimSpace(string(b))
}
