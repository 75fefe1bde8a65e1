package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

// mounts are the container's volumes and the files that every pod gets.
func (w *worker) mounts(c *container, id string, lookup func(string) (string, bool)) (out []runtime.Mount, files []*os.File, err error) {
	taken := map[string]bool{}
	for i := range c.spec.VolumeMounts {
		vm := &c.spec.VolumeMounts[i]
		v, ok := w.volumeOf(vm.Name)
		if !ok {
			return nil, files, fmt.Errorf("volume %q of mount %q is not set up", vm.Name, vm.MountPath)
		}
		src := v.Path
		if v.CreateMissing {
			if _, err := os.Stat(src); errors.Is(err, fs.ErrNotExist) {
				if err := os.MkdirAll(src, 0o755); err != nil {
					return nil, files, fmt.Errorf("making host path %s: %w", src, err)
				}
			}
		}
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			if sub, err = expandStrict(vm.SubPathExpr, lookup); err != nil {
				return nil, files, err
			}
		}
		if sub != "" {
			open := volume.Subpath
			if w.imageVols[vm.Name] != nil {
				open = volume.ExistingSubpath
			}
			f, err := open(src, sub)
			if err != nil {
				return nil, files, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.spec.Name, err)
			}
			files = append(files, f)
			src = volume.Source(f)
		}
		m := runtime.Mount{Destination: vm.MountPath, HostPath: src, Readonly: vm.ReadOnly || v.ReadOnly, Options: v.Options}
		m.RecursiveReadonly = recursive(vm)
		if !strings.HasPrefix(m.Destination, "/") {
			m.Destination = "/" + m.Destination
		}
		if vm.MountPropagation != nil {
			switch *vm.MountPropagation {
			case v1.MountPropagationHostToContainer:
				m.Propagation = runtime.PropagationHostToContainer
			case v1.MountPropagationBidirectional:
				m.Propagation = runtime.PropagationBidirectional
			}
		}
		taken[filepath.Clean(m.Destination)] = true
		out = append(out, m)
	}
	own, err := w.ownFiles(c, id)
	if err != nil {
		return nil, files, err
	}
	for _, m := range own {
		if !taken[m.Destination] {
			out = append(out, m)
		}
	}
	// What lies deeper is mounted later, or it would be covered.
	slices.SortStableFunc(out, func(a, b runtime.Mount) int {
		return strings.Count(filepath.Clean(a.Destination), "/") - strings.Count(filepath.Clean(b.Destination), "/")
	})
	return out, files, nil
}

// volumeOf is one of the pod's volumes.
func (w *worker) volumeOf(name string) (volume.Mounted, bool) {
	if iv := w.imageVols[name]; iv != nil && iv.path != "" {
		return volume.Mounted{Path: iv.path, ReadOnly: true}, true
	}
	if w.vols == nil {
		return volume.Mounted{}, false
	}
	return w.vols.Get(name)
}

// recursive says that what is mounted below a mount is read-only too. Asked for
// where the kernel cannot do it, the start of the container fails.
func recursive(vm *v1.VolumeMount) bool {
	if !vm.ReadOnly || vm.RecursiveReadOnly == nil {
		return false
	}
	switch *vm.RecursiveReadOnly {
	case v1.RecursiveReadOnlyEnabled:
		return true
	case v1.RecursiveReadOnlyIfPossible:
		return runtime.RecursiveReadonly()
	}
	return false
}

// expandStrict is expand for paths: a variable that is missing is an error.
func expandStrict(s string, lookup func(string) (string, bool)) (string, error) {
	var missing []string
	out := expand(s, func(k string) (string, bool) {
		v, ok := lookup(k)
		if !ok {
			missing = append(missing, k)
		}
		return v, ok
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("missing value for %q", missing[0])
	}
	return out, nil
}
