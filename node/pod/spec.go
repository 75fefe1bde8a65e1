package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

// containerConfig turns a container's spec into what the runtime needs. The
// returned function closes files that must stay open until it has started.
func (w *worker) containerConfig(ctx context.Context, c *container, img *image.Image, id string, attempt uint32) (cfg runtime.ContainerConfig, closeFiles func(), err error) {
	var files []*os.File
	closeFiles = func() {
		for _, f := range files {
			f.Close()
		}
	}
	spec, p := c.spec, w.pod
	services, err := w.m.cfg.Services(ctx)
	if err != nil {
		return cfg, closeFiles, fmt.Errorf("waiting for the list of services: %w", err)
	}
	e := env{objects: w.m.cfg.Objects, services: visibleServices(p, services), pod: p, fields: w.fields()}
	vars, table, err := e.environ(ctx, spec)
	if err != nil {
		return cfg, closeFiles, err
	}
	lookup := func(k string) (string, bool) { v, ok := table[k]; return v, ok }
	name, imageID := statusImage(img, spec.Image)
	cfg = runtime.ContainerConfig{
		ID: id, Name: spec.Name, Attempt: attempt,
		Args: arguments(spec, img, lookup), Env: append(slices.Clone(img.Config.Env), vars...), WorkingDir: spec.WorkingDir,
		Resources: containerResources(p, spec, w.m.cfg.MemoryCapacity),
		TTY:       spec.TTY, Stdin: spec.Stdin, StdinOnce: spec.StdinOnce,
		LogPath:     w.logPath(c, attempt),
		Annotations: map[string]string{noteImage: spec.Image, noteImageID: imageID, noteName: name, noteStop: stopSignal(spec, img)},
	}
	if len(cfg.Args) == 0 {
		return cfg, closeFiles, errors.New("no command specified")
	}
	if c.role == roleEphemeral && c.target != "" {
		cfg.TargetID = w.targetID(c)
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = img.Config.WorkingDir
	}
	if err := w.security(&cfg, spec, img); err != nil {
		return cfg, closeFiles, err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.LogPath), 0o755); err != nil {
		return cfg, closeFiles, fmt.Errorf("making the log's directory: %w", err)
	}
	cfg.Mounts, files, err = w.mounts(c, id, lookup)
	return cfg, closeFiles, err
}

// arguments are the pod's command and args over the image's entrypoint and
// command: who names a command gets none of the image's.
func arguments(c *v1.Container, img *image.Image, lookup func(string) (string, bool)) []string {
	ex := func(in []string) (out []string) {
		for _, s := range in {
			out = append(out, expand(s, lookup))
		}
		return out
	}
	command, args := ex(c.Command), ex(c.Args)
	if len(command) == 0 {
		command = img.Config.Entrypoint
		if len(args) == 0 {
			args = img.Config.Cmd
		}
	}
	return slices.Concat(command, args)
}

func stopSignal(c *v1.Container, img *image.Image) string {
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		return string(*c.Lifecycle.StopSignal)
	}
	return img.Config.StopSignal
}

// mounts are the container's volumes and the files that every pod gets.
func (w *worker) mounts(c *container, id string, lookup func(string) (string, bool)) (out []runtime.Mount, files []*os.File, err error) {
	taken := map[string]bool{}
	for i := range c.spec.VolumeMounts {
		vm := &c.spec.VolumeMounts[i]
		src, ok := w.vols.Path(vm.Name)
		if !ok {
			return nil, files, fmt.Errorf("volume %q of mount %q is not set up", vm.Name, vm.MountPath)
		}
		v := findVolume(w.pod, vm.Name)
		if v.HostPath != nil {
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
			f, err := volume.Subpath(src, sub)
			if err != nil {
				return nil, files, err
			}
			files = append(files, f)
			src = volume.Source(f)
		}
		m := runtime.Mount{Destination: vm.MountPath, HostPath: src, Readonly: vm.ReadOnly || readOnlyVolume(v)}
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

func readOnlyVolume(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func findVolume(p *v1.Pod, name string) *v1.Volume {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Name == name {
			return &p.Spec.Volumes[i]
		}
	}
	return &v1.Volume{}
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
