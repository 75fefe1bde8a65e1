package pod

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// minGrace is left to a container even if its grace period is over, as by a
// preStop hook, so that it sees its signal. Kubelet does so for a grace period
// of 0, too.
const minGrace = 2 * time.Second

// signalAgain is when a signal is tried again that could not be sent, as when the
// step was interrupted by the pod's deletion.
const signalAgain = 200 * time.Millisecond

// killing is a container's way to its end: preStop hook, stop signal, SIGKILL.
type killing struct {
	deadline time.Time
	floor    time.Time          // SIGKILL comes no sooner
	hook     context.CancelFunc // the preStop hook runs; ends it
	held     bool               // others have to end before the signal
	signaled bool
	restarts bool      // it starts again, whatever the exit code says
	again    time.Time // when to try a signal again that failed
}

// podGrace is the grace period in force, in seconds: the shortest that was given.
func (w *worker) podGrace() int64 {
	if g := w.end.grace; g != nil {
		return min(*g, w.ownGrace())
	}
	return w.ownGrace()
}

// ownGrace is that of the pod, or of who deleted it.
func (w *worker) ownGrace() int64 {
	w.mu.Lock()
	gone := w.gone
	w.mu.Unlock()
	if g := w.pod.DeletionGracePeriodSeconds; g != nil {
		return *g
	}
	if gone { // deleted by force: nobody waits for it
		return 0
	}
	if g := w.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return 30
}

func (w *worker) probeGrace(c *container) int64 {
	if c.grace != nil {
		return *c.grace
	}
	return w.podGrace()
}

// killContainer begins to end a container, or shortens the time it has left.
func (w *worker) killContainer(ctx context.Context, c *container, grace int64, why string) {
	w.killBy(ctx, c, w.now().Add(time.Duration(grace)*time.Second), why)
}

func (w *worker) killBy(ctx context.Context, c *container, deadline time.Time, why string) {
	if c.kill != nil {
		if deadline.Before(c.kill.deadline) {
			c.kill.deadline = deadline
		}
		return
	}
	if why == "" {
		why = "Stopping container " + c.spec.Name
	}
	w.event(c, v1.EventTypeNormal, "Killing", "%s", why)
	k := &killing{deadline: deadline}
	c.kill = k
	c.stopLiveness()
	c.stopHook()
	lc := c.spec.Lifecycle
	if lc == nil || lc.PreStop == nil || !w.now().Before(deadline) {
		return
	}
	hookCtx, cancel := context.WithDeadline(w.m.ctx, time.Now().Add(deadline.Sub(w.now())))
	k.hook, c.unhook = cancel, cancel
	id, handler, at := c.cur.ID, *lc.PreStop, w.inside(c)
	w.m.wg.Go(func() {
		err := at.runHook(hookCtx, handler)
		ended := hookCtx.Err() == context.Canceled
		cancel()
		w.post(func() {
			k.hook = nil
			if err == nil || ended && (c.cur == nil || c.cur.ID != id || !c.running()) {
				return // it is done, or the container has not waited for it
			}
			w.event(c, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
			w.log.Info("preStop hook", "container", c.spec.Name, "err", err)
		})
	})
}

// driveKill takes the next step of a container's end.
func (w *worker) driveKill(ctx context.Context, c *container, alarm *time.Time) {
	k, now := c.kill, w.now()
	if now.Before(k.again) {
		earlier(alarm, k.again)
		return
	}
	if k.hook != nil {
		if now.Before(k.deadline) {
			earlier(alarm, k.deadline)
			return
		}
		k.hook() // its time is over
		k.hook = nil
	}
	if k.held && now.Before(k.deadline) {
		earlier(alarm, k.deadline)
		return
	}
	if !k.signaled {
		if k.floor.IsZero() {
			k.floor = now.Add(minGrace)
		}
		err := w.sandbox.Signal(ctx, c.cur.ID, signalNumber(c.stop))
		if k.signaled = err == nil; err != nil {
			w.log.Debug("signalling a container", "container", c.spec.Name, "err", err)
			if due := max(k.deadline.Sub(now), k.floor.Sub(now)); due > 0 { // else SIGKILL is next
				k.again = now.Add(min(due, signalAgain))
				earlier(alarm, k.again)
				return
			}
		}
	}
	due := k.deadline
	if due.Before(k.floor) {
		due = k.floor
	}
	if now.Before(due) {
		earlier(alarm, due)
		return
	}
	if err := w.sandbox.Signal(ctx, c.cur.ID, unix.SIGKILL); err != nil {
		w.log.Debug("killing a container", "container", c.spec.Name, "err", err)
	}
	k.again = now.Add(5 * time.Second) // processes in the kernel may take their time
	earlier(alarm, k.again)
}

func signalNumber(name string) syscall.Signal {
	if name == "" {
		return unix.SIGTERM
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if base, off, ok := strings.Cut(name, "+"); ok && base == "SIGRTMIN" {
		if n, err := strconv.Atoi(off); err == nil && n <= 30 {
			return syscall.Signal(34 + n)
		}
	}
	if base, off, ok := strings.Cut(name, "-"); ok && base == "SIGRTMAX" {
		if n, err := strconv.Atoi(off); err == nil && n <= 30 {
			return syscall.Signal(64 - n)
		}
	}
	if n := unix.SignalNum(name); n != 0 {
		return n
	}
	return unix.SIGTERM
}

// stopAll ends the containers, all within one grace period. The preStop hooks
// run at once; then the sidecars wait until the main containers have ended,
// and the sidecars after them, before they get their signal.
func (w *worker) stopAll(ctx context.Context, alarm *time.Time) {
	if w.sandbox == nil || !w.sandbox.Alive() {
		w.move(Stopped)
		return
	}
	if w.state != Stopping {
		w.move(Stopping)
	}
	if w.endedBy.IsZero() {
		w.endedBy = w.now()
		w.retryAt = time.Time{}
	}
	deadline := w.stopBy()
	if left := w.stopPass(ctx, deadline, alarm); left > 0 {
		w.observe(ctx) // some may have ended at once
		if left = w.stopPass(ctx, deadline, alarm); left > 0 {
			return
		}
	}
	w.move(Stopped)
}

// stopBy is when the containers of a pod that ends get SIGKILL. A grace period that was
// shortened meanwhile begins then.
func (w *worker) stopBy() time.Time {
	by := w.endedBy.Add(time.Duration(w.ownGrace()) * time.Second)
	if g := w.end.grace; g != nil {
		from := w.endedBy
		if from.Before(w.hurried) {
			from = w.hurried
		}
		earlier(&by, from.Add(time.Duration(*g)*time.Second))
	}
	return by
}

// stopPass takes the next step of each container's end and returns how many
// still run.
func (w *worker) stopPass(ctx context.Context, deadline time.Time, alarm *time.Time) (left int) {
	before := 0 // running ones that the next sidecar has to wait for
	for _, c := range w.ctrs {
		if c.running() && c.role == roleMain {
			before++
		}
	}
	for i := len(w.ctrs) - 1; i >= 0; i-- {
		c := w.ctrs[i]
		if !c.running() {
			continue
		}
		left++
		w.killBy(ctx, c, deadline, "")
		if c.kill.held = c.role == roleSidecar && before > 0; c.role == roleSidecar {
			before++
		}
		w.driveKill(ctx, c, alarm)
	}
	return left
}
