package node

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/volume"
)

// Pods with a limit on disk space are measured every limitsEvery, by walking through
// their files; a walk takes at most a limitsShare of the time.
const (
	limitsEvery = 10 * time.Second
	limitsShare = 20
)

// keepLimits ends pods that use more disk than they may, but for those that nobody would
// bring back.
func (a *Agent) keepLimits(ctx context.Context) {
	for {
		began := time.Now()
		for _, v := range a.evictable.Views() {
			if v.Sandbox == nil || v.State.Final() || v.Pod.DeletionTimestamp != nil || pod.Critical(v.Pod) || !limitsDisk(v.Pod) {
				continue
			}
			var p eviction.Pod
			p.Pod = v.Pod
			volumes := a.useOfDisk(v, &p)
			if signal, text := overLimit(p, volumes); text != "" {
				a.cfg.Logger.Warn("evicting a pod", "pod", v.Pod.Namespace+"/"+v.Pod.Name, "why", text)
				a.self.recorder.Event(v.Pod, v1.EventTypeWarning, pod.Evicted, text)
				a.meter.Evicted(signal)
				a.evictable.End(v.Pod.UID, pod.Eviction{Reason: pod.Evicted, Message: text, Grace: 1})
			}
		}
		if !pause(ctx, max(limitsEvery, limitsShare*time.Since(began))) {
			return
		}
	}
}

// limitsDisk says that the pod has a limit on disk space.
func limitsDisk(p *v1.Pod) bool {
	for i := range p.Spec.Volumes {
		if e := p.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && onDisk(e) {
			return true
		}
	}
	limits := resource.PodLimits(p, resource.PodResourcesOptions{})
	_, ok := limits[v1.ResourceEphemeralStorage]
	return ok
}

// onDisk says that an emptyDir takes disk space: others are limited by their mount.
func onDisk(e *v1.EmptyDirVolumeSource) bool { return e.Medium == v1.StorageMediumDefault }

// overLimit says in kubelet's words which limit is exceeded, or nothing, and by which
// name such evictions are counted. volumes are the sizes of the emptyDirs by name.
func overLimit(p eviction.Pod, volumes map[string]int64) (signal, text string) {
	for i := range p.Pod.Spec.Volumes {
		v := &p.Pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if volumes[v.Name] > v.EmptyDir.SizeLimit.Value() {
			return "emptydirfs.limit", fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	all := p.Volumes.Bytes
	for _, c := range p.Containers {
		all += c.Root.Bytes + c.Logs.Bytes
	}
	if limit, ok := resource.PodLimits(p.Pod, resource.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && all > limit.Value() {
		return "ephemeralpodfs.limit", fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range p.Containers {
		i := slices.IndexFunc(p.Pod.Spec.Containers, func(s v1.Container) bool { return s.Name == c.Name })
		if i < 0 {
			continue
		}
		if limit := p.Pod.Spec.Containers[i].Resources.Limits.StorageEphemeral(); !limit.IsZero() && c.Root.Bytes+c.Logs.Bytes > limit.Value() {
			return "ephemeralcontainerfs.limit", fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return "", ""
}

// useOfDisk adds what the pod's files take, and returns the bytes of its emptyDirs.
func (a *Agent) useOfDisk(v *pod.View, p *eviction.Pod) map[string]int64 {
	volumes := map[string]int64{}
	for i := range v.Pod.Spec.Volumes {
		vol := &v.Pod.Spec.Volumes[i]
		if vol.EmptyDir == nil || !onDisk(vol.EmptyDir) || v.Volumes == nil {
			continue
		}
		if path, ok := v.Volumes.Path(vol.Name); ok {
			f := filesOf(path)
			volumes[vol.Name] = f.Bytes
			p.Volumes.Bytes, p.Volumes.Inodes = p.Volumes.Bytes+f.Bytes, p.Volumes.Inodes+f.Inodes
		}
	}
	for name, c := range v.Containers {
		use := eviction.Container{Name: name}
		if c.Running {
			if b, n, err := a.cfg.Images.MountUsage(c.ID); err == nil {
				use.Root = eviction.Files{Bytes: b, Inodes: n}
			}
		}
		if c.LogPath != "" {
			use.Logs = filesOf(filepath.Dir(c.LogPath)) // of all attempts
		}
		p.Containers = append(p.Containers, use)
	}
	slices.SortFunc(p.Containers, func(x, y eviction.Container) int { return strings.Compare(x.Name, y.Name) })
	return volumes
}

// filesOf measures a directory as far as it can be read; one that is gone takes
// nothing.
func filesOf(dir string) eviction.Files {
	b, n, _ := volume.Usage(dir)
	return eviction.Files{Bytes: b, Inodes: n}
}
