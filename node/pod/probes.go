package pod

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/probe"
)

// startProbes begins to probe the newest attempt. An adopted container keeps
// what the agent before knew of it.
func (w *worker) startProbes(c *container, adopted bool) {
	if !adopted || c.spec.StartupProbe == nil {
		c.started = c.spec.StartupProbe == nil
	}
	if !adopted || c.spec.ReadinessProbe == nil {
		c.ready = c.spec.ReadinessProbe == nil
	}
	if c.role == roleInit {
		return
	}
	ctx, cancel := context.WithCancel(w.m.ctx)
	c.unprobe = cancel
	if c.spec.StartupProbe != nil && !c.started {
		startup, stop := context.WithCancel(ctx)
		c.unlive = stop
		w.probe(startup, c, probe.Startup, c.spec.StartupProbe, false, func(ok bool) {
			if !ok {
				w.sick(c, "startup", c.spec.StartupProbe)
				return
			}
			stop()
			c.started, c.unlive = true, nil
			w.probeOn(ctx, c, false)
		})
		return
	}
	c.started = true
	w.probeOn(ctx, c, adopted)
}

// probeOn begins the probes that wait for the startup probe.
func (w *worker) probeOn(ctx context.Context, c *container, adopted bool) {
	if c.spec.ReadinessProbe != nil {
		w.probe(ctx, c, probe.Readiness, c.spec.ReadinessProbe, adopted, func(ok bool) { c.ready = ok })
	}
	if c.spec.LivenessProbe != nil {
		live, stop := context.WithCancel(ctx)
		c.unlive = stop
		w.probe(live, c, probe.Liveness, c.spec.LivenessProbe, adopted, func(ok bool) {
			if !ok {
				w.sick(c, "liveness", c.spec.LivenessProbe)
			}
		})
	}
}

// sick has a container ended that failed a probe.
func (w *worker) sick(c *container, kind string, p *v1.Probe) {
	if c.kill != nil {
		return
	}
	c.grace, c.revive = p.TerminationGracePeriodSeconds, true
	if c.role != roleMain {
		c.unhealthy = fmt.Sprintf("Init container %s failed %s probe", c.spec.Name, kind)
		return
	}
	c.unhealthy = fmt.Sprintf("Container %s failed %s probe", c.spec.Name, kind)
	policy := w.pod.Spec.RestartPolicy
	if c.spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.spec.RestartPolicy)
	}
	if c.revive = policy != v1.RestartPolicyNever; c.revive {
		c.unhealthy += ", will be restarted"
	}
}

// probe runs one probe of the newest attempt until ctx ends; settled runs in
// the worker's goroutine.
func (w *worker) probe(ctx context.Context, c *container, kind probe.Kind, p *v1.Probe, adopted bool, settled func(ok bool)) {
	id, at := c.cur.ID, w.inside(c)
	mine := func(f func()) {
		w.post(func() {
			if c.cur != nil && c.cur.ID == id && c.running() && ctx.Err() == nil {
				f()
			}
		})
	}
	// A command of a probe may refer to the variables that the pod gives as they
	// are; it sees nothing of those that come from elsewhere.
	static := map[string]string{}
	for _, e := range c.spec.Env {
		static[e.Name] = e.Value
	}
	lookup := func(name string) (string, bool) { v, ok := static[name]; return v, ok }
	cfg := probe.Config{Kind: kind, Probe: p, Host: at.host, Ports: at.ports, StartedAt: c.cur.StartedAt, Initially: c.ready, Spread: adopted}
	cfg.Exec = func(ctx context.Context, args []string) (string, int, error) {
		expanded := make([]string, 0, len(args))
		for _, a := range args {
			expanded = append(expanded, expand(a, lookup))
		}
		return at.exec(ctx, expanded)
	}
	cfg.Tell = func(reason, msg string) {
		mine(func() { w.event(c, v1.EventTypeWarning, reason, "%s", msg) })
	}
	cfg.Settled = func(ok bool) { mine(func() { settled(ok) }) }
	pod, name := w.pod, c.spec.Name
	cfg.Asked = func(r probe.Result, took time.Duration) {
		w.m.cfg.Meter.Probed(pod, name, string(kind), r.Label(), took)
	}
	w.m.wg.Go(func() { probe.Run(ctx, cfg) })
}

func (c *container) stopProbes() {
	if c.unprobe != nil {
		c.unprobe()
		c.unprobe, c.unlive = nil, nil
	}
}

// stopLiveness keeps a container that is being ended from being restarted;
// its readiness is still of interest.
func (c *container) stopLiveness() {
	if c.unlive != nil {
		c.unlive()
		c.unlive = nil
	}
}
