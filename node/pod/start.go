package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/runtime"
)

// errorShown is how long a failed start stays visible as such before the
// back-off is shown.
const errorShown = time.Second

// initialize runs the init containers in their order; true when all are done.
// The last one that was started decides how far the pod is: those before it
// are done, and of them only sidecars are kept running, which holds up nobody.
func (w *worker) initialize(ctx context.Context, alarm *time.Time) bool {
	if w.mainStarted() {
		return true
	}
	var inits []*container
	last := 0 // started last
	for _, c := range w.ctrs {
		if c.role == roleMain || c.role == roleEphemeral {
			break
		}
		if c.cur != nil {
			last = len(inits)
		}
		inits = append(inits, c)
	}
	for i, c := range inits {
		if i < last {
			if c.role == roleSidecar {
				w.keep(ctx, c, alarm)
			}
			continue
		}
		if c.role == roleSidecar || c.running() {
			w.keep(ctx, c, alarm)
		} else if c.ended != nil && !c.initialized() && !c.restarts(w.pod.Spec.RestartPolicy) {
			w.move(Stopping) // failed for good, and the pod with it
			w.poke()
			return false
		} else if !c.initialized() {
			w.tryStart(ctx, c, alarm)
		}
		if !c.initialized() || ctx.Err() != nil {
			return false
		}
	}
	return true
}

// keep watches over a container that runs and starts one again that does not.
func (w *worker) keep(ctx context.Context, c *container, alarm *time.Time) {
	if c.running() {
		w.watchOver(ctx, c, alarm)
	} else if c.restarts(w.pod.Spec.RestartPolicy) {
		w.tryStart(ctx, c, alarm)
	}
}

// keepRunning starts main containers and sidecars as restartPolicy says, and
// notices when nothing is left to run.
func (w *worker) keepRunning(ctx context.Context, alarm *time.Time) {
	policy := w.pod.Spec.RestartPolicy
	left := false
	for _, c := range w.ctrs {
		if c.role == roleMain && (c.running() || c.restarts(policy)) {
			left = true
		}
	}
	if !left {
		w.move(Stopping)
		w.poke()
		return
	}
	hook := false // under way: the next container starts after it
	for _, c := range w.ctrs {
		if c.role == roleInit || c.role == roleEphemeral || hook && !c.running() {
			continue
		}
		w.keep(ctx, c, alarm)
		hook = hook || c.running() && c.hook == hookRunning
		if ctx.Err() != nil {
			return
		}
	}
}

// watchOver ends a running container that a probe or a new image wants gone.
func (w *worker) watchOver(ctx context.Context, c *container, alarm *time.Time) {
	if c.kill == nil {
		switch was := c.cur.Annotations[noteImage]; {
		case c.unhealthy != "":
			if c.revive && !restartsAfter(c.spec, w.pod.Spec.RestartPolicy, 0) {
				w.noteRestart(c)
			}
			w.killContainer(ctx, c, w.probeGrace(c), c.unhealthy)
			c.kill.restarts = c.revive
		case was != "" && was != c.spec.Image && c.role != roleInit: // one of these has it when it starts again, if ever
			why := fmt.Sprintf("Container %s definition changed, will be restarted", c.spec.Name)
			if c.role != roleMain {
				why = fmt.Sprintf("Init container %s definition changed", c.spec.Name)
			}
			w.restartFor(ctx, c, why)
		}
	}
	if c.kill != nil {
		w.driveKill(ctx, c, alarm)
	}
}

// tryStart starts a container unless it must wait.
func (w *worker) tryStart(ctx context.Context, c *container, alarm *time.Time) bool {
	now := w.now()
	if now.Before(c.retryAt) && !w.objectsChanged(c) {
		earlier(alarm, c.retryAt)
		return false
	}
	if !w.mayStart(c, alarm) {
		return false
	}
	c.retryAt = time.Time{}
	restart, finished := !c.finished.IsZero(), c.finished
	if restart {
		if left := c.back.wait(finished, now); left > 0 {
			if c.waiting.Reason != "CrashLoopBackOff" {
				w.event(c, v1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", c.spec.Name, describe(w.pod))
			}
			c.wait("CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", c.back.delay, c.spec.Name, describe(w.pod)))
			c.retryAt = now.Add(left)
			earlier(alarm, c.retryAt)
			return false
		}
	}
	began := w.launch(ctx, c)
	if began && restart {
		c.back.next(finished, now)
	}
	earlier(alarm, c.retryAt)
	return began && c.running()
}

// objectsChanged says that a container that waits for a ConfigMap or Secret
// should look again now.
func (w *worker) objectsChanged(c *container) bool {
	if c.waiting.Reason != "CreateContainerConfigError" {
		return false
	}
	return w.changes.Load() != c.seen
}

func describe(p *v1.Pod) string { return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID) }

