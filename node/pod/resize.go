package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/skiff-sh/skiff/node/runtime"
)

// noteResources keeps with a container what it was started with.
const noteResources = "skiff.sh/resources"

const resizeRetry = 5 * time.Second // after a change that failed; doubled up to a minute

// resizing is how far the worker is with carrying out what was granted.
type resizing struct {
	begun   int  // of the grant that the rest is about
	settled bool // everything has what was granted
	failure string
	delay   time.Duration
	again   time.Time
}

// computing compares what the kernel is told of: cpu and memory.
func computing(a, b v1.ResourceRequirements) bool {
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if !sameQuantity(name, a.Requests, b.Requests) || !sameQuantity(name, a.Limits, b.Limits) {
			return false
		}
	}
	return true
}

func sameQuantity(name v1.ResourceName, a, b v1.ResourceList) bool {
	x, y := a[name], b[name]
	return x.Cmp(y) == 0
}

func computingOf(r *v1.ResourceRequirements) v1.ResourceRequirements {
	if r == nil {
		return v1.ResourceRequirements{}
	}
	return *r
}

// givenTo tells what a running container was given.
func (w *worker) givenTo(c *container) v1.ResourceRequirements {
	a := w.m.grants.allocated(w.uid)
	if r, ok := a.Given[c.cur.ID]; ok {
		return r
	}
	if c.given == nil || c.givenID != c.cur.ID {
		c.givenID, c.given = c.cur.ID, &v1.ResourceRequirements{}
		if note := c.cur.Annotations[noteResources]; note == "" || json.Unmarshal([]byte(note), c.given) != nil {
			c.given = c.spec.Resources.DeepCopy() // started by a skiff that could not change them
		}
	}
	return *c.given
}

// cgroupGiven tells what the pod's cgroup was given, and for which resources of
// the pod as a whole.
func (w *worker) cgroupGiven() (runtime.Resources, v1.ResourceRequirements) {
	a := w.m.grants.allocated(w.uid)
	if cfg := w.sandbox.Config(); a.Cgroup == nil || a.Attempt != cfg.Attempt {
		r := v1.ResourceRequirements{}
		if note := cfg.Annotations[noteResources]; note == "" || json.Unmarshal([]byte(note), &r) != nil {
			r = computingOf(w.pod.Spec.Resources)
		}
		return cfg.Resources, r
	}
	return *a.Cgroup, computingOf(a.GivenPod)
}

// resourcesNote is what noteResources says.
func resourcesNote(r *v1.ResourceRequirements) string {
	b, err := json.Marshal(computingOf(r))
	if err != nil {
		return ""
	}
	return string(b)
}

// resize gives running containers, and the pod's cgroup, what the pod has been
// granted. A container that has to start anew for it is ended.
func (w *worker) resize(ctx context.Context, alarm *time.Time) {
	begun := w.begun
	_, generation, _ := w.m.grants.state(w.uid)
	if begun != w.resizing.begun {
		w.resizing = resizing{begun: begun}
	}
	if w.sandbox == nil || !w.sandbox.Alive() || w.resizing.settled {
		return
	}
	now := w.now()
	if now.Before(w.resizing.again) {
		earlier(alarm, w.resizing.again)
		return
	}
	busy, err := w.carryOut(ctx)
	if (busy || err != nil) && ctx.Err() == nil {
		w.m.grants.resume(w.pod)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.resizing.delay = min(max(2*w.resizing.delay, resizeRetry), time.Minute)
		w.resizing.again = now.Add(w.resizing.delay)
		earlier(alarm, w.resizing.again)
		if w.resizing.failure != err.Error() {
			w.resizing.failure = err.Error()
			w.m.grants.event(w.pod, v1.EventTypeWarning, "ResizeError", "Pod resize error", generation, err.Error())
		}
	case !busy:
		w.resizing = resizing{begun: begun, settled: true}
		if generation := w.m.grants.done(w.uid, begun); generation != 0 {
			w.m.grants.event(w.pod, v1.EventTypeNormal, "ResizeCompleted", "Pod resize completed", generation, "")
		}
	}
}

