package pod

import (
	"context"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

const (
	reasonRestartingAll  = "RestartingAllContainers"
	messageRestartingAll = "The container is removed because RestartAllContainers in place"
)

// restartsAfter says whether a container that ended with code is started
// again: its own rules come first, then its own policy, then the pod's.
func restartsAfter(c *v1.Container, policy v1.RestartPolicy, code int32) bool {
	if c.RestartPolicy != nil {
		if _, ok := ruleFor(c, code); ok {
			return true // both actions start it again
		}
		policy = v1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// ruleFor returns the action of the first rule that an exit code meets.
func ruleFor(c *v1.Container, code int32) (v1.ContainerRestartRuleAction, bool) {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action, true
		}
	}
	return "", false
}

// mayRestartAll says whether a rule of the pod can start all of it anew.
func mayRestartAll(p *v1.Pod) bool {
	has := func(c v1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
			return r.Action == v1.ContainerRestartRuleActionRestartAllContainers
		})
	}
	return slices.ContainsFunc(p.Spec.InitContainers, has) || slices.ContainsFunc(p.Spec.Containers, has)
}

// restartsAll says that the newest attempt ended in a way that starts the
// whole pod anew, and that this has not been done yet.
func (c *container) restartsAll() bool {
	if c.cur == nil || c.ended == nil || c.spec.RestartPolicy == nil || c.role == roleEphemeral {
		return false
	}
	action, ok := ruleFor(c.spec, c.ended.ExitCode)
	return ok && action == v1.ContainerRestartRuleActionRestartAllContainers
}

// restartingAll ends all containers when one of them has asked for that by its
// exit code, and then lets the pod begin anew in its sandbox, init containers
// first. It returns true while that is under way. What has ended is forgotten
// by the runtime at last, and what asked for it as the very last: an agent that
// takes over in the middle begins again.
func (w *worker) restartingAll(ctx context.Context, alarm *time.Time) bool {
	if !slices.ContainsFunc(w.ctrs, (*container).restartsAll) {
		w.resetting = false
		return false
	}
	w.resetting = true
	running := false
	for _, c := range w.ctrs {
		if c.running() && c.role != roleEphemeral {
			running = true
			w.killContainer(ctx, c, 0, "killing")
			w.driveKill(ctx, c, alarm)
		}
	}
	if running {
		return true
	}
	var sources []*container
	for _, c := range w.ctrs {
		if c.restartsAll() {
			sources = append(sources, c)
			continue
		}
		w.reset(ctx, c)
		c.finished = time.Time{} // only what asked for it waits before it starts again
	}
	for _, c := range sources {
		w.reset(ctx, c)
		if c.role != roleMain {
			c.finished = time.Time{}
		}
	}
	w.move(Preparing)
	w.poke()
	return true
}

// reset makes a container one that was never started in this sandbox.
func (w *worker) reset(ctx context.Context, c *container) {
	if c.cur == nil && c.ended == nil || c.role == roleEphemeral {
		return
	}
	if c.cur != nil {
		w.forgetAttempt(ctx, c, c.cur)
	}
	c.last = &v1.ContainerStateTerminated{Reason: reasonRestartingAll, Message: messageRestartingAll, ExitCode: 137}
	c.cur, c.ended, c.kill, c.hook, c.unhealthy = nil, nil, nil, hookNone, ""
	c.attempt++
	c.wait(reasonRestartingAll, messageRestartingAll)
}
