package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/node/runtime"
)

// Ephemeral containers are added to a pod that is there already, to look at it.
// They start whenever the pod has a sandbox, count for none of the pod's phase
// and conditions, and are never started twice.

// ephemeralSpec is an ephemeral container as any other.
func ephemeralSpec(p *v1.Pod, i int) *v1.Container {
	return (*v1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
}

// newEphemeral makes the ephemeral containers of p that have is not among.
func newEphemeral(p *v1.Pod, have []*container) (out []*container) {
	for i := range p.Spec.EphemeralContainers {
		spec := ephemeralSpec(p, i)
		if slices.ContainsFunc(have, func(c *container) bool { return c.spec.Name == spec.Name }) {
			continue
		}
		c := &container{spec: spec, role: roleEphemeral, target: p.Spec.EphemeralContainers[i].TargetContainerName}
		if s := findStatus(p, spec.Name); s != nil {
			c.ended, c.image, c.imageID = s.State.Terminated, s.Image, s.ImageID
		}
		out = append(out, c)
	}
	return out
}

// takeEphemeral takes in those that were added since.
func (w *worker) takeEphemeral() {
	added := newEphemeral(w.pod, w.ctrs)
	if len(added) == 0 {
		return
	}
	w.ctrs = append(w.ctrs, added...)
	if w.release != nil { // they may refer to more objects
		before := w.release
		w.hold()
		before()
	}
}

// runEphemeral starts the ephemeral containers that have not run yet.
func (w *worker) runEphemeral(ctx context.Context, alarm *time.Time) {
	for _, c := range w.ctrs {
		if c.role != roleEphemeral {
			continue
		}
		switch {
		case c.running():
			if c.kill != nil {
				w.driveKill(ctx, c, alarm)
			}
		case c.ended != nil:
		case c.cur == nil && w.ranBefore(c):
			w.lostEphemeral(c)
		case w.ephemeralReady(c):
			w.tryStart(ctx, c, alarm)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// ranBefore says that the container was started in a sandbox that is no more.
func (w *worker) ranBefore(c *container) bool {
	s := findStatus(w.pod, c.spec.Name)
	return s != nil && s.ContainerID != ""
}

// lostEphemeral records the end of a container that nobody saw.
func (w *worker) lostEphemeral(c *container) {
	s := findStatus(w.pod, c.spec.Name)
	c.image, c.imageID = s.Image, s.ImageID
	c.ended = &v1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: s.ContainerID,
		Message: "The container could not be located when the pod was looked at", FinishedAt: metav1.NewTime(w.now()).Rfc3339Copy()}
	if r := s.State.Running; r != nil {
		c.ended.StartedAt = r.StartedAt
	}
}

// ephemeralReady says that the container can be started as it is asked for;
// otherwise its status says what is in the way.
func (w *worker) ephemeralReady(c *container) bool {
	why := w.ephemeralRefused(c)
	if why == "" && c.target != "" && w.targetID(c) == "" {
		why = "unable to find target container " + c.target
	}
	if why == "" {
		return true
	}
	if c.waiting.Message != why {
		w.event(c, v1.EventTypeWarning, "Failed", "Error: %s", why)
	}
	c.wait("CreateContainerConfigError", why)
	return false
}

// ephemeralRefused names the fields that this node can't honour. They concern
// the container, not the pod, which runs already.
func (w *worker) ephemeralRefused(c *container) string {
	i := slices.IndexFunc(w.pod.Spec.EphemeralContainers, func(e v1.EphemeralContainer) bool { return e.Name == c.spec.Name })
	errs := refusedContainer(c.spec, selinux(), field.NewPath("spec", "ephemeralContainers").Index(max(0, i)))
	if len(errs) == 0 {
		return ""
	}
	return errs.ToAggregate().Error()
}

// targetID is the running container whose processes c wants to see.
func (w *worker) targetID(c *container) string {
	for _, t := range w.ctrs {
		if t.spec.Name == c.target && t.running() && t.cur.State == runtime.Running {
			return t.cur.ID
		}
	}
	return ""
}

// sortByName orders statuses that have no order of their own.
func sortByName(list []v1.ContainerStatus) {
	slices.SortStableFunc(list, func(a, b v1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
}

// fieldPath names a container in the object of an event.
func (c *container) fieldPath() string {
	kind := "containers"
	switch c.role {
	case roleInit, roleSidecar:
		kind = "initContainers"
	case roleEphemeral:
		kind = "ephemeralContainers"
	case roleVolume:
		return ""
	}
	return fmt.Sprintf("spec.%s{%s}", kind, c.spec.Name)
}
