package pod

import (
	"io"
	"os"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"context"

	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/runtime"
)

const (
	maxTermination     = 4096 // bytes of a termination message
	maxTerminationLog  = 2048 // and of one taken from the log
	maxTerminationLine = 80
)

// observe takes in what happened to the containers since the last pass.
func (w *worker) observe(context.Context) {
	if w.sandbox == nil {
		return
	}
	now := map[string]runtime.ContainerStatus{}
	for _, s := range w.sandbox.Containers() {
		now[s.ID] = s
	}
	defer w.startAgain()
	for _, c := range w.ctrs {
		if !c.running() {
			continue
		}
		s, ok := now[c.cur.ID]
		switch {
		case ok && s.State != runtime.Exited:
			c.cur = &s
		case ok:
			c.cur = &s
			w.exited(c, s)
		default:
			lost := *c.cur
			lost.State, lost.FinishedAt, lost.ExitCode = runtime.Exited, w.now(), 137
			lost.Message = "The container could not be located when the pod was looked at"
			w.exited(c, lost)
			c.ended.Reason = reasonUnknown
		}
	}
}

// exited records the end of the newest attempt and lets go of what it used.
func (w *worker) exited(c *container, s runtime.ContainerStatus) {
	c.stopProbes()
	c.stopHook()
	restarts := c.kill != nil && c.kill.restarts
	c.kill, c.unhealthy, c.grace, c.revive = nil, "", nil, false
	c.hook = hookDone
	c.ready, c.started = false, false
	c.waiting = v1.ContainerStateWaiting{}
	c.ended, c.finished = w.terminated(c, s), s.FinishedAt
	if restarts && !c.restarts(w.pod.Spec.RestartPolicy) {
		// The API lets no container run again that has terminated well: it never says so.
		c.again = true
		c.wait("ContainerCreating", "")
	}
	w.m.cfg.Meter.Terminated(c.kind(), c.ended.ExitCode, c.ended.Reason)
	if c.hookErr != "" && c.restarts(w.pod.Spec.RestartPolicy) {
		c.wait("PostStartHookError", c.hookErr)
		c.retryAt = w.now().Add(errorShown)
	}
	id := s.ID
	w.m.wg.Go(func() {
		if err := w.m.cfg.Images.Unmount(id); err != nil {
			w.log.Warn("unmounting a container", "id", id, "err", err)
		}
	})
}

func (w *worker) terminated(c *container, s runtime.ContainerStatus) *v1.ContainerStateTerminated {
	t := &v1.ContainerStateTerminated{
		ExitCode: int32(s.ExitCode), Signal: 0, ContainerID: containerID(s.ID),
		StartedAt: metav1.NewTime(s.StartedAt).Rfc3339Copy(), FinishedAt: metav1.NewTime(s.FinishedAt).Rfc3339Copy(),
	}
	switch {
	case s.OOMKilled:
		t.Reason = "OOMKilled"
	case s.ExitCode == 0:
		t.Reason = "Completed"
	case s.StartedAt.IsZero():
		t.Reason = "ContainerCannotRun"
	default:
		t.Reason = "Error"
	}
	t.Message = w.terminationMessage(c, s)
	if t.Message == "" {
		t.Message = s.Message
	}
	return t
}

// terminationMessage reads what the container left, or the end of its log.
func (w *worker) terminationMessage(c *container, s runtime.ContainerStatus) string {
	msg := readTail(w.terminationFile(c, s.ID), maxTermination)
	if msg == "" && c.spec.TerminationMessagePolicy == v1.TerminationMessageFallbackToLogsOnError && s.ExitCode != 0 {
		var b strings.Builder
		lines := int64(maxTerminationLine)
		err := logs.Read(context.Background(), w.logPath(c, s.Attempt), logs.Options{Tail: &lines}, &b, &b, nil)
		if err != nil {
			w.log.Debug("reading a log for the termination message", "err", err)
		}
		if msg = b.String(); len(msg) > maxTerminationLog {
			msg = msg[len(msg)-maxTerminationLog:]
		}
	}
	return strings.ToValidUTF8(msg, "\uFFFD")
}

func readTail(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if info.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return ""
	}
	return string(b)
}

// reasonStart is the reason of an attempt that no sandbox knows of.
const reasonStart = "StartError"

// startFailed records an attempt that never became a process.
func (w *worker) startFailed(c *container, id string, attempt uint32, err error, now time.Time) {
	const code = 128
	c.cur = &runtime.ContainerStatus{ID: id, Name: c.spec.Name, Attempt: attempt, State: runtime.Exited, ExitCode: code, FinishedAt: now}
	if c.ended != nil {
		c.last = c.ended
	}
	c.attempt, c.finished, c.again, c.past = attempt, now, false, false
	c.ended = &v1.ContainerStateTerminated{ExitCode: int32(code), Reason: reasonStart, Message: err.Error(), ContainerID: containerID(id),
		StartedAt: metav1.Unix(0, 0), FinishedAt: metav1.NewTime(now).Rfc3339Copy()}
}
