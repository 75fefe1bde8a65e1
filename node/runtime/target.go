package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pidNamespace is where a container's processes are numbered: a namespace of
// its own, or that of another container, whose processes it then sees. The
// shim adds the pod's when the pod shares one. What release closes must stay
// open until the container has started.
func (s *Sandbox) pidNamespace(c *ContainerConfig) (ns []specs.LinuxNamespace, release func(), err error) {
	if s.cfg.HostPID || s.cfg.ShareProcessNamespace {
		return nil, func() {}, nil
	}
	if c.TargetID == "" {
		return []specs.LinuxNamespace{{Type: specs.PIDNamespace}}, func() {}, nil
	}
	f, err := s.openPIDNamespace(c.TargetID)
	if err != nil {
		return nil, func() {}, err
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	return []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: path}}, func() { f.Close() }, nil
}

// openPIDNamespace opens the namespace that a container's first process is in.
// A process number may have passed on to another process since the shim told it:
// what is below one open directory of /proc belongs to one process, and that has
// to be in the container's cgroup.
func (s *Sandbox) openPIDNamespace(id string) (*os.File, error) {
	st, ok := s.Container(id)
	if !ok {
		return nil, fmt.Errorf("process namespace of container %s: %w", id, ErrNotFound)
	}
	if st.State != Running || st.PID == 0 {
		return nil, fmt.Errorf("process namespace of container %q: %w", st.Name, ErrNotRunning)
	}
	proc, err := os.OpenRoot("/proc/" + strconv.Itoa(st.PID))
	if err != nil {
		return nil, fmt.Errorf("process namespace of container %q: %w", st.Name, ErrNotRunning)
	}
	defer proc.Close()
	cgroup, err := proc.ReadFile("cgroup")
	if err != nil || !inCgroup(string(cgroup), id) {
		return nil, fmt.Errorf("process namespace of container %q: %w", st.Name, ErrNotRunning)
	}
	dir, err := proc.Open("ns")
	if err != nil {
		return nil, fmt.Errorf("process namespace of container %q: %w", st.Name, err)
	}
	defer dir.Close()
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d/pid", dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("process namespace of container %q: %w", st.Name, err)
	}
	return f, nil
}

// inCgroup says that a line of /proc/<pid>/cgroup names a cgroup of the container.
func inCgroup(lines, id string) bool {
	return slices.ContainsFunc(strings.Split(lines, "\n"), func(line string) bool {
		_, path, _ := strings.Cut(line, ":")
		return slices.Contains(strings.Split(filepath.Clean(path), "/"), id)
	})
}
