//go:build cgo

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

const (
	drainTimeout = 2 * time.Second  // for output after the last process ended
	killTimeout  = 10 * time.Second // for a killed process to be gone
)

// container is one container from start to removal. libcontainer's own objects
// are not kept: they hold the whole specification, and are loaded from disk
// again for the few things that need them.
type container struct {
	status shimproto.ContainerStatus // guarded by supervisor.mu

	process    specs.Process // what an exec inherits
	privatePID bool
	memCgroup  string // absolute path
	pidfd      *shimproto.Pidfd
	streams    *streams
	seccomp    *os.File // the program that processes of it load; nil: they make their own, or none

	settled chan struct{} // closed when its start has succeeded or failed
	done    chan struct{} // closed when exited, recorded, and its cgroup is gone
}

func (s *supervisor) runcRoot() string { return filepath.Join(s.dir, shimproto.RuncStateName) }

// start creates and runs a container. When it fails nothing is left of it. For
// a client that has left nothing is started: the next one may be there already,
// and has not been told of it.
func (s *supervisor) start(conn net.Conn, req *shimproto.Start) (*shimproto.ContainerStatus, error) {
	if req == nil || req.Spec == nil || req.Spec.Process == nil || req.Spec.Linux == nil || req.Status.ID == "" {
		return nil, errors.New("start: the request is incomplete")
	}
	if err := s.fenced(); err != nil {
		return nil, err
	}
	c := &container{status: req.Status, settled: make(chan struct{}), done: make(chan struct{})}
	id := req.Status.ID
	c.status.State = shimproto.Created
	c.status.CreatedAt = time.Now()

	s.mu.Lock()
	if abandoned(conn) {
		s.mu.Unlock()
		return nil, errors.New("start: nobody waits for it any more")
	}
	if s.containers[id] != nil {
		s.mu.Unlock()
		return nil, refuse(shimproto.CodeExists, "container %s exists already", id)
	}
	s.containers[id] = c
	s.mu.Unlock()

	err := s.run(c, req)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(c.settled)
	if err != nil {
		delete(s.containers, id)
		close(c.done)
		return nil, err
	}
	c.status.State = shimproto.Running
	c.status.StartedAt = time.Now()
	s.publish(c)
	go s.reapContainer(c)
	st := c.status
	return &st, nil
}

func (s *supervisor) run(c *container, req *shimproto.Start) (err error) {
	spec := req.Spec
	if err := s.joinSandbox(spec); err != nil {
		return err
	}
	for _, ns := range spec.Linux.Namespaces {
		c.privatePID = c.privatePID || ns.Type == specs.PIDNamespace && ns.Path == ""
	}
	checkOOMScore(spec.Process, s)
	t, err := s.translation(spec.Linux.Seccomp)
	if err != nil { // slower, and else the same
		s.log.Warn("keep the translation of a seccomp profile", "err", err)
	} else if t != nil {
		spec.Linux.Seccomp, c.seccomp = t.beside, t.program
		defer func() {
			if err != nil {
				c.closeSeccomp()
			}
		}()
	}
	cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: c.status.ID, Spec: spec})
	if err != nil {
		return fmt.Errorf("invalid container configuration: %w", err)
	}
	lc, err := libcontainer.Create(s.runcRoot(), c.status.ID, cfg)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer func() {
		if err != nil {
			if derr := lc.Destroy(); derr != nil {
				s.log.Error("clean up a container that did not start", "id", c.status.ID, "err", derr)
			}
		}
	}()

	p := newProcess(spec.Process)
	p.Init = true
	if p.ExtraFiles, err = c.extraFiles(); err != nil {
		return err
	}
	defer closeAll(p.ExtraFiles)
	c.streams, err = openStreams(streamConfig{
		process: p, tty: spec.Process.Terminal, stdin: req.Stdin, stdinOnce: req.StdinOnce, logPath: c.status.LogPath, log: s.log,
	})
	if err != nil {
		return err
	}
	err = lc.Run(p)
	if err = c.streams.connected(err); err != nil {
		return err
	}
	pid, err := p.Pid()
	if err == nil {
		c.pidfd, err = shimproto.OpenPidfd(pid)
	}
	var st *libcontainer.State
	if err == nil {
		st, err = lc.State()
	}
	if err != nil {
		c.streams.close()
		kerr := p.Signal(unix.SIGKILL)
		_, _ = p.Wait()
		return errors.Join(err, kerr)
	}
	c.streams.copyOutput()
	if c.memCgroup = st.CgroupPaths["memory"]; c.memCgroup == "" {
		c.memCgroup = st.CgroupPaths[""]
	}
	c.status.PID = pid
	c.process = *spec.Process
	c.process.Capabilities, c.process.Args = nil, nil
	return nil
}

// extraFiles are what a process of the container starts with beyond its standard
// streams; none of them stays open when its command is executed. The caller
// closes them: the container's own may be closed at any time.
func (c *container) extraFiles() ([]*os.File, error) {
	if c.seccomp == nil {
		return nil, nil
	}
	raw, err := c.seccomp.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	err = raw.Control(func(own uintptr) { fd, derr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	return []*os.File{os.NewFile(uintptr(fd), "seccomp")}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (c *container) closeSeccomp() {
	if c.seccomp != nil {
		c.seccomp.Close()
	}
}

// joinSandbox adds the pod's namespaces to a container's specification.
func (s *supervisor) joinSandbox(spec *specs.Spec) error {
	own := func(t specs.LinuxNamespaceType, file string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), file)})
	}
	if !s.cfg.HostNetwork {
		own(specs.NetworkNamespace, "net")
		own(specs.UTSNamespace, "uts")
	}
	if !s.cfg.HostIPC {
		own(specs.IPCNamespace, "ipc")
	}
	if s.cfg.SharePID {
		path, err := s.sharedPID()
		if err != nil {
			return err
		}
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path})
	}
	return nil
}

