package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// emptyDir makes a directory or a tmpfs; one that is there is left alone. A crash
// leaves nothing that a later call takes for complete.
func (m *Manager) emptyDir(dir string, e *v1.EmptyDirVolumeSource, pod *v1.Pod, group *int64) error {
	perm, gid := os.FileMode(0o777), 0
	if group != nil {
		perm, gid = perm|os.ModeSetgid, int(*group)
	}
	if e.Medium == v1.StorageMediumMemory {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
			return err
		}
		bits := 0o1777 // as mount makes it
		if group != nil {
			bits |= unix.S_ISGID
		}
		opts := fmt.Sprintf("mode=%o,gid=%d,size=%d", bits, gid, m.memorySize(e, pod))
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, opts); err != nil {
			return fmt.Errorf("mounting a tmpfs: %w", err)
		}
		return nil
	}
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	making := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)) // no volume's name begins so
	if err := os.MkdirAll(making, 0o700); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(making, -1, gid), os.Chmod(making, perm)); err != nil {
		return err
	}
	return os.Rename(making, dir)
}

// memorySize is the smallest of: what the node gives to pods, the volume's
// limit, and what the pod's containers may use when all of them have a limit.
func (m *Manager) memorySize(e *v1.EmptyDirVolumeSource, pod *v1.Pod) int64 {
	size := m.cfg.MemoryAllocatable
	least := func(limit int64) {
		if limit > 0 && (size <= 0 || limit < size) {
			size = limit
		}
	}
	if e.SizeLimit != nil {
		least(e.SizeLimit.Value())
	}
	least(memoryLimit(pod))
	return size
}

// memoryLimit is what all containers of a pod may use, 0 if one has no limit.
func memoryLimit(pod *v1.Pod) int64 {
	if r := pod.Spec.Resources; r != nil && !r.Limits.Memory().IsZero() {
		return r.Limits.Memory().Value()
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Resources.Limits.Memory().IsZero() {
				return 0
			}
		}
	}
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{})
	return limits.Memory().Value()
}

// Usage returns the bytes that a directory's files take on disk, and how many they
// are. A file with several names counts once; other file systems that are mounted
// below do not count.
func Usage(dir string) (bytes, inodes int64, err error) {
	var root unix.Stat_t
	switch err := unix.Lstat(dir, &root); {
	case errors.Is(err, fs.ErrNotExist):
		return 0, 0, nil
	case err != nil:
		return 0, 0, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	linked := map[uint64]struct{}{} // inodes of several names
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		switch {
		case st.Dev != root.Dev && d.IsDir():
			return fs.SkipDir
		case st.Dev != root.Dev:
			return nil
		case st.Nlink > 1 && !d.IsDir():
			if _, seen := linked[st.Ino]; seen {
				return nil
			}
			linked[st.Ino] = struct{}{}
		}
		bytes += st.Blocks * 512
		inodes++
		return nil
	})
	return bytes, inodes, err
}
