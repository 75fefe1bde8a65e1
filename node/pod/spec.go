package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
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
	services, err := w.services(ctx)
	if err != nil {
		return cfg, closeFiles, fmt.Errorf("waiting for the list of services: %w", err)
	}
	e := env{objects: w.m.cfg.Objects, services: visibleServices(p, services), pod: p, fields: w.fields(), volume: w.volumeOf}
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
		Annotations: map[string]string{noteImage: spec.Image, noteImageID: imageID, noteName: name, noteStop: stopSignal(spec, img), noteResources: resourcesNote(&spec.Resources)},
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
	if w.vols != nil {
		cfg.User.SupplementalGroups = append(cfg.User.SupplementalGroups, w.vols.Groups()...)
	}
	if err := errors.Join(w.m.logs.Make(w.logDir, string(w.uid)), os.MkdirAll(filepath.Dir(cfg.LogPath), 0o755)); err != nil {
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
