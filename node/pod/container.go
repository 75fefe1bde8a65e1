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
	attempt uint32                       // of the newest attempt
	image   string                       // status.image and imageID of the newest attempt
	imageID string
	stop    string // its stop signal

	waiting v1.ContainerStateWaiting // why there is no attempt running
	retryAt time.Time                // do not try to start before
	seen    int64                    // worker.changes when the configuration was wrong
	back    backoff                  // between restarts

	pull       *pull
	pullBack   backoff
	pullFailed time.Time
	pullErr    string

	hook      hookState
	kill      *killing
	unprobe   context.CancelFunc // ends the probes of this attempt
	unlive    context.CancelFunc // ends its liveness probe
	started   bool               // the startup probe passed, or there is none
	ready     bool               // the readiness probe says so, or there is none
	unhealthy string             // a probe wants this attempt ended, and why
	grace     *int64             // the failed probe's own grace period
}

type hookState int

const (
	hookNone hookState = iota
	hookRunning
	hookDone
)

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
	if c.ended == nil {
		return true
	}
	code := c.ended.ExitCode
	if c.role == roleEphemeral {
		return false
	}
	if c.role == roleInit {
		if code == 0 {
			return false
		}
		return policy != v1.RestartPolicyNever
	}
	for _, r := range c.spec.RestartPolicyRules {
		if r.Action == v1.ContainerRestartRuleActionRestart && r.ExitCodes != nil && ruleMatches(r.ExitCodes, code) {
			return true
		}
	}
	if c.spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.spec.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

func ruleMatches(r *v1.ContainerRestartRuleOnExitCodes, code int32) bool {
	in := false
	for _, v := range r.Values {
		in = in || v == code
	}
	if r.Operator == v1.ContainerRestartRuleOnExitCodesOpNotIn {
		return !in
	}
	return in
}

// initialized says that the containers after this init container may start.
func (c *container) initialized() bool {
	if c.role == roleSidecar {
		return c.running() && c.started && c.hook != hookRunning
	}
	return c.ended != nil && c.ended.ExitCode == 0
}

func (c *container) logName(attempt uint32) string {
	return filepath.Join(c.spec.Name, strconv.FormatUint(uint64(attempt), 10)+".log")
}

// status is the container's part of the pod's status.
func (c *container) status(defaultWait v1.ContainerStateWaiting) v1.ContainerStatus {
	started := c.running() && c.started && c.hook != hookRunning
	s := v1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, RestartCount: int32(c.attempt), Started: &started}
	if c.image != "" {
		s.Image, s.ImageID = c.image, c.imageID
	}
	if c.cur != nil {
		s.ContainerID = containerID(c.cur.ID)
		// What a container was given does not change while it lives: there is
		// no pods/resize yet.
		s.Resources, s.AllocatedResources = c.spec.Resources.DeepCopy(), c.spec.Resources.Requests.DeepCopy()
	}
	if c.last != nil {
		s.LastTerminationState.Terminated = c.last
	}
	switch {
	case c.running():
		s.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(c.cur.StartedAt).Rfc3339Copy()}
		s.Ready = started && c.ready
		if c.role == roleInit {
			s.Ready = false
		}
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
			if s.State.Terminated != nil {
				c.ended = s.State.Terminated
			} else if s.ContainerID != "" {
				// It ran, and unless its sandbox is adopted it is lost: the
				// next attempt counts as a restart.
				c.attempt++
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