// carryOut does what can be done now; busy says that containers have yet to end.
func (w *worker) carryOut(ctx context.Context) (busy bool, err error) {
	was, wasPod := w.cgroupGiven()
	granted := computingOf(w.pod.Spec.Resources)
	wholeChanged := !computing(wasPod, granted)
	var change []*container
	for _, c := range w.ctrs {
		if !c.running() {
			continue
		}
		have, want := withPodLimits(w.givenTo(c), wasPod), withPodLimits(c.spec.Resources, granted)
		switch {
		case computing(have, want):
		case c.kill != nil:
			busy = true
		case c.role != roleInit && restartsFor(c.spec, have, want):
			w.restartFor(ctx, c, fmt.Sprintf("Container %s resize requires restart", c.spec.Name))
			busy = true
		default:
			change = append(change, c)
		}
	}
	want := keepLimits(podResources(w.pod, was.PidsLimit), was)
	if len(change) == 0 && !wholeChanged && want.CPUShares == was.CPUShares && want.CPUQuota == was.CPUQuota && want.MemoryLimit == was.MemoryLimit {
		return busy, nil
	}
	if err := w.shrinkable(ctx, change, was, want, granted); err != nil {
		return busy, err
	}
	// The pod grows before its containers and shrinks after them.
	if wide := widest(was, want); wide.CPUShares != was.CPUShares || wide.CPUQuota != was.CPUQuota || wide.MemoryLimit != was.MemoryLimit {
		if err := w.setCgroup(ctx, wide, wasPod); err != nil {
			return busy, err
		}
		was = wide
	}
	for _, c := range change {
		r := containerResources(w.pod, c.spec, w.m.cfg.MemoryCapacity)
		if err := w.sandbox.UpdateResources(ctx, c.cur.ID, r); err != nil {
			return busy, fmt.Errorf("changing the resources of container %q: %w", c.spec.Name, err)
		}
		id, given := c.cur.ID, *c.spec.Resources.DeepCopy()
		w.m.grants.record(w.uid, func(a *allocation) {
			if a.Given == nil {
				a.Given = map[string]v1.ResourceRequirements{}
			}
			a.Given[id] = given
			for old := range a.Given {
				if !slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.cur != nil && c.cur.ID == old }) {
					delete(a.Given, old)
				}
			}
		})
	}
	return busy, w.setCgroup(ctx, want, granted)
}

func (w *worker) setCgroup(ctx context.Context, r runtime.Resources, whole v1.ResourceRequirements) error {
	if err := w.sandbox.UpdatePodResources(ctx, r); err != nil {
		return fmt.Errorf("changing the resources of the pod: %w", err)
	}
	attempt := w.sandbox.Config().Attempt
	w.m.grants.record(w.uid, func(a *allocation) { a.Cgroup, a.GivenPod, a.Attempt = &r, &whole, attempt })
	return nil
}

// withPodLimits gives the resources of a container whose limits are those of its pod
// where it has none.
func withPodLimits(r, whole v1.ResourceRequirements) v1.ResourceRequirements {
	out := v1.ResourceRequirements{Requests: r.Requests, Limits: r.Limits.DeepCopy()}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if q, ok := whole.Limits[name]; ok && !q.IsZero() {
			if own, ok := out.Limits[name]; !ok || own.IsZero() {
				if out.Limits == nil {
					out.Limits = v1.ResourceList{}
				}
				out.Limits[name] = q
			}
		}
	}
	return out
}

// restartsFor says that the container wants to start anew for such a change.
func restartsFor(c *v1.Container, have, want v1.ResourceRequirements) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
		return p.RestartPolicy == v1.RestartContainer &&
			(!sameQuantity(p.ResourceName, have.Requests, want.Requests) || !sameQuantity(p.ResourceName, have.Limits, want.Limits))
	})
}

// restartFor ends a container that is to start again with other resources, or
// another image.
func (w *worker) restartFor(ctx context.Context, c *container, why string) {
	w.noteRestart(c)
	w.killContainer(ctx, c, w.podGrace(), why)
}

// noteRestart notes for later agents that a container ends only to start again.
func (w *worker) noteRestart(c *container) {
	id := c.cur.ID
	w.m.grants.record(w.uid, func(a *allocation) {
		a.Restart = slices.DeleteFunc(a.Restart, func(old string) bool {
			return !slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.cur != nil && c.cur.ID == old })
		})
		if !slices.Contains(a.Restart, id) {
			a.Restart = append(a.Restart, id)
		}
	})
}

// endedToRestart says that a container has ended for which noteRestart was called.
func (w *worker) endedToRestart(c *container) bool {
	return c.cur != nil && slices.Contains(w.m.grants.allocated(w.uid).Restart, c.cur.ID)
}

// startAgain lets those start again at once.
func (w *worker) startAgain() {
	for _, c := range w.ctrs {
		if c.ended == nil || c.again || !w.endedToRestart(c) {
			continue
		}
		c.again, c.finished = true, time.Time{}
		c.wait("ContainerCreating", "")
	}
}

// resizeCondition says that a condition is one of those that w.resizeConditions
// gives, and goes when it gives none.
func resizeCondition(t v1.PodConditionType) bool {
	return t == v1.PodResizePending || t == v1.PodResizeInProgress
}

// keepLimits leaves a limit as it is that no longer follows from the containers:
// limits are not removed.
func keepLimits(want, was runtime.Resources) runtime.Resources {
	want.CPUQuota, want.MemoryLimit = cmp.Or(want.CPUQuota, was.CPUQuota), cmp.Or(want.MemoryLimit, was.MemoryLimit)
	return want
}

