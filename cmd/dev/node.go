package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HoldCommand are the arguments with which a skiff binary must call Hold.
var HoldCommand = []string{"dev", "hold"}

// Hold is what a process does that only stands for new namespaces: it makes
// its cgroup namespace when a line comes, says which thread has it, and ends
// with its input.
func Hold(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	line := make([]byte, 1)
	if _, err := io.ReadFull(in, line); err != nil {
		return fmt.Errorf("this command is for skiff dev up alone: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if _, err := fmt.Fprintln(out, unix.Gettid()); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

// prepare makes the node's namespaces, cgroups, disk mount and link: a machine
// that was switched on, without skiff.
func (p place) prepare(ctx context.Context, s *state, n nodeState) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	// A mount namespace can be kept in one with a smaller number only. Linux
	// 6.18 numbers them for each CPU: the CPU that made ours, where ours is not
	// the machine's first, gives a greater one.
	for cpu := -1; ; cpu++ {
		if err := p.powerOff(n); err != nil {
			return err
		}
		if err := p.makeCgroups(n.Name); err != nil {
			return err
		}
		err := p.makeNamespaces(ctx, s.Binary, n.Name, cpu)
		if err == nil {
			return p.furnish(s, n, hs)
		}
		if !errors.Is(err, unix.EINVAL) || cpu+1 >= runtime.NumCPU() {
			return fmt.Errorf("make the namespaces of %s: %w", n.Name, err)
		}
	}
}

// makeNamespaces makes and keeps them, on the given CPU unless that is negative.
func (p place) makeNamespaces(ctx context.Context, binary, node string, cpu int) error {
	cmd := exec.CommandContext(ctx, binary, HoldCommand...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS}
	stop, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	answer, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var problem strings.Builder
	cmd.Stderr = &problem
	err = onThread(func() error {
		if cpu >= 0 {
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
	if err != nil {
		return err
	}
	err = func() error {
		if err := p.join(node, cmd.Process.Pid, false); err != nil {
			return err
		}
		if _, err := stop.Write([]byte("\n")); err != nil {
			return err
		}
		var tid int
		if _, err := fmt.Fscanln(answer, &tid); err != nil {
			return err
		}
		for _, ns := range namespaces {
			if err := p.keep(fmt.Sprintf("/proc/%d/task/%d/ns/%s", cmd.Process.Pid, tid, ns.name), node, ns.name); err != nil {
				return err
			}
		}
		return nil
	}()
	if err = errors.Join(err, stop.Close()); err != nil {
		_ = cmd.Process.Kill()
	}
	werr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%w %s", err, strings.TrimSpace(problem.String()))
	}
	return werr
}

// furnish fills new namespaces.
func (p place) furnish(s *state, n nodeState, hs []hierarchy) error {
	data := p.nodeFile(n.Name, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	var device string
	if !s.PlainDisks {
		d, err := attach(p.nodeFile(n.Name, "disk.img"))
		if err != nil {
			return err
		}
		defer d.Close()
		device = d.Name()
	}
	err := p.inside(n.Name, allNamespaces, func() error {
		if err := unix.Sethostname([]byte(n.Name)); err != nil {
			return fmt.Errorf("host name of %s: %w", n.Name, err)
		}
		return p.prepareMounts(hs, data, device)
	})
	if err != nil {
		return err
	}
	return p.connect(n, s.Subnet)
}

// prepared says whether the node is switched on.
func (p place) prepared(node string) bool {
	for _, ns := range namespaces {
		if !p.kept(node, ns.name) {
			return false
		}
	}
	return true
}

// powerOff ends everything of a node at once and removes all of it that is not
// on its disk. It may be called again after any failure.
func (p place) powerOff(n nodeState) error {
	// Its last words must not reach the others: first the link.
	errs := []error{p.unplug(n)}
	errs = append(errs, p.killAll(n.Name, func() {
		// What waits for a stalled disk dies only when that goes on.
		_ = p.thawNode(n.Name)
	}))
	errs = append(errs, p.letGo(n.Name), p.removeCgroups(n.Name), detachAll(p.nodeFile(n.Name, "")))
	return errors.Join(errs...)
}

func (p place) thawNode(node string) error {
	if !p.kept(node, "mnt") {
		return nil
	}
	err := p.inside(node, []string{"mnt"}, func() error { return thaw(p.nodeFile(node, "data")) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) { // a plain folder, or one that was removed
		err = nil
	}
	if err != nil {
		return fmt.Errorf("let the disk of %s go on: %w", node, err)
	}
	return os.RemoveAll(p.nodeFile(node, "stalled"))
}

// begin starts a process in all namespaces and cgroups of a node. The caller
// waits for it.
func (p place) begin(node string, cmd *exec.Cmd) error {
	return onThread(func() error {
		cgroup2, err := p.moveThread(node)
		if err != nil {
			return err
		}
		if cgroup2 != "" {
			fd, err := unix.Open(cgroup2, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("cgroup of %s: %w", node, err)
			}
			defer unix.Close(fd)
			if cmd.SysProcAttr == nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{}
			}
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
		}
		if err := p.enter(node, allNamespaces); err != nil {
			return err
		}
		if cmd.Dir == "" {
			cmd.Dir = "/"
		}
		return cmd.Start()
	})
}

// environment of processes in a node: skiff finds its data directory by itself.
func (p place) environment(node string) []string {
	return append(os.Environ(), "SKIFF_DATA_DIR="+p.nodeFile(node, "data"),
		"PATH="+filepath.Dir(p.program(node))+":"+os.Getenv("PATH"))
}

// launch starts skiff in a node that is switched on. It does not wait for it
// to be ready.
func (p place) launch(s *state, n nodeState, args []string, env []string) error {
	log, err := os.OpenFile(p.nodeFile(n.Name, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := p.ownProgram(s, n.Name); err != nil {
		return err
	}
	cmd := exec.Command(p.program(n.Name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(p.environment(n.Name), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for it
	if err := p.begin(n.Name, cmd); err != nil {
		return fmt.Errorf("start skiff of %s: %w", n.Name, err)
	}
	_, err = p.setSkiff(n.Name, cmd.Process.Pid)
	go cmd.Wait() //nolint:errcheck // only so that no zombie is left while we live
	return err
}

// lastWords are the end of the node's log.
func (p place) lastWords(node string, lines int) string {
	b, err := os.ReadFile(p.nodeFile(node, "log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// KillOptions say how.
type KillOptions struct {
	Signal unix.Signal // 0 means SIGKILL
	// Host also reaches every other process of the node. With SIGKILL it is a
	// power cut: pods end, what was in memory is lost, the link is dead.
	Host bool
}

// Kill sends a signal to the skiff process of a node, and returns when it has
// ended, unless the signal is one that stops or continues it.
func (c *Cluster) Kill(ctx context.Context, node string, o KillOptions) error {
	if o.Signal == 0 {
		o.Signal = unix.SIGKILL
	}
	return c.change(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		if o.Host {
			return c.p.killHost(n, o.Signal)
		}
		proc, err := c.p.skiff(node)
		if err != nil {
			return err
		}
		if err := proc.signal(o.Signal); errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("skiff of %s does not run; start it with skiff dev start %s", node, node)
		} else if err != nil {
			return fmt.Errorf("signal skiff of %s: %w", node, err)
		}
		switch o.Signal {
		case unix.SIGSTOP, unix.SIGCONT:
			return nil
		case unix.SIGKILL:
			// It dies only when its disk lets it; the signal is there already.
			if err := c.p.thawNode(node); err != nil {
				return err
			}
		}
		return proc.wait(time.Minute)
	})
}

func (p place) killHost(n nodeState, sig unix.Signal) error {
	if !p.prepared(n.Name) {
		return fmt.Errorf("%s is switched off already; start it with skiff dev start %s", n.Name, n.Name)
	}
	if sig == unix.SIGKILL {
		return p.powerOff(n)
	}
	pids, err := p.inCgroups(n.Name)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d of %s: %w", pid, n.Name, err)
		}
	}
	return nil
}

// Stall stops every write to the node's disk until Heal, Start or Kill.
func (c *Cluster) Stall(ctx context.Context, node string) error {
	return c.change(ctx, func(s *state) error {
		if _, err := s.node(node); err != nil {
			return err
		}
		if s.PlainDisks {
			return errors.New("the nodes share this machine's disk (--plain-disks), which cannot be stalled for one of them")
		}
		if !c.p.kept(node, "mnt") {
			return fmt.Errorf("%s is switched off", node)
		}
		err := c.p.inside(node, []string{"mnt"}, func() error { return freeze(c.p.nodeFile(node, "data")) })
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("the disk of %s is stalled already", node)
		}
		if err != nil {
			return fmt.Errorf("stall the disk of %s: %w", node, err)
		}
		return os.WriteFile(c.p.nodeFile(node, "stalled"), []byte(strconv.FormatInt(time.Now().Unix(), 10)), 0o600)
	})
}

// Thaw lets a stalled disk go on.
func (c *Cluster) Thaw(ctx context.Context, node string) error {
	return c.change(ctx, func(s *state) error {
		if _, err := s.node(node); err != nil {
			return err
		}
		return c.p.thawNode(node)
	})
}

// Exec starts a command in all namespaces and cgroups of a node. The caller
// waits for it. Its program is looked up in the node, whose files are this
// machine's but for the node's data.
func (c *Cluster) Exec(node string, cmd *exec.Cmd) error {
	s, err := c.p.load()
	if err != nil {
		return err
	}
	if _, err := s.node(node); err != nil {
		return err
	}
	if !c.p.prepared(node) {
		return fmt.Errorf("%s is switched off; start it with skiff dev start %s", node, node)
	}
	if cmd.Env == nil {
		cmd.Env = c.p.environment(node)
	}
	return c.p.begin(node, cmd)
}

// Wipe removes all data of a node that is switched off or on which skiff does
// not run, as when its disk was replaced.
func (c *Cluster) Wipe(ctx context.Context, node string) error {
	return c.change(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		proc, err := c.p.skiff(node)
		if err != nil {
			return err
		}
		if proc.state() != 0 {
			return fmt.Errorf("skiff of %s runs; kill it first", node)
		}
		if !c.p.prepared(node) {
			if err := c.p.prepare(ctx, s, n); err != nil {
				return err
			}
		}
		return c.p.inside(node, []string{"mnt"}, func() error {
			data := c.p.nodeFile(node, "data")
			entries, err := os.ReadDir(data)
			for _, e := range entries {
				err = errors.Join(err, os.RemoveAll(filepath.Join(data, e.Name())))
			}
			return err
		})
	})
}
