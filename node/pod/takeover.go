package pod

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

// takeSandbox adopts what an earlier agent left of this pod.
func (w *worker) takeSandbox() {
	w.m.mu.Lock()
	sb := w.m.adopted[string(w.uid)]
	w.m.mu.Unlock()
	if sb == nil {
		w.settleLost()
		return
	}
	w.sandbox = sb
	w.attempts = sb.Config().Attempt + 1
	if _, yes := w.guarded(); yes && sb.Config().FenceFile == "" {
		w.log.Warn("this pod was started by an older skiff: if skiff dies on this node it runs on, even when it is replaced elsewhere; delete the pod to change that")
	}
	w.listen(w.m.ctx)
	for _, c := range w.ctrs {
		for _, s := range sb.Containers() {
			if s.Name == c.spec.Name && (c.cur == nil || s.Attempt > c.cur.Attempt) {
				c.cur = &s
			}
		}
		if c.cur != nil {
			if strings.HasPrefix(c.cur.LogPath, w.logDir+"/") && !c.cur.StartedAt.IsZero() { // skiff may have ended before it made the link
				w.linkLog(c, c.cur.ID, c.cur.LogPath)
			}
			w.resume(c)
		} else if c.ended != nil && sb.Alive() && w.beginsAnew(c) {
			c.last, c.ended = c.ended, nil
			c.attempt++
		}
	}
	w.settleLost()
}

// beginsAnew says that a container that has ended, and of which its sandbox knows
// nothing, starts from the beginning: the runtime was told to forget it for that, or
// the sandbox is newer than its end. What is else not known there has ended for good
// before the sandbox was made, or never became a process.
func (w *worker) beginsAnew(c *container) bool {
	if c.role == roleEphemeral || c.ended.Reason == reasonStart {
		return false
	}
	return c.role != roleMain || mayRestartAll(w.pod)
}

// settleLost gives containers their end that the API knows of and the node
// does not.
func (w *worker) settleLost() {
	for _, c := range w.ctrs {
		if c.cur == nil && c.lost != nil {
			c.ended = c.lost
		}
		c.lost = nil
	}
}

// resume makes a container what it was for the agent before.
func (w *worker) resume(c *container) {
	c.attempt, c.hook, c.waiting = c.cur.Attempt, hookDone, v1.ContainerStateWaiting{}
	c.image, c.imageID, c.stop = c.cur.Annotations[noteName], c.cur.Annotations[noteImageID], c.cur.Annotations[noteStop]
	before := c.ended
	c.ended = nil
	old := findStatus(w.pod, c.spec.Name)
	switch {
	case old != nil && old.ContainerID == containerID(c.cur.ID):
		if old.State.Waiting == nil {
			c.last = old.LastTerminationState.Terminated
		}
		c.ready = old.Ready
		c.started = old.Started != nil && *old.Started
		if before != nil && c.cur.State == runtime.Exited {
			c.ended, c.finished = before, c.cur.FinishedAt
		}
	case before != nil:
		c.last = before
		fallthrough
	default: // that it was started was never written, and so not that its hook has ended
		if c.cur.State == runtime.Running && c.spec.Lifecycle != nil && c.spec.Lifecycle.PostStart != nil {
			c.hook = hookNone
		}
	}
}

// resumeProbes goes on with the hooks and probes of adopted containers, once
// the pod's address is known again.
func (w *worker) resumeProbes() {
	for _, c := range w.ctrs {
		switch {
		case !c.running():
		case c.hook == hookNone:
			w.startHook(c)
		case c.hook == hookDone && c.unprobe == nil:
			w.startProbes(c, true)
		}
	}
}

// lostSandbox lets the pod begin anew after the shim has died, and with it all
// containers.
func (w *worker) lostSandbox() {
	if w.beginAgain() {
		w.ips = nil
		w.move(Preparing)
	}
}

// beginAgain makes a pod ready for a new sandbox, in which the containers that
// restartPolicy lets run again start anew, init containers first. If there are
// none, the pod is over: it returns false.
func (w *worker) beginAgain() bool {
	policy := w.pod.Spec.RestartPolicy
	again := false
	never := policy == v1.RestartPolicyNever && w.ranSomewhere() // then those that have not started never will
	for _, c := range w.ctrs {
		again = again || c.role == roleMain && c.restarts(policy) && !(never && c.ended == nil)
	}
	if !again {
		w.move(Stopping)
		w.poke()
		return false
	}
	w.eventPod(v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	for _, c := range w.ctrs {
		c.stopProbes()
		c.stopHook()
		c.kill, c.hook, c.unhealthy = nil, hookNone, ""
		if c.cur == nil && c.ended == nil || c.role == roleEphemeral {
			continue
		}
		if c.role == roleMain && !c.restarts(policy) {
			c.past = true
			continue
		}
		if c.ended != nil {
			c.last = c.ended
		}
		c.attempt++
		c.cur, c.ended = nil, nil
		if c.role != roleMain {
			c.finished = time.Time{} // it did not fail: it starts at once
		}
	}
	return true
}
