package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

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
	ErrExists      = errors.New("exists already")
	ErrSandboxGone = errors.New("the pod's supervisor is gone")
)

// Runtime starts and adopts sandboxes. It is safe for concurrent use; only one
// Runtime may use a StateDir at a time.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	shim    string
	cgroups *cgroupTree
	starts  chan struct{} // a token for each start under way
	caps    capabilitySet // what this process may hand out
	oomOnce sync.Once

	mu        sync.Mutex
	sandboxes map[string]*Sandbox // by directory name
	creating  map[string]bool     // directory names that adoption leaves alone
}

// New validates the configuration and writes the shim binary; it starts nothing. It
// sets the process's umask to 022, which shims and containers' mounts inherit: with
// that of many administrators only root could use them.
func New(cfg Config) (*Runtime, error) {
	if !filepath.IsAbs(cfg.StateDir) || !filepath.IsAbs(cfg.DataDir) {
		return nil, fmt.Errorf("runtime: StateDir %q and DataDir %q must be absolute paths", cfg.StateDir, cfg.DataDir)
	}
	unix.Umask(0o022)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = "skiff"
	}
	if cfg.MaxStarts <= 0 {
		// Starting is mostly kernel work under a few kernel-wide locks: more
		// at a time only makes each one slower.
		cfg.MaxStarts = max(4, 2*goruntime.NumCPU())
	}
	r := &Runtime{
		cfg:       cfg,
		log:       cfg.Logger,
		shim:      cfg.ShimPath,
		starts:    make(chan struct{}, cfg.MaxStarts),
		sandboxes: map[string]*Sandbox{},
		creating:  map[string]bool{},
	}
	var err error
	if r.cgroups, err = openCgroups(); err != nil {
		return nil, err
	}
	if r.caps, err = ownCapabilities(); err != nil {
		return nil, err
	}
	if r.shim == "" {
		if r.shim, err = installShim(cfg.DataDir); err != nil {
			return nil, err
		}
	}
	if within(filepath.Dir(r.shim), cfg.StateDir) {
		// libcontainer would copy the whole binary at each start.
		return nil, fmt.Errorf("runtime: StateDir %s must not lie below the shim's directory %s", cfg.StateDir, filepath.Dir(r.shim))
	}
	if err := os.MkdirAll(r.root(), 0o700); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	return r, nil
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// root is where sandboxes have their directories.
func (r *Runtime) root() string { return filepath.Join(r.cfg.StateDir, "p") }

// begin takes a token for a start; the returned function gives it back.
func (r *Runtime) begin(ctx context.Context) (func(), error) {
	select {
	case r.starts <- struct{}{}:
		return func() { <-r.starts }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// validUID accepts what may name a directory and a cgroup.
func validUID(uid string) error {
	if uid == "" || len(uid) > 128 || strings.HasPrefix(uid, ".") ||
		strings.Trim(uid, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" {
		return fmt.Errorf("%q does not serve as a pod UID", uid)
	}
	return nil
}

// clientRecord is what a sandbox's directory holds for the next skiff.
type clientRecord struct {
	Config SandboxConfig `json:"config"`
	Shim   string        `json:"shim"`
}

// CreateSandbox spawns a pod's shim with its namespaces and cgroup. A pod has
// one sandbox at a time: the one before must be removed first (ErrExists).
func (r *Runtime) CreateSandbox(ctx context.Context, c SandboxConfig) (_ *Sandbox, err error) {
	if err := validUID(c.PodUID); err != nil {
		return nil, err
	}
	switch c.Class {
	case "", Burstable, BestEffort:
	default:
		return nil, fmt.Errorf("sandbox of pod %s: there is no class of pods %q", c.PodUID, c.Class)
	}
	done, err := r.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()

	r.mu.Lock()
	busy := r.creating[c.PodUID]
	r.creating[c.PodUID] = true
	r.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("sandbox of pod %s: %w", c.PodUID, ErrExists)
	}
	defer func() {
		r.mu.Lock()
		delete(r.creating, c.PodUID)
		r.mu.Unlock()
	}()
	s := r.newSandbox(c, c.PodUID)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("sandbox of pod %s: %w", c.PodUID, ErrExists)
		}
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	defer func() {
		if err != nil {
			if s.pidfd != nil { // the shim runs, and nobody would know it any more
				if kerr := s.pidfd.Signal(unix.SIGKILL); kerr == nil {
					_ = s.pidfd.Wait()
				}
			}
			if cerr := s.cleanUp(); cerr != nil {
				r.log.Error("clean up a sandbox that did not start", "pod", c.PodUID, "err", cerr)
			}
		}
	}()
	if err := s.writeConfig(r.shim); err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	if !c.HostIPC {
		if err := s.mountShm(); err != nil {
			return nil, fmt.Errorf("create sandbox: %w", err)
		}
	}
	if err := s.spawn(ctx); err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	if err := s.connect(ctx); err != nil {
		return nil, fmt.Errorf("create sandbox: %w%s", err, s.shimLog())
	}
	r.mu.Lock()
	r.sandboxes[c.PodUID] = s
	r.mu.Unlock()
	return s, nil
}

func (r *Runtime) newSandbox(c SandboxConfig, name string) *Sandbox {
	return &Sandbox{
		r:      r,
		cfg:    c,
		dir:    filepath.Join(r.root(), name),
		cgroup: filepath.Join("/", r.cfg.CgroupRoot, c.Class, "pod"+c.PodUID),
		known:  map[string]ContainerStatus{},
		done:   make(chan struct{}),
	}
}

