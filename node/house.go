package node

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/imagegc"
	"github.com/skiff-sh/skiff/node/logs"
)

// How often the node looks after what the kernel tells of by no event. Room on the
// disks, memory and log sizes have clocks of their own, which go faster when one of
// them changes fast.
const (
	houseEvery = 10 * time.Second // the runtime
	listEvery  = time.Minute      // the images
	gcEvery    = 5 * time.Minute  // images that are old, and again after one that did not help
)

// keepHouse watches over memory, disks, log sizes, images and the runtime.
func (a *Agent) keepHouse(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { a.keepLogs(ctx); return nil })
	g.Go(func() error { a.keepFree(ctx); return nil })
	g.Go(func() error { a.keepLimits(ctx); return nil })
	g.Go(func() error { a.keepImages(ctx); return nil })
	return g.Wait()
}

// keepLogs begins new files for logs that have grown large.
func (a *Agent) keepLogs(ctx context.Context) {
	r := &logs.Rotator{MaxSize: a.cfg.LogMaxSize, MaxFiles: a.cfg.LogMaxFiles}
	for {
		var files []logs.File
		for _, v := range a.pods.Views() {
			for _, c := range v.Containers {
				f := logs.File{Path: c.LogPath}
				if c.Running && v.Sandbox != nil {
					f.Reopen = func() error { return v.Sandbox.ReopenLog(ctx, c.ID) }
				}
				if c.LogPath != "" {
					files = append(files, f)
				}
			}
		}
		again, err := r.Look(time.Now(), files)
		if err != nil && ctx.Err() == nil {
			a.cfg.Logger.Warn("rotating logs", "err", err)
		}
		if !pause(ctx, again) {
			return
		}
	}
}

// collector is the agent's way to remove images.
func (a *Agent) collector() (*imagegc.Collector, bool) {
	store, ok := a.cfg.Images.(imagegc.Store)
	if !ok {
		return nil, false
	}
	return &imagegc.Collector{Policy: a.cfg.ImageGC, Store: store, Wanted: a.wantedImages, Event: a.nodeEvent, Logger: a.cfg.Logger, Removed: a.meter.ImageRemoved,
		Disk: func() (free, size int64, err error) {
			var fs unix.Statfs_t
			if err := unix.Statfs(a.imageDir(), &fs); err != nil {
				return 0, 0, fmt.Errorf("statfs %s: %w", a.imageDir(), err)
			}
			return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, nil
		}}, true
}

func (a *Agent) imageDir() string { return filepath.Join(a.cfg.DataDir, "images") }

// wantedImages are those of all pods that have not ended, also of containers that
// wait for their next start.
func (a *Agent) wantedImages() (out []string) {
	for _, v := range a.pods.Views() {
		if v.State.Final() {
			continue
		}
		for _, list := range [][]v1.Container{v.Pod.Spec.InitContainers, v.Pod.Spec.Containers} {
			for i := range list {
				out = append(out, list[i].Image)
			}
		}
		for i := range v.Pod.Spec.EphemeralContainers {
			out = append(out, v.Pod.Spec.EphemeralContainers[i].Image)
		}
		for i := range v.Pod.Spec.Volumes {
			if s := v.Pod.Spec.Volumes[i].Image; s != nil {
				out = append(out, s.Reference)
			}
		}
		for _, list := range [][]v1.ContainerStatus{v.Pod.Status.InitContainerStatuses, v.Pod.Status.ContainerStatuses} {
			for i := range list {
				out = append(out, list[i].ImageID)
			}
		}
	}
	return out
}

// nodeEvent records an event about the Node.
func (a *Agent) nodeEvent(kind, reason, message string) {
	a.self.event(kind, reason, message)
}

// keepImages removes images by the policy, tells which there are, and looks whether
// the runtime can be used.
func (a *Agent) keepImages(ctx context.Context) {
	gc, collects := a.collector()
	var listed, collected time.Time
	for {
		removed := 0
		now := time.Now()
		if collects && (now.Sub(collected) >= gcEvery || !a.gcFailed && gc.Full()) {
			collected = now
			var err error
			a.housework.Lock()
			removed, err = gc.Collect(ctx, now)
			a.housework.Unlock()
			if a.gcFailed = err != nil; a.gcFailed && ctx.Err() == nil {
				a.nodeEvent(v1.EventTypeWarning, "ImageGCFailed", err.Error())
				a.cfg.Logger.Warn("removing images that are not used", "err", err)
			}
		}
		if removed > 0 || now.Sub(listed) >= listEvery {
			a.listImages()
			listed = now
		}
		if r, ok := a.cfg.Runtime.(interface{ Check() error }); ok {
			a.self.setRuntime(r.Check())
		}
		if !pause(ctx, houseEvery) {
			return
		}
	}
}

// listImages puts the largest images into the Node's status.
func (a *Agent) listImages() {
	list, err := a.cfg.Images.List()
	if err != nil {
		a.cfg.Logger.Warn("listing images", "err", err)
		return
	}
	out := make([]v1.ContainerImage, 0, len(list))
	for _, i := range list {
		names := slices.Concat(i.RepoDigests, i.RepoTags)
		if len(names) > 5 {
			names = names[:5]
		}
		out = append(out, v1.ContainerImage{Names: names, SizeBytes: i.Size})
	}
	slices.SortStableFunc(out, func(x, y v1.ContainerImage) int {
		switch {
		case x.SizeBytes > y.SizeBytes:
			return -1
		case x.SizeBytes < y.SizeBytes:
			return 1
		}
		return strings.Compare(strings.Join(x.Names, " "), strings.Join(y.Names, " "))
	})
	if len(out) > maxImages {
		out = out[:maxImages]
	}
	a.self.setImages(out)
}

var _ imagegc.Store = (*image.Store)(nil)
