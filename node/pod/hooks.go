package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/probe"
	"github.com/skiff-sh/skiff/node/runtime"
)

// startHook runs the postStart hook beside the container; until it ended the
// container counts as not started, and a failure ends it.
func (w *worker) startHook(c *container) {
	c.hook = hookDone
	lc := c.spec.Lifecycle
	if lc == nil || lc.PostStart == nil {
		return
	}
	c.hook = hookRunning
	id, handler := c.cur.ID, *lc.PostStart
	w.m.wg.Go(func() {
		err := w.runHook(w.m.ctx, c.spec, id, handler)
		w.post(func() {
			if c.cur == nil || c.cur.ID != id || !c.running() {
				return
			}
			c.hook = hookDone
			if err != nil && w.m.ctx.Err() == nil {
				w.event(c, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
				w.log.Info("postStart hook", "container", c.spec.Name, "err", err)
				c.unhealthy = "FailedPostStartHook"
			}
		})
	})
}

// runHook runs one lifecycle handler.
func (w *worker) runHook(ctx context.Context, c *v1.Container, id string, h v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		out, code, err := w.exec(ctx, id, h.Exec.Command)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec.Command, " "), code, strings.TrimSpace(out))
		}
		return nil
	case h.HTTPGet != nil:
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if ok, msg := probe.HTTPGet(ctx, h.HTTPGet, w.probeHost(), c.Ports); !ok {
			return errors.New(msg)
		}
		return nil
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("the hook has no handler that skiff knows")
}

// exec runs a command in a container and returns the beginning of its output.
func (w *worker) exec(ctx context.Context, id string, args []string) (string, int, error) {
	v := w.view.Load()
	if v == nil || v.Sandbox == nil {
		return "", 0, errors.New("the pod has no sandbox")
	}
	var out limitedBuffer
	code, err := v.Sandbox.Exec(ctx, id, runtime.ExecConfig{Args: args}, nil, &out, &out, nil)
	return out.b.String(), code, err
}

// limitedBuffer keeps the first 10 KiB of what is written.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := 10<<10 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (w *worker) probeHost() string {
	if v := w.view.Load(); v != nil && v.Pod.Status.PodIP != "" {
		return v.Pod.Status.PodIP
	}
	return ""
}

// startProbes begins to probe the newest attempt. An adopted container keeps
// what the agent before knew of it.
func (w *worker) startProbes(c *container, adopted bool) {
	if !adopted {
		c.started = c.spec.StartupProbe == nil
		c.ready = c.spec.ReadinessProbe == nil
	}
	if c.role == roleInit {
		return
	}
	ctx, cancel := context.WithCancel(w.m.ctx)
	c.unprobe = cancel
	if c.spec.StartupProbe != nil && !c.started {
		w.probe(ctx, c, probe.Startup, c.spec.StartupProbe, false)
		return
	}
	c.started = true
	w.probeOn(ctx, c)
}

// probeOn begins the probes that wait for the startup probe.
func (w *worker) probeOn(ctx context.Context, c *container) {
	if c.spec.ReadinessProbe != nil {
		w.probe(ctx, c, probe.Readiness, c.spec.ReadinessProbe, c.ready)
	}
	if c.spec.LivenessProbe != nil {
		live, cancel := context.WithCancel(ctx)
		c.unlive = cancel
		w.probe(live, c, probe.Liveness, c.spec.LivenessProbe, true)
	}
}

func (w *worker) probe(ctx context.Context, c *container, kind probe.Kind, p *v1.Probe, initially bool) {
	id := c.cur.ID
	mine := func(f func()) {
		w.post(func() {
			if c.cur != nil && c.cur.ID == id && c.running() && ctx.Err() == nil {
				f()
			}
		})
	}
	cfg := probe.Config{Kind: kind, Probe: p, Host: first(w.ips), Ports: c.spec.Ports, StartedAt: c.cur.StartedAt, Initially: initially}
	cfg.Exec = func(ctx context.Context, args []string) (string, int, error) { return w.exec(ctx, id, args) }
	cfg.Failed = func(msg string) {
		mine(func() { w.event(c, v1.EventTypeWarning, "Unhealthy", "%s", msg) })
	}
	cfg.Settled = func(ok bool) {
		mine(func() {
			switch {
			case kind == probe.Readiness:
				c.ready = ok
			case kind == probe.Startup && ok:
				c.started = true
				w.probeOn(ctx, c)
			case !ok && c.kill == nil:
				c.unhealthy = fmt.Sprintf("Container %s failed %s probe, will be restarted", c.spec.Name, strings.ToLower(string(kind)))
				c.grace = p.TerminationGracePeriodSeconds
			}
		})
	}
	w.m.wg.Go(func() { probe.Run(ctx, cfg) })
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
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
