package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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
	id, handler, at := c.cur.ID, *lc.PostStart, w.inside(c)
	w.m.wg.Go(func() {
		err := at.runHook(w.m.ctx, handler)
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

// inside is where hooks and probes of one attempt run. They run beside the
// worker's goroutine, so they get what they need of its fields here.
type inside struct {
	sandbox Sandbox
	id      string
	host    string // the pod's address
	ports   []v1.ContainerPort
}

func (w *worker) inside(c *container) inside {
	return inside{sandbox: w.sandbox, id: c.cur.ID, host: first(w.ips), ports: c.spec.Ports}
}

// runHook runs one lifecycle handler.
func (in inside) runHook(ctx context.Context, h v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		out, code, err := in.exec(ctx, h.Exec.Command)
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
		if ok, msg := probe.HTTPGet(ctx, h.HTTPGet, in.host, in.ports); !ok {
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

// exec runs a command in the container and returns the beginning of its output.
func (in inside) exec(ctx context.Context, args []string) (string, int, error) {
	var out limitedBuffer
	code, err := in.sandbox.Exec(ctx, in.id, runtime.ExecConfig{Args: args}, nil, &out, &out, nil)
	return out.b.String(), code, err
}

// limitedBuffer keeps the first 10 KiB of what is written.
type limitedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := 10<<10 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

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
	id, at := c.cur.ID, w.inside(c)
	mine := func(f func()) {
		w.post(func() {
			if c.cur != nil && c.cur.ID == id && c.running() && ctx.Err() == nil {
				f()
			}
		})
	}
	cfg := probe.Config{Kind: kind, Probe: p, Host: at.host, Ports: at.ports, StartedAt: c.cur.StartedAt, Initially: initially, Exec: at.exec}
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