// widest has room for both a and b; 0 is no limit.
func widest(a, b runtime.Resources) runtime.Resources {
	more := func(x, y int64) int64 {
		if x == 0 || y == 0 {
			return 0
		}
		return max(x, y)
	}
	out := b
	out.CPUShares, out.CPUQuota, out.MemoryLimit = max(a.CPUShares, b.CPUShares), more(a.CPUQuota, b.CPUQuota), more(a.MemoryLimit, b.MemoryLimit)
	return out
}

// shrinkable refuses memory limits below what is in use: the kernel would end
// processes. It is asked before anything is changed.
func (w *worker) shrinkable(ctx context.Context, change []*container, was, want runtime.Resources, whole v1.ResourceRequirements) error {
	lowered := func(limit, before int64) bool { return limit != 0 && (before == 0 || limit < before) }
	var errs []error
	if lowered(want.MemoryLimit, was.MemoryLimit) {
		st, err := w.sandbox.PodStats(ctx)
		if err != nil {
			return fmt.Errorf("unable to read memory usage for pod: %w", err)
		}
		if st.MemoryUsage >= uint64(want.MemoryLimit) {
			errs = append(errs, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", want.MemoryLimit, st.MemoryUsage))
		}
	}
	var stats map[string]runtime.Stats
	for _, c := range change {
		next, given := withPodLimits(c.spec.Resources, whole), w.givenTo(c)
		limit := next.Limits.Memory().Value()
		if !lowered(limit, given.Limits.Memory().Value()) {
			continue
		}
		if stats == nil {
			var err error
			if stats, err = w.sandbox.Stats(ctx); err != nil {
				return fmt.Errorf("unable to read memory usage for pod: %w", err)
			}
		}
		if st, ok := stats[c.cur.ID]; ok && st.MemoryUsage >= uint64(limit) {
			errs = append(errs, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", c.spec.Name, limit, st.MemoryUsage))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("cannot decrease memory limits: %w", errors.Join(errs...))
	}
	return nil
}

// resizeConditions are what the pod's status says of changes under way.
func (w *worker) resizeConditions() (out []v1.PodCondition) {
	if w.state.Final() {
		return nil
	}
	p, granted, begun := w.m.grants.state(w.uid)
	if p != nil && p.reason != "" {
		out = append(out, v1.PodCondition{Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: p.reason, Message: p.message, ObservedGeneration: p.generation})
	}
	if granted != 0 {
		c := v1.PodCondition{Type: v1.PodResizeInProgress, Status: v1.ConditionTrue, ObservedGeneration: granted}
		if begun == w.resizing.begun && w.resizing.failure != "" {
			c.Reason, c.Message = v1.PodReasonError, w.resizing.failure
		}
		out = append(out, c)
	}
	return out
}

// resourcesStatus is what a container's status says of its resources: what was
// granted, and of cpu and memory what it has.
func (w *worker) resourcesStatus(c *container) (has *v1.ResourceRequirements, granted v1.ResourceList) {
	has, granted = c.spec.Resources.DeepCopy(), c.spec.Resources.Requests.DeepCopy()
	if !c.running() {
		return has, granted
	}
	given := w.givenTo(c)
	for _, part := range []struct{ to, from v1.ResourceList }{{has.Requests, given.Requests}, {has.Limits, given.Limits}} {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			if q, ok := part.from[name]; ok && part.to != nil {
				part.to[name] = q
			}
		}
	}
	return has, granted
}

// podResourcesStatus says the same of the pod as a whole.
func (w *worker) podResourcesStatus() (has *v1.ResourceRequirements, granted v1.ResourceList) {
	o := resource.PodResourcesOptions{ExcludeOverhead: true} // who counts the pod adds it
	granted = resource.PodRequests(w.pod, o)
	p := &v1.Pod{Spec: v1.PodSpec{Resources: w.pod.Spec.Resources}}
	if w.sandbox != nil && w.sandbox.Alive() && w.pod.Spec.Resources != nil {
		_, whole := w.cgroupGiven()
		p.Spec.Resources = &whole
	}
	for _, c := range w.ctrs {
		r, _ := w.resourcesStatus(c)
		spec := v1.Container{Name: c.spec.Name, Resources: *r, RestartPolicy: c.spec.RestartPolicy}
		if c.role == roleMain {
			p.Spec.Containers = append(p.Spec.Containers, spec)
		} else {
			p.Spec.InitContainers = append(p.Spec.InitContainers, spec)
		}
	}
	return &v1.ResourceRequirements{Requests: resource.PodRequests(p, o), Limits: resource.PodLimits(p, o)}, granted
}
