package pod

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/meter"
)

// kind is how metrics call the container's role.
func (c *container) kind() string {
	switch c.role {
	case roleInit, roleSidecar:
		return meter.Init
	case roleEphemeral:
		return meter.Ephemeral
	}
	return meter.Main
}

// meterStart tells once how long a pod took that has come to run here. Of one
// that an earlier agent started it is not known.
func (w *worker) meterStart(st v1.PodStatus, now time.Time) {
	if w.metered || st.Phase != v1.PodRunning {
		return
	}
	w.metered = true
	if w.static || w.pod.Status.Phase != v1.PodPending && w.pod.Status.Phase != "" {
		return
	}
	excluded := w.pulling
	for _, s := range st.InitContainerStatuses {
		if t := s.State.Terminated; t != nil {
			excluded += t.FinishedAt.Sub(t.StartedAt.Time)
		}
	}
	w.m.cfg.Meter.PodRuns(now.Sub(w.pod.CreationTimestamp.Time), now.Sub(w.accepted), excluded)
}
