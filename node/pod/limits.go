package pod

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/volume"
)

// limited says that the pod has a limit on disk space, which is looked after
// every ten seconds; there is no event for it to wait for.
func limited(p *v1.Pod) bool {
	for i := range p.Spec.Volumes {
		if e := p.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.Medium != v1.StorageMediumMemory {
			return true
		}
	}
	for i := range p.Spec.Containers {
		if !p.Spec.Containers[i].Resources.Limits.StorageEphemeral().IsZero() {
			return true
		}
	}
	return false
}

// overLimit looks for a volume or container that uses more disk than it may.
func (w *worker) overLimit() (string, bool) {
	if msg, over := w.vols.Exceeded(w.pod); over {
		return msg, true
	}
	for _, c := range w.ctrs {
		limit := c.spec.Resources.Limits.StorageEphemeral()
		if limit.IsZero() || !c.running() {
			continue
		}
		used, err := w.m.diskUsage(c.cur.ID)
		if err != nil {
			w.log.Debug("measuring a container's disk usage", "err", err)
			continue
		}
		if logs, _, err := volume.Usage(w.logPath(c, c.attempt)); err == nil {
			used += logs
		}
		if used > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.spec.Name, limit.String()), true
		}
	}
	return "", false
}

func (m *Manager) diskUsage(id string) (int64, error) {
	used, _, err := m.cfg.Images.MountUsage(id)
	return used, err
}
