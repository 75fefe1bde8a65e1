package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// emptyDir makes a directory or a tmpfs; one that is there is left alone.
func (m *Manager) emptyDir(dir string, e *v1.EmptyDirVolumeSource, pod *v1.Pod, group *int64) error {
	if _, err := os.Lstat(dir); err == nil {
		if e.Medium != v1.StorageMediumMemory {
			return nil
		}
		if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if e.Medium == v1.StorageMediumMemory {
		opts := fmt.Sprintf("mode=0777,size=%d", m.memorySize(e, pod))
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
			return fmt.Errorf("mounting a tmpfs: %w", err)
		}
	}
	perm := os.FileMode(0o777)
	if group != nil {
		if err := os.Chown(dir, 0, int(*group)); err != nil {
			return err
		}
		perm |= os.ModeSetgid
	}
	return os.Chmod(dir, perm)
}

// memorySize is the smallest of: half the node, the volume's limit, and what
// the pod's containers may use at most when all of them have a limit.
func (m *Manager) memorySize(e *v1.EmptyDirVolumeSource, pod *v1.Pod) int64 {
	size := m.cfg.MemoryCapacity / 2
	if e.SizeLimit != nil && e.SizeLimit.Value() > 0 && (size <= 0 || e.SizeLimit.Value() < size) {
		size = e.SizeLimit.Value()
	}
	var sum int64
	for i := range pod.Spec.Containers {
		l := pod.Spec.Containers[i].Resources.Limits.Memory().Value()
		if l == 0 {
			return size
		}
		sum += l
	}
	if sum > 0 && (size <= 0 || sum < size) {
		size = sum
	}
	return size
}

// unmountBelow unmounts everything at or below dir, deepest first.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	slices.SortFunc(mounts, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	var errs []error
	for _, mi := range mounts {
		if err := unix.Unmount(mi.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("%s: %w", mi.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// Usage returns the bytes that a directory's files take on disk.
func Usage(dir string) (bytes, inodes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == nil {
			bytes += st.Blocks * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}

// Exceeded returns the first disk emptyDir that is larger than its limit, in
// the words of an eviction.
func (p *Pod) Exceeded(pod *v1.Pod) (string, bool) {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.IsZero() || v.EmptyDir.Medium == v1.StorageMediumMemory {
			continue
		}
		used, _, err := Usage(p.paths[v.Name])
		if err == nil && used > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String()), true
		}
	}
	return "", false
}

// checkHostPath makes and checks a host path as its type says.
func checkHostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if !filepath.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
		return fmt.Errorf("host path %q must be absolute and free of '..'", h.Path)
	}
	if kind == v1.HostPathUnset {
		return nil
	}
	info, err := os.Stat(h.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && kind == v1.HostPathDirectoryOrCreate {
		return os.MkdirAll(h.Path, 0o755)
	}
	if missing && kind == v1.HostPathFileOrCreate {
		f, err := os.OpenFile(h.Path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	is := func(want string, ok bool) error {
		if err != nil || !ok {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, want)
		}
		return nil
	}
	var m os.FileMode
	if err == nil {
		m = info.Mode()
	}
	switch kind {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		return is("directory", m.IsDir())
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		return is("file", m.IsRegular())
	case v1.HostPathSocket:
		return is("socket file", m&os.ModeSocket != 0)
	case v1.HostPathCharDev:
		return is("character device", m&os.ModeCharDevice != 0)
	case v1.HostPathBlockDev:
		return is("block device", m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0)
	}
	return fmt.Errorf("%s is an invalid volume type", kind)
}
