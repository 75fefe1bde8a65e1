package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultMaskedPaths are hidden from containers; kubelet's.
func DefaultMaskedPaths() []string {
	return append([]string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}, ownThrottles()...)
}

// throttles are the folders that tell how often a processor had to slow down, from
// which containers could see what others do.
func throttles(sys string) []string {
	paths, _ := filepath.Glob(filepath.Join(sys, "devices/system/cpu/cpu[0-9]*/thermal_throttle")) // only a bad pattern is an error
	return paths
}

var ownThrottles = sync.OnceValue(func() []string { return throttles("/sys") })

// DefaultReadonlyPaths cannot be written by containers.
func DefaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// spec describes a container for the shim, which adds the pod's namespaces.
func (s *Sandbox) spec(c *ContainerConfig, pid []specs.LinuxNamespace) (*specs.Spec, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("no command specified: neither the pod nor the image has one")
	}
	if !filepath.IsAbs(c.Rootfs) {
		return nil, fmt.Errorf("root file system %q is no absolute path", c.Rootfs)
	}
	user, err := resolveUser(c.Rootfs, c.User)
	if err != nil {
		return nil, err
	}
	caps, err := c.Capabilities.resolve(c.Privileged, s.r.caps)
	if err != nil {
		return nil, err
	}
	res, err := s.r.linuxResources(c.Resources)
	if err != nil {
		return nil, err
	}
	var nodes []specs.LinuxDevice
	if nodes, res.Devices, err = linuxDevices(c.Devices, c.Privileged); err != nil {
		return nil, err
	}
	s.r.cgroups.unify(res)
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	oom := s.r.oomScore(c.Resources.OOMScoreAdj)
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: c.Rootfs, Readonly: c.ReadonlyRootfs},
		Process: &specs.Process{
			Terminal: c.TTY, User: user, Args: c.Args, Env: s.environment(c), Cwd: cwd,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: c.NoNewPrivileges, OOMScoreAdj: oom,
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(s.cgroup, c.ID),
			Resources:   res, Devices: nodes,
			MaskedPaths: c.MaskedPaths, ReadonlyPaths: c.ReadonlyPaths,
			Namespaces: append([]specs.LinuxNamespace{{Type: specs.MountNamespace}}, pid...),
		},
	}
	if s.r.cgroups.v2 && !c.Privileged {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if !c.Privileged {
		if c.MaskedPaths == nil {
			spec.Linux.MaskedPaths = DefaultMaskedPaths()
		}
		if c.ReadonlyPaths == nil {
			spec.Linux.ReadonlyPaths = DefaultReadonlyPaths()
		}
		if spec.Linux.Seccomp, err = linuxSeccomp(c.Seccomp, spec); err != nil {
			return nil, err
		}
	}
	return spec, s.addMounts(spec, c)
}

// environment completes a container's environment with what every container has.
func (s *Sandbox) environment(c *ContainerConfig) []string {
	env := slices.Clone(c.Env)
	has := func(key string) bool {
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
	}
	if !has("PATH") {
		env = append(env, defaultPath)
	}
	if !has("HOSTNAME") {
		h := s.cfg.Hostname
		if s.cfg.HostNetwork || h == "" {
			h, _ = os.Hostname()
		}
		env = append(env, "HOSTNAME="+h)
	}
	if c.TTY && !has("TERM") {
		env = append(env, "TERM=xterm")
	}
	return env
}

// oomScore is the oom_score_adj to ask for, or nil for none. Lowering it below
// our own needs CAP_SYS_RESOURCE; without, that is said once and left.
func (r *Runtime) oomScore(want int) *int {
	if want == 0 {
		return nil
	}
	n, _ := capabilityNumber("CAP_SYS_RESOURCE")
	if want < 0 && !r.caps.has(n) {
		r.oomOnce.Do(func() {
			r.log.Warn("this machine does not let skiff lower oom_score_adj (CAP_SYS_RESOURCE is missing): guaranteed pods are not protected from the OOM killer before others")
		})
		return nil
	}
	return &want
}

// addMounts adds the mounts every container has and then its own, parents
// first. An own mount at a usual place takes the usual one's stead.
func (s *Sandbox) addMounts(spec *specs.Spec, c *ContainerConfig) error {
	access := "ro"
	if c.Privileged {
		access = "rw"
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: filepath.Join(s.dir, shimproto.ShmName), Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	if s.cfg.HostIPC {
		shm.Source = "/dev/shm"
	}
	usual := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	own := map[string]bool{}
	var mounts []specs.Mount
	for _, m := range c.Mounts {
		om, err := ociMount(m)
		if err != nil {
			return err
		}
		if err := checkPropagation(m); err != nil {
			return err
		}
		if own[om.Destination] {
			return fmt.Errorf("two mounts at %s", om.Destination)
		}
		own[om.Destination] = true
		mounts = append(mounts, om)
		switch {
		case m.Propagation == PropagationBidirectional:
			spec.Linux.RootfsPropagation = "rshared"
		case m.Propagation == PropagationHostToContainer && spec.Linux.RootfsPropagation == "":
			spec.Linux.RootfsPropagation = "rslave"
		}
	}
	if !own[shm.Destination] {
		mounts = append(mounts, shm) // also where the host's /dev is
	}
	for _, m := range usual {
		if !own[m.Destination] && !(own["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) {
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	sort.SliceStable(mounts, func(i, j int) bool {
		return strings.Count(mounts[i].Destination, "/") < strings.Count(mounts[j].Destination, "/")
	})
	spec.Mounts = append(spec.Mounts, mounts...)
	return nil
}

func ociMount(m Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) == "/" {
		return specs.Mount{}, fmt.Errorf("mount destination %q must be an absolute path below /", m.Destination)
	}
	out := specs.Mount{Destination: filepath.Clean(m.Destination), Options: slices.Clone(m.Options)}
	switch m.Type {
	case "", "bind":
		if !filepath.IsAbs(m.HostPath) {
			return specs.Mount{}, fmt.Errorf("mount at %s: source %q is no absolute path", m.Destination, m.HostPath)
		}
		out.Type, out.Source = "bind", m.HostPath
		out.Options = append(out.Options, "rbind")
		switch m.Propagation {
		case PropagationPrivate:
			out.Options = append(out.Options, "rprivate")
		case PropagationHostToContainer:
			out.Options = append(out.Options, "rslave")
		case PropagationBidirectional:
			out.Options = append(out.Options, "rshared")
		}
	case "tmpfs":
		out.Type, out.Source = "tmpfs", "tmpfs"
		out.Options = append([]string{"nosuid", "nodev"}, out.Options...)
	default:
		return specs.Mount{}, fmt.Errorf("mount at %s: type %q is neither bind nor tmpfs", m.Destination, m.Type)
	}
	switch {
	case m.RecursiveReadonly && !hasMountSetattr():
		return specs.Mount{}, fmt.Errorf("mount at %s: recursive read-only mounts need Linux 5.12", m.Destination)
	case m.RecursiveReadonly:
		out.Options = append(out.Options, "rro")
	case m.Readonly:
		out.Options = append(out.Options, "ro")
	}
	return out, nil
}

// RecursiveReadonly says whether this kernel makes mounts below a mount
// read-only too (Linux 5.12).
func RecursiveReadonly() bool { return hasMountSetattr() }

func hasMountSetattr() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
}
