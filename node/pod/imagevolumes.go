package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// imageVolume is an image that is mounted into containers as a volume. It is
// pulled, by the rules of containers' images, when the first container starts
// that has it, and mounted until the sandbox goes.
type imageVolume struct {
	want *container // stands for the image: how it is pulled and why it waits
	path string     // where it is mounted; "" when it is not
}

// imageVolumeKey names a volume's root file system in the image store.
func imageVolumeKey(uid types.UID, volume string) string {
	return imageVolumePrefix(uid) + volume
}

func imageVolumePrefix(uid types.UID) string { return "volume-" + string(uid) + "." }

// ensureImageVolumes mounts the images that a container has as volumes. False
// when it has to wait; why is told as if it were the container's own image.
func (w *worker) ensureImageVolumes(ctx context.Context, c *container) bool {
	for i := range c.spec.VolumeMounts {
		name := c.spec.VolumeMounts[i].Name
		at := slices.IndexFunc(w.pod.Spec.Volumes, func(v v1.Volume) bool { return v.Name == name && v.Image != nil })
		if at < 0 {
			continue
		}
		if !w.ensureImageVolume(ctx, c, &w.pod.Spec.Volumes[at]) {
			return false
		}
	}
	return true
}

func (w *worker) ensureImageVolume(ctx context.Context, c *container, v *v1.Volume) bool {
	iv := w.imageVols[v.Name]
	if iv == nil {
		iv = &imageVolume{want: &container{role: roleVolume, spec: &v1.Container{
			Name: v.Name, Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy}}}
		if w.imageVols == nil {
			w.imageVols = map[string]*imageVolume{}
		}
		w.imageVols[v.Name] = iv
	}
	if iv.path != "" {
		return true
	}
	fail := func(reason, message string) bool {
		if c.waiting.Reason != reason || c.waiting.Message != message {
			w.event(c, v1.EventTypeWarning, "Failed", "Error: %s", message)
		}
		c.wait(reason, message)
		c.retryAt = w.now().Add(backoffInitial)
		return false
	}
	key := imageVolumeKey(w.uid, v.Name)
	if path, ok := w.m.cfg.Images.Mounted(key); ok { // by the agent before this one
		iv.path = path
		return true
	}
	if v.Image.Reference == "" {
		return fail("CreateContainerConfigError", fmt.Sprintf("volume %q names no image", v.Name))
	}
	img := w.ensureImage(ctx, iv.want)
	if img == nil {
		if iv.want.waiting.Reason != "" {
			c.wait(iv.want.waiting.Reason, iv.want.waiting.Message)
			c.retryAt = iv.want.retryAt
		}
		return false
	}
	path, err := w.m.cfg.Images.Mount(ctx, img.ID, key)
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		return fail("CreateContainerError", fmt.Sprintf("mounting the image of volume %q: %v", v.Name, err))
	}
	iv.path = path
	return true
}

// volumeOfAdopted says that a root file system is a volume of a pod whose
// containers run on.
func (m *Manager) volumeOfAdopted(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid := range m.adopted {
		if strings.HasPrefix(key, imageVolumePrefix(types.UID(uid))) {
			return true
		}
	}
	return false
}

// dropImageVolumes unmounts the images that a pod had as volumes. They are
// looked for among all mounts: an earlier agent may have made them.
func (m *Manager) dropImageVolumes(uid types.UID) error {
	keys, err := m.cfg.Images.Mounts()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if strings.HasPrefix(k, imageVolumePrefix(uid)) {
			if err := m.cfg.Images.Unmount(k); err != nil {
				return err
			}
		}
	}
	return nil
}
