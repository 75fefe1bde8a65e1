package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/pod"
)

// houseEvery is how often the machine's memory, disks and logs are looked at;
// the kernel has no event for them. It costs a few system calls.
const houseEvery = 10 * time.Second

// pressure is what the machine is short of.
type pressure struct{ memory, disk, pids bool }

// keepHouse watches over memory, disks, log sizes and the list of images, and
// ends a pod when the machine is short of something.
func (a *Agent) keepHouse(ctx context.Context) error {
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	last := time.Time{}
	for {
		if time.Since(last) > time.Minute {
			a.listImages()
			last = time.Now()
		}
		a.look(ctx)
		a.rotateLogs(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look measures, and acts when a threshold is crossed.
func (a *Agent) look(ctx context.Context) {
	var p pressure
	var short string // in the words of an eviction
	if total, free, err := memory(); err == nil && total > memoryReserve && free < memoryReserve {
		p.memory = true
		short = fmt.Sprintf("The node was low on resource: memory. Threshold quantity: %s, available: %dKi. ", "100Mi", free>>10)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(a.cfg.DataDir, &fs); err == nil {
		free, inodes := percent(fs.Bavail, fs.Blocks), percent(fs.Ffree, fs.Files)
		if free < imageReserve {
			a.pruneImages(ctx)
			if err := unix.Statfs(a.cfg.DataDir, &fs); err == nil {
				free = percent(fs.Bavail, fs.Blocks)
			}
		}
		if free < diskReserve || inodes < inodeReserve {
			p.disk = true
			if short == "" {
				short = fmt.Sprintf("The node was low on resource: ephemeral-storage. Threshold quantity: %d%%, available: %.1f%%. ", diskReserve, free)
			}
		}
	}
	p.pids = pidsShort()
	if p.pids && short == "" {
		short = "The node was low on resource: pids. "
	}
	a.self.setPressure(p)
	if r, ok := a.cfg.Runtime.(interface{ Check() error }); ok {
		a.self.setRuntime(r.Check())
	}
	if short != "" {
		a.evictOne(ctx, p, short)
	}
}

func percent(free, of uint64) float64 {
	if of == 0 {
		return 100 // a file system without that limit
	}
	return float64(free) * 100 / float64(of)
}

// pidsShort says that less than a tenth of the process numbers is free.
func pidsShort() bool {
	b, err := os.ReadFile("/proc/loadavg") // "0.1 0.2 0.3 1/234 5678": 234 exist
	if err != nil {
		return false
	}
	f := strings.Fields(string(b))
	if len(f) < 4 {
		return false
	}
	_, count, _ := strings.Cut(f[3], "/")
	n, err1 := strconv.ParseInt(count, 10, 64)
	most, err2 := strconv.ParseInt(readLine("/proc/sys/kernel/pid_max"), 10, 64)
	return err1 == nil && err2 == nil && most > 0 && n > most/10*9
}

// evictOne ends the pod that weighs most and matters least.
func (a *Agent) evictOne(ctx context.Context, p pressure, why string) {
	type candidate struct {
		v     *pod.View
		over  bool // uses more than it asked for
		usage int64
	}
	var list []candidate
	for _, v := range a.pods.Views() {
		if v.Sandbox == nil || v.State.Final() || v.Pod.DeletionTimestamp != nil || critical(v.Pod) {
			continue
		}
		st, err := v.Sandbox.PodStats(ctx)
		if err != nil {
			continue
		}
		c := candidate{v: v, usage: int64(st.MemoryWorkingSet)}
		if p.disk && !p.memory {
			c.usage = 0
			for _, ctr := range v.Containers {
				if used, _, err := a.cfg.Images.MountUsage(ctr.ID); err == nil {
					c.usage += used
				}
			}
		}
		var request int64
		for i := range v.Pod.Spec.Containers {
			request += v.Pod.Spec.Containers[i].Resources.Requests.Memory().Value()
		}
		c.over = c.usage > request
		list = append(list, c)
	}
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(x, y candidate) int {
		switch {
		case x.over != y.over:
			if x.over {
				return -1
			}
			return 1
		case priority(x.v.Pod) != priority(y.v.Pod):
			return int(priority(x.v.Pod)) - int(priority(y.v.Pod))
		case x.usage > y.usage:
			return -1
		case x.usage < y.usage:
			return 1
		}
		return 0
	})
	victim := list[0].v.Pod
	a.cfg.Logger.Warn("evicting a pod", "pod", victim.Namespace+"/"+victim.Name, "why", why)
	a.self.recorder.Event(victim, v1.EventTypeWarning, "Evicted", why)
	a.pods.Evict(victim.UID, "Evicted", why)
}

func critical(p *v1.Pod) bool { return p.Spec.Priority != nil && *p.Spec.Priority >= 2_000_000_000 }

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// rotateLogs begins new files for logs that have grown large.
func (a *Agent) rotateLogs(ctx context.Context) {
	for _, v := range a.pods.Views() {
		for name, c := range v.Containers {
			if !c.Running || v.Sandbox == nil {
				continue
			}
			err := logs.Rotate(c.LogPath, logs.MaxSize, logs.MaxFiles, time.Now(), func() error { return v.Sandbox.ReopenLog(ctx, c.ID) })
			if err != nil && ctx.Err() == nil {
				a.cfg.Logger.Warn("rotating a log", "pod", v.Pod.Namespace+"/"+v.Pod.Name, "container", name, "err", err)
			}
		}
	}
}

type pruner interface {
	Prune(ctx context.Context, keep func(*image.Image) bool) ([]*image.Image, error)
}

// pruneImages makes room: images that no container uses go.
func (a *Agent) pruneImages(ctx context.Context) {
	p, ok := a.cfg.Images.(pruner)
	if !ok {
		return
	}
	gone, err := p.Prune(ctx, nil)
	if err != nil && !errors.Is(err, context.Canceled) {
		a.cfg.Logger.Warn("making room on the disk", "err", err)
	}
	if len(gone) > 0 {
		a.cfg.Logger.Info("removed images to make room", "images", len(gone))
		a.listImages()
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