func (s *Sandbox) writeConfig(shim string) error {
	client, err := json.Marshal(clientRecord{Config: s.cfg, Shim: shim})
	if err != nil {
		return err
	}
	sb := shimproto.Sandbox{
		Hostname:    s.cfg.Hostname,
		HostNetwork: s.cfg.HostNetwork,
		HostIPC:     s.cfg.HostIPC,
		SharePID:    s.cfg.ShareProcessNamespace && !s.cfg.HostPID,
		Cgroup:      s.cgroup,
		Sysctls:     s.cfg.Sysctls,
		SeccompDir:  filepath.Join(s.r.cfg.StateDir, "seccomp"),
		Client:      client,
	}
	if s.cfg.FenceFile != "" {
		sb.Fence = &shimproto.Fence{File: s.cfg.FenceFile, Seconds: int64((s.cfg.FenceAfter + time.Second - 1) / time.Second)}
	}
	if !s.cfg.Resources.isZero() {
		if sb.Resources, err = s.r.linuxResources(s.cfg.Resources); err != nil {
			return err
		}
	}
	b, err := json.Marshal(sb)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, shimproto.ConfigName), b, 0o600)
}

const defaultShmSize = 64 << 20

func (s *Sandbox) mountShm() error {
	size := s.cfg.ShmSize
	if size <= 0 {
		size = defaultShmSize
	}
	p := filepath.Join(s.dir, shimproto.ShmName)
	if err := os.Mkdir(p, 0o755); err != nil {
		return err
	}
	opts := "mode=1777,size=" + strconv.FormatInt(size, 10)
	if err := unix.Mount("shm", p, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount the pod's /dev/shm: %w", err)
	}
	return nil
}

// spawn starts the shim. Its socket listens before it runs, so clients may
// connect at once; its namespaces exist when spawn returns.
func (s *Sandbox) spawn(ctx context.Context) error {
	addr, release, err := s.socketAddr()
	if err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	release()
	if err != nil {
		return fmt.Errorf("listen for the shim: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		return err
	}
	defer lf.Close()
	errLog, err := os.OpenFile(filepath.Join(s.dir, shimproto.LogName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer errLog.Close()

	cmd := exec.Command(s.r.shim, s.dir, s.cfg.Namespace+"/"+s.cfg.Name)
	cmd.Args[0] = "skiff-shim"
	cmd.Dir = s.dir
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=all", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = errLog, errLog
	cmd.ExtraFiles = []*os.File{lf} // becomes shimproto.ListenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !s.cfg.HostNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !s.cfg.HostIPC {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWIPC
	}
	place, err := s.r.cgroups.escape(filepath.Join("/", s.r.cfg.CgroupRoot, "shims"), cmd.SysProcAttr)
	if err != nil {
		return err
	}
	err = cmd.Start()
	if perr := place(cmd); err == nil && perr != nil {
		err = errors.Join(perr, cmd.Process.Kill())
	}
	if err != nil {
		return fmt.Errorf("start the shim %s: %w", s.r.shim, err)
	}
	s.pid = cmd.Process.Pid
	if s.pidfd, err = shimproto.OpenPidfd(s.pid); err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() { // collect the shim when it ends while we live; no thread waits
		if s.pidfd.Wait() == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	return ctx.Err()
}

// Sandboxes adopts: it returns every sandbox below StateDir, with living shims
// reconnected. Those whose shim died are returned too, with what they
// recorded (Alive reports false); they wait to be removed.
func (r *Runtime) Sandboxes(ctx context.Context) ([]*Sandbox, error) {
	ents, err := os.ReadDir(r.root())
	if err != nil {
		return nil, fmt.Errorf("adopt sandboxes: %w", err)
	}
	var mu sync.Mutex
	var out []*Sandbox
	used := map[string]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, e := range ents {
		g.Go(func() error {
			s, shim, err := r.adopt(ctx, e.Name())
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.log.Error("adopt a sandbox", "dir", e.Name(), "err", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			used[shim] = true
			if s != nil {
				out = append(out, s)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("adopt sandboxes: %w", err)
	}
	if r.cfg.ShimPath == "" {
		if err := pruneShims(r.cfg.DataDir, r.shim, used); err != nil {
			r.log.Warn("remove unused shim binaries", "err", err)
		}
	}
	return out, nil
}

// adopt returns a sandbox known already, or reconnects to it. A directory
// whose sandbox never came to be is removed.
func (r *Runtime) adopt(ctx context.Context, name string) (*Sandbox, string, error) {
	b, err := os.ReadFile(filepath.Join(r.root(), name, shimproto.ConfigName))
	var sb shimproto.Sandbox
	var rec clientRecord
	if err == nil {
		if err = json.Unmarshal(b, &sb); err == nil {
			err = json.Unmarshal(sb.Client, &rec)
		}
	}
	r.mu.Lock()
	s, busy := r.sandboxes[name], r.creating[name]
	r.mu.Unlock()
	if s != nil || busy {
		return s, rec.Shim, nil
	}
	if err != nil {
		// Killed before the configuration was whole: no shim was started yet.
		dead := r.newSandbox(SandboxConfig{PodUID: name}, name)
		return nil, "", errors.Join(fmt.Errorf("its configuration cannot be read: %w", err), dead.cleanUp())
	}
	s = r.newSandbox(rec.Config, name)
	s.cgroup = sb.Cgroup
	if err := s.connect(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		var perr *protocolError
		if errors.As(err, &perr) {
			return nil, rec.Shim, err // it lives and must not be touched
		}
		s.lost()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := r.sandboxes[name]; have != nil {
		s.disconnect()
		return have, rec.Shim, nil
	}
	r.sandboxes[name] = s
	return s, rec.Shim, nil
}

// Close drops the connections; shims and containers live on.
func (r *Runtime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		s.disconnect()
	}
	r.sandboxes = map[string]*Sandbox{}
	return nil
}
