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

// startHook runs the postStart hook beside the container. Until it has
// succeeded the container counts as not started and is not probed; a failure
// ends the container.
func (w *worker) startHook(c *container) {
	lc := c.spec.Lifecycle
	if lc == nil || lc.PostStart == nil {
		c.hook = hookDone
		w.startProbes(c, false)
		return
	}
	c.hook = hookRunning
	id, handler, at := c.cur.ID, *lc.PostStart, w.inside(c)
	ctx, cancel := context.WithCancel(w.m.ctx)
	c.unhook = cancel
	w.m.wg.Go(func() {
		defer cancel()
		err := at.runHook(ctx, handler)
		if err != nil && ctx.Err() != nil {
			return // it was ended, with the container or the agent
		}
		w.post(func() {
			if c.cur == nil || c.cur.ID != id || !c.running() || c.hook != hookRunning {
				return
			}
			if err == nil {
				c.hook = hookDone
				if c.kill == nil {
					w.startProbes(c, false)
				}
				return
			}
			c.hook = hookFailed
			c.hookErr = err.Error()
			// What the hook said may hold secrets, so the event has none of it.
			w.event(c, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
			c.unhealthy = "FailedPostStartHook"
		})
	})
}

// stopHook ends the hook under way, postStart or preStop.
func (c *container) stopHook() {
	if c.unhook != nil {
		c.unhook()
		c.unhook = nil
	}
}

// inside is where hooks and probes of one attempt run. They run beside the
// worker's goroutine, so they get what they need of its fields here.
type inside struct {
	w       *worker
	sandbox Sandbox
	id      string
	host    string // the pod's address
	where   string // for messages
	ports   []v1.ContainerPort
}

func (w *worker) inside(c *container) inside {
	return inside{w: w, sandbox: w.sandbox, id: c.cur.ID, host: first(w.ips), ports: c.spec.Ports,
		where: fmt.Sprintf("for Container %q in Pod %q", c.spec.Name, describe(w.pod))}
}

// runHook runs one lifecycle handler. It has no time limit of its own.
func (in inside) runHook(ctx context.Context, h v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		out, code, err := in.exec(ctx, h.Exec.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), code, out)
		}
		if err != nil {
			return fmt.Errorf("%s lifecycle hook (%v) %s failed - error: %w, message: %q", "Exec", h.Exec.Command, in.where, err, out)
		}
	case h.HTTPGet != nil:
		fellBack, err := probe.HTTPHook(ctx, h.HTTPGet, in.host, in.ports)
		if err != nil {
			return fmt.Errorf("%s lifecycle hook (%s) %s failed - error: %w", "HTTP", h.HTTPGet.Path, in.where, err)
		}
		if fellBack != "" {
			in.w.post(func() {
				in.w.eventPod(v1.EventTypeWarning, "LifecycleHTTPFallback", "request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", fellBack)
			})
		}
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%s lifecycle hook (%d) %s failed - error: container terminated before sleep hook finished", "Sleep", h.Sleep.Seconds, in.where)
		}
	default:
		return errors.New("the hook has no handler that skiff knows")
	}
	return nil
}

// exec runs a command in the container and returns the beginning of its output.
func (in inside) exec(ctx context.Context, args []string) (string, int, error) {
	var out limitedBuffer
	code, err := in.sandbox.Exec(ctx, in.id, runtime.ExecConfig{Args: args}, nil, &out, &out, nil)
	out.mu.Lock()
	defer out.mu.Unlock()
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

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
