//go:build cgo

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// setup prepares what the containers share. A failure is kept and told to the
// clients; the shim stays, so that they can ask.
func (s *supervisor) setup() {
	err := func() error {
		if !s.cfg.HostNetwork {
			if s.cfg.Hostname != "" {
				if err := unix.Sethostname([]byte(s.cfg.Hostname)); err != nil {
					return fmt.Errorf("set hostname %q: %w", s.cfg.Hostname, err)
				}
			}
			if err := loopbackUp(); err != nil {
				return fmt.Errorf("bring up the loopback interface: %w", err)
			}
		}
		if err := writeSysctls(s.cfg.Sysctls); err != nil {
			return err
		}
		if s.cfg.Resources != nil {
			if err := setPodCgroup(s.cfg.Cgroup, s.cfg.Resources); err != nil {
				return fmt.Errorf("set up the pod's cgroup: %w", err)
			}
		}
		return nil
	}()
	if err != nil {
		s.setupErr = err
		s.log.Error("set up the sandbox", "err", err)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// writeSysctls sets kernel parameters. Some are refused before others are set, such
// as ports that anybody may use beyond those that are chosen from; so all are tried
// twice.
func writeSysctls(all map[string]string) error {
	left := map[string]string{}
	for k, v := range all {
		if writeSysctl(k, v) != nil {
			left[k] = v
		}
	}
	for k, v := range left {
		if err := writeSysctl(k, v); err != nil {
			return fmt.Errorf("set sysctl %s=%s: %w", k, v, err)
		}
	}
	return nil
}

// writeSysctl sets a kernel parameter of the namespaces that this process is in.
func writeSysctl(key, value string) error {
	p := key
	if !strings.Contains(key, "/") {
		p = strings.ReplaceAll(key, ".", "/")
	}
	if p != filepath.Clean(p) || !filepath.IsLocal(p) {
		return errors.New("not the name of a sysctl")
	}
	return os.WriteFile(filepath.Join("/proc/sys", p), []byte(value), 0)
}

// cgroupManager manages the cgroup at path, with resources that know nothing
// of devices.
func cgroupManager(path string, r *specs.LinuxResources) (cgroups.Manager, *cgroups.Cgroup, error) {
	spec := &specs.Spec{Linux: &specs.Linux{CgroupsPath: path, Resources: r}}
	cg, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: filepath.Base(path), Spec: spec}, nil)
	if err != nil {
		return nil, nil, err
	}
	cg.Resources.SkipDevices = true
	cg.Resources.Devices = nil
	m, err := manager.New(cg)
	return m, cg, err
}

func setPodCgroup(path string, r *specs.LinuxResources) error {
	m, cg, err := cgroupManager(path, r)
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return err
	}
	return m.Set(cg.Resources)
}

// pauseProcess is the first process of a shared PID namespace.
type pauseProcess struct {
	pid   int
	pidfd *shimproto.Pidfd
	gone  chan struct{} // closed when it has ended and the shim has forgotten it
}

// sharedPID returns the path of the pod's PID namespace, made when first needed,
// and anew when its first process ends: any container may have ended it, and all
// containers with it.
func (s *supervisor) sharedPID() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pause == nil || s.pause.exiting() {
		p, err := startPause()
		if err != nil {
			return "", fmt.Errorf("make the pod's PID namespace: %w", err)
		}
		m, _, err := cgroupManager(filepath.Join(s.cfg.Cgroup, "pause"), nil)
		if err == nil {
			err = m.Apply(p.pid)
		}
		s.pause = p
		go s.reapPause(p)
		if err != nil {
			return "", errors.Join(fmt.Errorf("move the pod's first process to its cgroup: %w", err), p.pidfd.Signal(unix.SIGKILL))
		}
	}
	return fmt.Sprintf("/proc/%d/ns/pid", s.pause.pid), nil
}

// exiting reports whether the process has begun to end. From then on nothing can be
// started in its namespace; it is there until the last process of the namespace is
// reaped, so containers are seen to end before it. Its parent holds its number.
func (p *pauseProcess) exiting() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil || p.pidfd.Exited() {
		return true
	}
	// proc_pid_stat(5): the name, the 2nd field, is in parentheses; flags are the 9th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 7 {
		return true
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	const exiting = 0x4 // PF_EXITING in the kernel's linux/sched.h
	return err != nil || flags&exiting != 0
}

// startPause returns when the process has given up all that containers must not
// have.
func startPause() (_ *pauseProcess, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "pause")
	cmd.Args[0] = "pause"
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	p := &pauseProcess{pid: cmd.Process.Pid, gone: make(chan struct{})}
	if p.pidfd, err = shimproto.OpenPidfd(p.pid); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	if told, rerr := io.ReadAll(r); string(told) != "ready" {
		p.pidfd.Close()
		return nil, errors.Join(fmt.Errorf("its first process: %s", told), rerr, cmd.Process.Kill(), cmd.Wait())
	}
	return p, nil
}

func (s *supervisor) reapPause(p *pauseProcess) {
	defer close(p.gone)
	if err := p.pidfd.Wait(); err != nil {
		s.log.Error("wait for the shared PID namespace", "err", err)
		return
	}
	if _, err := reap(p.pid); err != nil {
		s.log.Error("reap the shared PID namespace", "err", err)
	}
	s.mu.Lock()
	if s.pause == p {
		s.pause = nil
	}
	s.mu.Unlock()
	p.pidfd.Close()
}

func (s *supervisor) stopPause() {
	s.mu.Lock()
	p := s.pause
	s.mu.Unlock()
	if p == nil {
		return
	}
	if err := p.pidfd.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrClosed) {
		s.log.Error("end the shared PID namespace", "err", err)
		return
	}
	<-p.gone
}

// reap collects the exit status of a child that has ended. Never wait for any
// child (-1): libcontainer waits for its own.
func reap(pid int) (unix.WaitStatus, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		return ws, err
	}
}