// launch makes one attempt; it returns false when the container has to wait
// for its image or its configuration. A true may mean a failed start too.
func (w *worker) launch(ctx context.Context, c *container) bool {
	if !w.ensureImageVolumes(ctx, c) {
		return false
	}
	img := w.ensureImage(ctx, c)
	if img == nil {
		return false
	}
	changes := w.changes.Load()
	fail := func(reason string, err error) bool {
		if ctx.Err() != nil {
			return false
		}
		if c.waiting.Reason != reason || c.waiting.Message != err.Error() {
			w.event(c, v1.EventTypeWarning, "Failed", "Error: %s", err)
		}
		c.wait(reason, err.Error())
		c.seen = changes
		c.retryAt = w.now().Add(backoffInitial)
		return false
	}
	id := newID()
	attempt := c.next()
	cfg, closeFiles, err := w.containerConfig(ctx, c, img, id, attempt)
	defer closeFiles()
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	unmount := func() {
		if err := w.m.cfg.Images.Unmount(id); err != nil {
			w.log.Warn("unmounting a container that was not started", "err", err)
		}
	}
	if cfg.Rootfs, err = w.m.cfg.Images.Mount(ctx, img.ID, id); err != nil {
		return fail("CreateContainerError", fmt.Errorf("mounting the image's file system: %w", err))
	}
	if err := w.checkUser(c, img, cfg.Rootfs); err != nil {
		unmount()
		return fail("CreateContainerConfigError", err)
	}
	if who, err := runtime.Identify(cfg.Rootfs, cfg.User); err == nil {
		cfg.Annotations[noteUser] = userNote(who)
	}
	w.event(c, v1.EventTypeNormal, "Created", "Container created")
	before := c.cur
	began := time.Now()
	err = w.sandbox.StartContainer(ctx, cfg)
	w.m.cfg.Meter.Operation(meter.StartContainer, began, err)
	if err != nil {
		if ctx.Err() != nil || !w.sandbox.Alive() {
			// It may have started for all that. Its root goes with the sandbox,
			// or the next agent finds that nobody uses it.
			w.unsure = append(w.unsure, id)
			return false
		}
		unmount()
		w.event(c, v1.EventTypeWarning, "Failed", "Error: %s", err)
		w.m.cfg.Meter.Started(c.kind(), "RunContainerError")
		w.startFailed(c, id, attempt, err, w.now())
		c.image, c.imageID = statusImage(img, c.spec.Image)
		c.wait("RunContainerError", err.Error())
		c.retryAt = w.now().Add(errorShown)
		if !c.restarts(w.pod.Spec.RestartPolicy) {
			c.waiting = v1.ContainerStateWaiting{}
		}
		w.poke()
		return true
	}
	w.linkLog(c, id, cfg.LogPath)
	w.m.cfg.Meter.Started(c.kind(), "")
	w.event(c, v1.EventTypeNormal, "Started", "Container started")
	if c.ended != nil {
		c.last = c.ended
	}
	c.cur, c.ended = &runtime.ContainerStatus{ID: id, Name: cfg.Name, Attempt: attempt, State: runtime.Running, StartedAt: w.now(), Annotations: cfg.Annotations,
		TTY: cfg.TTY, Stdin: cfg.Stdin}, nil
	c.attempt = attempt
	c.image, c.imageID = cfg.Annotations[noteName], cfg.Annotations[noteImageID]
	c.stop = cfg.Annotations[noteStop]
	c.again, c.past = false, false
	c.waiting, c.kill, c.unhealthy, c.hookErr = v1.ContainerStateWaiting{}, nil, "", ""
	if before != nil && before.State == runtime.Exited && !before.StartedAt.IsZero() {
		w.forgetAttempt(ctx, c, before)
	}
	w.startHook(c)
	w.observe(ctx)
	return true
}

// forgetAttempt lets go of what the runtime knows of an earlier attempt. Its
// log stays.
func (w *worker) forgetAttempt(ctx context.Context, c *container, s *runtime.ContainerStatus) {
	if err := w.sandbox.RemoveContainer(ctx, s.ID); err != nil {
		w.log.Debug("forgetting an earlier attempt", "err", err)
	}
	_ = os.Remove(w.terminationFile(c, s.ID))
}

// statusImage is how a status shows an image: by its tag, and by the digest
// under which the registry knows it, or its own when it was imported.
func statusImage(img *image.Image, asked string) (name, id string) {
	name = asked
	if full, err := image.Normalize(asked); err == nil {
		name = full
	}
	id = img.ID
	if len(img.RepoDigests) > 0 {
		id = img.RepoDigests[0]
	}
	return name, id
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (w *worker) terminationFile(c *container, id string) string {
	return filepath.Join(w.m.podDir(w.uid), "containers", c.spec.Name, id)
}

// linkLog shows log collectors the log of an attempt.
func (w *worker) linkLog(c *container, id, path string) {
	if err := logs.Link(w.logDir, w.pod.Name, w.pod.Namespace, c.spec.Name, id, path); err != nil {
		w.log.Warn("a log collector will not find the container's log", "container", c.spec.Name, "err", err)
	}
}

func (w *worker) logPath(c *container, attempt uint32) string {
	return filepath.Join(w.logDir, c.logName(attempt))
}
