package dev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchy is one cgroup mount of the machine.
type hierarchy struct {
	mount   string
	v2      bool
	options string // what to mount it with again
}

func hierarchies() ([]hierarchy, error) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var out []hierarchy
	for _, m := range infos {
		if m.Mountpoint != cgroupMount && filepath.Dir(m.Mountpoint) != cgroupMount {
			continue // somebody's second mount
		}
		h := hierarchy{mount: m.Mountpoint, v2: m.FSType == "cgroup2"}
		if !h.v2 {
			var options []string
			for _, o := range strings.Split(m.VFSOptions, ",") {
				if o != "rw" && o != "ro" && o != "xattr" && o != "clone_children" && !strings.HasPrefix(o, "release_agent=") {
					options = append(options, o)
				}
			}
			h.options = strings.Join(options, ",")
		}
		out = append(out, h)
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroups are mounted at /sys/fs/cgroup (v2: mount -t cgroup2 none /sys/fs/cgroup)")
	}
	return out, nil
}

// unified says whether version 2 rules.
func unified(hs []hierarchy) bool {
	return slices.ContainsFunc(hs, func(h hierarchy) bool { return h.v2 && h.mount == cgroupMount })
}

// makeCgroups makes the node's cgroups. With version 2 its processes are in a
// leaf, since a cgroup that hands out controllers may hold none.
func (p place) makeCgroups(node string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		dir := h.mount
		for _, part := range strings.Split(p.cgroup(node), "/") {
			if h.v2 {
				if err := handOut(dir); err != nil {
					return err
				}
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if slices.Contains(strings.Split(h.options, ","), "cpuset") {
				if err := inheritCPUs(dir); err != nil {
					return err
				}
			}
		}
		if h.v2 {
			if err := os.Mkdir(filepath.Join(dir, leaf), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	return nil
}

const leaf = "init"

// handOut gives all controllers of a version 2 cgroup to those below it.
func handOut(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for _, c := range strings.Fields(string(b)) {
		// One that cannot be handed out is missing below; skiff says so where
		// it matters.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}

// inheritCPUs fills what a version 1 cpuset needs before it takes a process.
func inheritCPUs(dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
		if err != nil {
			return fmt.Errorf("cpuset: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0); err != nil {
			return fmt.Errorf("cpuset: %w", err)
		}
	}
	return nil
}

// join moves a process into the node's cgroups: to their top, or to the leaf.
func (p place) join(node string, pid int, toLeaf bool) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		dir := filepath.Join(h.mount, p.cgroup(node))
		if h.v2 && toLeaf {
			dir = filepath.Join(dir, leaf)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("move process %d to its cgroup: %w", pid, err)
		}
	}
	return nil
}

// mountCgroups shows the node its own cgroups only. To be called inside all of
// its namespaces; hs are the machine's.
func mountCgroups(hs []hierarchy) error {
	if err := unmountBelow(cgroupMount, true); err != nil {
		return err
	}
	if unified(hs) {
		return mount("cgroup", cgroupMount, "cgroup2", 0, "")
	}
	if err := mount("cgroup", cgroupMount, "tmpfs", 0, "mode=755,size=64k"); err != nil {
		return err
	}
	for _, h := range hs {
		if err := os.Mkdir(h.mount, 0o755); err != nil {
			return err
		}
		kind := "cgroup"
		if h.v2 {
			kind = "cgroup2"
		}
		if err := mount("cgroup", h.mount, kind, 0, h.options); err != nil {
			return err
		}
		for _, name := range strings.Split(h.options, ",") { // cpu -> cpu,cpuacct
			if link := filepath.Join(cgroupMount, name); strings.Contains(h.options, ",") && link != h.mount {
				if err := os.Symlink(filepath.Base(h.mount), link); err != nil && !errors.Is(err, fs.ErrExist) {
					return err
				}
			}
		}
	}
	return nil
}

// inCgroups lists the processes in a node's cgroups and below; node "" means
// the whole cluster.
func (p place) inCgroups(node string) ([]int, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	for _, h := range hs {
		err := filepath.WalkDir(filepath.Join(h.mount, p.cgroup(node)), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // it vanished
			}
			b, _ := os.ReadFile(path)
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
					seen[pid] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]int, 0, len(seen))
	for pid := range seen {
		out = append(out, pid)
	}
	return out, nil
}

// removeCgroups removes a node's cgroups, or with "" the cluster's; their
// processes must have ended.
func (p place) removeCgroups(node string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hs {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h.mount, p.cgroup(node)), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			errs = append(errs, removeCgroup(dir))
		}
		if node == "" {
			_ = unix.Rmdir(filepath.Join(h.mount, cgroupDir)) // unless another cluster is there
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	// The kernel may need a moment after the last process ended.
	deadline := time.Now().Add(kernelPatience)
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(wait)
	}
}

// moveThread moves the calling thread into the node's version 1 cgroups, for a
// process that it is about to start; cgroup2 is the folder that such a process
// has to be started into with version 2, or empty.
func (p place) moveThread(node string) (cgroup2 string, err error) {
	hs, err := hierarchies()
	if err != nil {
		return "", err
	}
	for _, h := range hs {
		dir := filepath.Join(h.mount, p.cgroup(node))
		if h.v2 {
			cgroup2 = filepath.Join(dir, leaf)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
			return "", fmt.Errorf("enter the cgroups of %s: %w", node, err)
		}
	}
	return cgroup2, nil
}