// newProcess translates the parts of a process that both a container's first
// process and an exec have.
func newProcess(p *specs.Process) *libcontainer.Process {
	out := &libcontainer.Process{
		Args: p.Args,
		Env:  p.Env,
		Cwd:  p.Cwd,
		UID:  int(p.User.UID),
		GID:  int(p.User.GID),
		// Only errors; they end up in what the start returns.
		LogLevel: "2",
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	if p.ConsoleSize != nil {
		out.ConsoleWidth, out.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	return out
}

var oomScoreMu sync.Mutex

// checkOOMScore drops an oom_score_adj that the kernel would refuse. Lowering
// it needs CAP_SYS_RESOURCE, which root on many virtual machines lacks, and
// libcontainer's init would die of the refusal. So it is tried here first.
func checkOOMScore(p *specs.Process, s *supervisor) {
	const file = "/proc/self/oom_score_adj"
	if p.OOMScoreAdj == nil {
		return
	}
	oomScoreMu.Lock()
	defer oomScoreMu.Unlock()
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	cur, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || *p.OOMScoreAdj >= cur {
		return
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(*p.OOMScoreAdj)), 0); err != nil {
		s.log.Warn("oom_score_adj cannot be lowered here; going on without", "wanted", *p.OOMScoreAdj, "have", cur, "err", err)
		p.OOMScoreAdj = nil
		return
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(cur)), 0); err != nil {
		s.log.Warn("restore own oom_score_adj", "err", err)
	}
}

// reapContainer waits for a container's end and tells of it.
func (s *supervisor) reapContainer(c *container) {
	if err := c.pidfd.Wait(); err != nil {
		s.log.Error("wait for a container", "id", c.status.ID, "err", err)
	}
	finished := time.Now()
	ws, err := reap(c.status.PID)
	if err != nil {
		s.log.Error("reap a container", "id", c.status.ID, "err", err)
	}
	c.pidfd.Close()
	c.closeSeccomp()
	lc, lerr := libcontainer.Load(s.runcRoot(), c.status.ID)
	if lerr == nil && !c.privatePID {
		// Nothing ended the container's other processes.
		if err := lc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
			s.log.Warn("end a container's remaining processes", "id", c.status.ID, "err", err)
		}
	}
	oom := oomKills(c.memCgroup) > 0
	c.streams.finish(drainTimeout)
	if lerr == nil {
		lerr = lc.Destroy()
	}
	if lerr != nil {
		s.log.Error("clean up after a container", "id", c.status.ID, "err", lerr)
	}

	s.mu.Lock()
	st := &c.status
	st.State = shimproto.Exited
	st.FinishedAt = finished
	st.ExitCode = ws.ExitStatus()
	if ws.Signaled() {
		st.Signal = int(ws.Signal())
		st.ExitCode = 128 + st.Signal
	}
	st.OOMKilled = oom && st.ExitCode != 0
	st.PID = 0
	s.publish(c)
	close(c.done)
	s.mu.Unlock()
	c.streams.exited(st.ExitCode)
	s.trim.Reset(idleAfter)
}

// oomKills reads how many processes of a cgroup the kernel killed for memory.
func oomKills(dir string) uint64 {
	name := "memory.oom_control"
	if cgroups.IsCgroup2UnifiedMode() {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}

func (s *supervisor) signal(id string, sig int) error {
	c, err := s.get(id, true)
	if err != nil {
		return err
	}
	if syscall.Signal(sig) == unix.SIGKILL && !c.privatePID {
		var lc *libcontainer.Container
		if lc, err = libcontainer.Load(s.runcRoot(), id); err == nil {
			err = lc.Signal(unix.SIGKILL)
		}
	} else {
		err = c.pidfd.Signal(syscall.Signal(sig))
	}
	if err != nil && c.pidfd.Exited() { // what it needs may be gone already
		return refuse(shimproto.CodeNotRunning, "container %s is not running, it has just ended", id)
	}
	if err != nil {
		return fmt.Errorf("send signal %d to container %s: %w", sig, id, err)
	}
	return nil
}

func (s *supervisor) killAndWait(c *container) error {
	err := s.signal(c.status.ID, int(unix.SIGKILL))
	var ref refusal
	if err != nil && !errors.As(err, &ref) {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("container %s does not end though it was killed", c.status.ID)
	}
}

func (s *supervisor) remove(id string) error {
	c, err := s.get(id, false)
	if err != nil {
		return err
	}
	if err := s.killAndWait(c); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[id] != c {
		return nil
	}
	delete(s.containers, id)
	for conn := range s.watchers {
		s.tell(conn, shimproto.Event{Removed: id})
	}
	return shimproto.RemoveRecord(s.dir, id)
}

func (s *supervisor) reopen(id string) error {
	c, err := s.get(id, false)
	if err != nil {
		return err
	}
	return c.streams.reopenLog()
}

// update changes cgroup limits, of the pod when id is empty.
func (s *supervisor) update(id string, r *specs.LinuxResources) error {
	if r == nil {
		return errors.New("update: no resources given")
	}
	if id == "" {
		return setPodCgroup(s.cfg.Cgroup, r)
	}
	if _, err := s.get(id, true); err != nil {
		return err
	}
	lc, err := libcontainer.Load(s.runcRoot(), id)
	if err != nil {
		return err
	}
	_, want, err := cgroupManager("/", r)
	if err != nil {
		return err
	}
	cfg := lc.Config()
	cg, res := *cfg.Cgroups, *want.Resources
	res.Devices, res.SkipDevices = cg.Resources.Devices, false
	cg.Resources = &res
	cfg.Cgroups = &cg
	return lc.Set(cfg)
}
