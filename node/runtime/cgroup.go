package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroupTree is the machine's cgroup hierarchies: one with version 2, several
// with version 1. On hybrid machines version 1 is used, as libcontainer does.
type cgroupTree struct {
	v2     bool
	mounts map[string]string // controller (or "name=…", or "" with v2) -> mount point
	own    map[string]string // controller -> cgroup of this process
}

func openCgroups() (*cgroupTree, error) {
	t := &cgroupTree{mounts: map[string]string{}, own: map[string]string{}}
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var unified string
	for _, m := range infos {
		if !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue // somebody's second mount
		}
		if m.FSType == "cgroup2" {
			unified = m.Mountpoint
			t.v2 = t.v2 || unified == "/sys/fs/cgroup"
			continue
		}
		for _, opt := range strings.Split(m.VFSOptions, ",") {
			if isController(opt) || strings.HasPrefix(opt, "name=") {
				t.mounts[opt] = m.Mountpoint
			}
		}
	}
	if t.v2 {
		t.mounts = map[string]string{}
	}
	if unified != "" { // beside version 1 it has no controllers, but its cgroups are made all the same
		t.mounts[""] = unified
	}
	if len(t.mounts) == 0 {
		return nil, errors.New("no cgroup file system is mounted below /sys/fs/cgroup: mount cgroup2 there")
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				t.own[c] = f[2]
			}
		}
	}
	return t, nil
}

func isController(opt string) bool {
	switch opt {
	case "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc":
		return true
	}
	return false
}

// dirs are a cgroup's directories, each once.
func (t *cgroupTree) dirs(path string) []string {
	var out []string
	seen := map[string]bool{}
	for _, m := range t.mounts {
		if !seen[m] {
			seen[m] = true
			out = append(out, filepath.Join(m, path))
		}
	}
	return out
}

// dir is a cgroup's directory for one controller.
func (t *cgroupTree) dir(controller, path string) string {
	if t.v2 {
		controller = ""
	}
	m, ok := t.mounts[controller]
	if !ok {
		return ""
	}
	return filepath.Join(m, path)
}

// has says whether limits of a controller can be set.
func (t *cgroupTree) has(controller string) bool {
	if !t.v2 {
		_, ok := t.mounts[controller]
		return ok
	}
	b, err := os.ReadFile(filepath.Join(t.mounts[""], "cgroup.controllers"))
	if err != nil {
		return false
	}
	for _, c := range strings.Fields(string(b)) {
		if c == controller {
			return true
		}
	}
	return false
}

// escape arranges that a process about to be started does not stay in this
// process's cgroup, where the service manager would end it together with
// skiff. Hierarchies in which skiff is at the root need nothing. The returned
// function must be called after the start.
func (t *cgroupTree) escape(path string, attr *syscall.SysProcAttr) (func(*exec.Cmd) error, error) {
	var procs []string
	for c, own := range t.own {
		mnt, ok := t.mounts[c]
		if !ok || own == "/" || strings.HasPrefix(own, "/..") {
			continue
		}
		dir := filepath.Join(mnt, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the shims' cgroup: %w", err)
		}
		if t.v2 {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open the shims' cgroup: %w", err)
			}
			attr.UseCgroupFD, attr.CgroupFD = true, fd
			return func(*exec.Cmd) error { return unix.Close(fd) }, nil
		}
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	return func(cmd *exec.Cmd) error {
		if cmd.Process == nil {
			return nil
		}
		for _, p := range procs {
			if err := os.WriteFile(p, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
				return fmt.Errorf("move the shim to its cgroup: %w", err)
			}
		}
		return nil
	}, nil
}

// pids lists the processes in a cgroup and all below it.
func (t *cgroupTree) pids(path string) []int {
	seen := map[int]bool{}
	var out []int
	for _, d := range t.dirs(path) {
		_ = filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return nil // it vanished, or is no cgroup
			}
			b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					out = append(out, pid)
				}
			}
			return nil
		})
	}
	return out
}

// kill ends every process in a cgroup and below, and waits until they are gone.
func (t *cgroupTree) kill(path string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids := t.pids(path)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in cgroup %s do not end though they were killed", pids, path)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d in cgroup %s: %w", pid, path, err)
			}
		}
		time.Sleep(wait)
	}
}

// remove removes a cgroup and all below it; their processes must have ended.
func (t *cgroupTree) remove(path string) error {
	if path == "/" || path == "" {
		return errors.New("the root cgroup cannot be removed")
	}
	var errs []error
	for _, d := range t.dirs(path) {
		errs = append(errs, removeCgroupDir(d))
	}
	return errors.Join(errs...)
}

func removeCgroupDir(dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range ents {
		if e.IsDir() {
			if err := removeCgroupDir(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// The kernel may need a moment after the last process ended.
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || wait > 256*time.Millisecond {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(wait)
	}
}
