package pod

import (
	"context"
	"path/filepath"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

// Annotations that the worker leaves with a container for its successor.
const (
	noteImage   = "skiff.sh/image"      // as the pod names it
	noteName    = "skiff.sh/image-name" // as its status shows it
	noteImageID = "skiff.sh/image-id"
	noteStop    = "skiff.sh/stop-signal"
	noteUser    = "skiff.sh/user"
)

type role int

const (
	roleMain      role = iota
	roleInit           // runs to its end before the next one starts
	roleSidecar        // restartable init container
	roleEphemeral      // added to a pod that runs; see ephemeral.go
	roleVolume         // no container: an image to be mounted as a volume
)

// container is one container of a pod through all its attempts.
type container struct {
	spec   *v1.Container
	role   role
	target string // of an ephemeral container: whose processes it sees

	cur     *runtime.ContainerStatus     // newest attempt; nil when none was made
	ended   *v1.ContainerStateTerminated // how the newest attempt ended
	last    *v1.ContainerStateTerminated // how the one before it ended
	past    bool                         // that was in a sandbox before this one
	attempt uint32                       // of the newest attempt
	image   string                       // status.image and imageID of the newest attempt
	imageID string
	stop    string // its stop signal

	waiting v1.ContainerStateWaiting // why there is no attempt running
	retryAt time.Time                // do not try to start before
	seen    int64                    // worker.changes when the configuration was wrong
	back    backoff                  // between restarts
	// finished is when the attempt ended after which the next one may have to
	// wait; zero if it has not to.
	finished time.Time
	// lost is an end that nobody saw, of an attempt that the API knows of and
	// that is in no sandbox.
	lost *v1.ContainerStateTerminated

	again bool // it ended only to start again: for other resources, a new image, a failed probe
	// given is what the attempt givenID was started with.
	given   *v1.ResourceRequirements
	givenID string

	pull       *pull
	pullBack   backoff
	pullFailed time.Time
	pullErr    string

	hook      hookState
	unhook    context.CancelFunc // ends the hook under way
	hookErr   string             // how the postStart hook failed
	kill      *killing
	unprobe   context.CancelFunc // ends the probes of this attempt
	unlive    context.CancelFunc // ends its liveness probe
	started   bool               // the startup probe passed, or there is none
	ready     bool               // the readiness probe says so, or there is none
	unhealthy string             // a probe wants this attempt ended, and why
	grace     *int64             // the failed probe's own grace period
	revive    bool               // it starts again after the failed probe, even if it ends well
}

type hookState int

const (
	hookNone hookState = iota
	hookRunning
	hookFailed // the container is being ended for it
	hookDone
)

// starting says that the container's process runs and its postStart hook has
// not succeeded: to the outside the container is still being created.
func (c *container) starting() bool {
	return c.running() && (c.hook == hookRunning || c.hook == hookFailed)
}

func (c *container) running() bool { return c.cur != nil && c.ended == nil }

func (c *container) wait(reason, message string) {
	c.waiting = v1.ContainerStateWaiting{Reason: reason, Message: message}
}

// next is the number of the attempt that would be started now.
func (c *container) next() uint32 {
	if c.cur == nil && c.ended == nil {
		return c.attempt
	}
	return c.attempt + 1
}

// restarts says whether an attempt that has ended is followed by another.
func (c *container) restarts(policy v1.RestartPolicy) bool {
	if c.ended == nil || c.again {
		return true
	}
	if c.role == roleEphemeral || c.role == roleInit && c.ended.ExitCode == 0 {
		return false
	}
	return restartsAfter(c.spec, policy, c.ended.ExitCode)
}

// initialized says that the containers after this init container may start.
func (c *container) initialized() bool {
	if c.role == roleSidecar {
		return c.running() && c.started && !c.starting()
	}
	return c.ended != nil && c.ended.ExitCode == 0
}

func (c *container) logName(attempt uint32) string {
	return filepath.Join(c.spec.Name, strconv.FormatUint(uint64(attempt), 10)+".log")
}

// status is the container's part of the pod's status. A container whose
// postStart hook is under way is still being created, and has no ID yet: if the
// agent ends now, the next one knows that the hook has to run again.
func (c *container) status(defaultWait v1.ContainerStateWaiting) v1.ContainerStatus {
	started := c.running() && c.started && !c.starting()
	s := v1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, RestartCount: int32(c.attempt), Started: &started, VolumeMounts: mountStatuses(c.spec)}
	if c.image != "" {
		s.Image, s.ImageID = c.image, c.imageID
	}
	if c.cur != nil && !c.starting() {
		s.ContainerID = containerID(c.cur.ID)
		s.Resources, s.AllocatedResources = c.spec.Resources.DeepCopy(), c.spec.Resources.Requests.DeepCopy()
		s.User = statusUser(c.cur.Annotations[noteUser])
		if lc := c.spec.Lifecycle; lc != nil {
			s.StopSignal = lc.StopSignal
		}
	} else if c.cur == nil && c.ended != nil {
		s.ContainerID = c.ended.ContainerID // its sandbox is no more
	}
	if c.last != nil {
		s.LastTerminationState.Terminated = c.last
	}
	switch {
	case c.running() && !c.starting():
		s.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(c.cur.StartedAt).Rfc3339Copy()}
		s.Ready = started && c.ready && c.role != roleInit
	case c.ended != nil && c.waiting.Reason == "":
		s.State.Terminated = c.ended
		s.Ready = c.role == roleInit && c.ended.ExitCode == 0
	default:
		wait := c.waiting
		if wait.Reason == "" {
			wait = defaultWait
		}
		s.State.Waiting = &wait
		if c.ended != nil {
			s.LastTerminationState.Terminated = c.ended
		}
	}
	return s
}

func containerID(id string) string { return "skiff://" + id }

// newContainers makes the containers of a pod in the order in which they
// start, with what the API's status tells of attempts before.
func newContainers(p *v1.Pod) []*container {
	var out []*container
	add := func(spec *v1.Container, r role, statuses []v1.ContainerStatus) {
		c := &container{spec: spec, role: r}
		for i := range statuses {
			s := &statuses[i]
			if s.Name != spec.Name {
				continue
			}
			c.attempt = uint32(s.RestartCount)
			c.last = s.LastTerminationState.Terminated
			if s.ContainerID != "" {
				c.image, c.imageID = s.Image, s.ImageID
			}
			switch {
			case s.State.Terminated != nil:
				c.ended = s.State.Terminated
			case s.ContainerID != "" && s.State.Running == nil && c.last != nil:
				c.ended, c.last = c.last, nil // it waits to be started again
			case s.ContainerID != "":
				// It ran. Unless its sandbox is adopted, nobody knows how it ended.
				c.lost = &v1.ContainerStateTerminated{ExitCode: 137, Reason: reasonUnknown, ContainerID: s.ContainerID,
					Message: "The container could not be located when the pod was looked at"}
				if r := s.State.Running; r != nil {
					c.lost.StartedAt = r.StartedAt
				}
			}
		}
		out = append(out, c)
	}
	for i := range p.Spec.InitContainers {
		spec := &p.Spec.InitContainers[i]
		r := roleInit
		if restartableInit(spec) {
			r = roleSidecar
		}
		add(spec, r, p.Status.InitContainerStatuses)
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i], roleMain, p.Status.ContainerStatuses)
	}
	return append(out, newEphemeral(p, nil)...)
}
