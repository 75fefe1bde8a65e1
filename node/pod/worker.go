package pod

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/node/volume"
)

// worker runs one pod. Its goroutine owns all fields but those under mu.
type worker struct {
	m   *Manager
	uid types.UID
	// name is namespace/name.
	name string
	log  *slog.Logger
	// static: the pod comes from a manifest; see static.go.
	static bool
	wake   chan struct{} // room for one: a level, not an edge
	view   atomic.Pointer[View]
	// changes counts changes of held objects.
	changes atomic.Int64

	mu      sync.Mutex
	latest  *v1.Pod // newest object known
	gone    bool    // the API object is deleted
	ending  ending  // asked for from outside
	stop    context.CancelFunc
	mail    []func()        // results of hooks and probes, run by the goroutine
	want    *v1.PodStatus   // to be written
	failure time.Duration   // delay after a failed write
	writing bool            // a write is under way
	written bool            // want is what the API has
	dirty   map[string]bool // "volumes": sources changed
	// asked is a text that the API has never seen, until a write of it succeeds;
	// wantAsked is the one that want bears. See mayStart.
	asked, wantAsked string
	askedIn          uint64 // chain of contact

	pod       *v1.Pod // latest, as of this pass
	state     State
	accepted  time.Time
	pulling   time.Duration // of its images, so far
	metered   bool          // that it came to run was told
	start     time.Time     // status.startTime
	refused   string        // fields that are not supported
	end       ending        // in force
	endedBy   time.Time     // when stopping began
	hurried   time.Time     // when end.grace was given
	sandbox   Sandbox
	unlisten  context.CancelFunc
	ips       []string
	vols      *volume.Pod
	ctrs      []*container
	imageVols map[string]*imageVolume // by the volume's name
	release   func()                  // of held objects
	logDir    string                  // the folder of the pod's logs
	attempts  uint32                  // sandboxes made
	unsure    []string                // containers whose start was interrupted
	rejected  bool                    // by admission: no container ever ran
	resetting bool                    // all containers are being ended, to start anew
	retryAt   time.Time
	retry     time.Duration
	retrySeen int64
	lastErr   string
	lastTold  time.Time // when lastErr was told
	frozen    bool      // was over before this agent saw it: its status stays
	deleteAt  time.Time
	deleted   bool
	resizing  resizing
	begun     int       // changes of resources that pod has; see grants.retake
	permit    Permit    // of this pass
	fenced    time.Time // since when the pod is stopped for lack of contact
	confirmed uint64    // chain of contact in which the pod is known to be there
	warnedDNS bool
}

// ending says why and how a pod is ended from outside its containers.
type ending struct {
	reason, message string
	grace           *int64 // seconds; nil: the pod's own
	disruption      bool   // add a DisruptionTarget condition
}

func newWorker(m *Manager, p *v1.Pod) *worker {
	w := &worker{m: m, uid: p.UID, name: fullName(p), latest: p, pod: p, state: New, wake: make(chan struct{}, 1), dirty: map[string]bool{},
		log: m.cfg.Logger.With("pod", p.Namespace+"/"+p.Name, "uid", string(p.UID)), accepted: m.cfg.now()}
	w.start = w.accepted
	if p.Status.StartTime != nil {
		w.start = p.Status.StartTime.Time
	}
	w.ctrs = newContainers(p)
	w.logDir = m.logFolder(p)
	return w
}

func (w *worker) now() time.Time { return w.m.cfg.now() }

// poke makes the worker look again; it never blocks.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// post hands a result to the worker's goroutine.
func (w *worker) post(f func()) {
	w.mu.Lock()
	w.mail = append(w.mail, f)
	w.mu.Unlock()
	w.poke()
}

// update returns false if the worker ends a pod that is gone, and p is one that
// came back.
func (w *worker) update(p *v1.Pod) bool {
	w.mu.Lock()
	if w.gone {
		defer w.mu.Unlock()
		return !newer(p, w.latest)
	}
	if newer(p, w.latest) {
		if p.DeletionTimestamp != nil && w.latest.DeletionTimestamp == nil {
			w.interrupt()
		}
		w.latest = p
	}
	w.mu.Unlock()
	w.poke()
	return true
}

// single says whether the pod must not run beside another of its name.
func (w *worker) single() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return once(w.latest)
}

func (w *worker) remove() {
	w.mu.Lock()
	w.gone = true
	w.interrupt()
	w.mu.Unlock()
	w.poke()
}

// interrupt ends the step under way; w.mu is held.
func (w *worker) interrupt() {
	if w.stop != nil {
		w.stop()
	}
}

// newer compares by resourceVersion, which is a number in skiff.
func newer(a, b *v1.Pod) bool {
	x, err1 := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, err2 := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return err1 != nil || err2 != nil || x > y
}

// run is the worker's life: look, act, sleep until something happens.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer w.cleanup()
	for ctx.Err() == nil {
		next, over := w.pass(ctx)
		if over {
			w.m.forget(w)
			return
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, next.Sub(w.now())))
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// cleanup ends the goroutines that serve the worker; containers go on.
func (w *worker) cleanup() {
	if w.unlisten != nil {
		w.unlisten()
	}
	for _, c := range w.ctrs {
		c.stopProbes()
	}
	if w.release != nil {
		w.release()
	}
}

// pass looks at everything once. It returns when to look again even if
// nothing happens, and whether the worker has nothing left to do for ever.
func (w *worker) pass(base context.Context) (next time.Time, over bool) {
	ctx, cancel := context.WithCancel(base)
	defer cancel()
	w.mu.Lock()
	fresh := w.latest
	mail := w.mail
	w.mail = nil
	gone := w.gone
	if w.end.reason == "" {
		w.end = w.ending
	}
	if g := w.ending.grace; g != nil && (w.hurried.IsZero() || w.end.grace != nil && *g < *w.end.grace) {
		w.end.grace, w.hurried = g, w.now()
	}
	stopping := gone || fresh.DeletionTimestamp != nil || w.end.reason != ""
	if !stopping {
		w.stop = cancel // the coming steps may be interrupted
	} else {
		w.stop = nil
	}
	w.mu.Unlock()
	if gone {
		w.m.grants.end(w.uid)
	}
	fresh, w.begun = w.m.grants.retake(fresh, stopping)
	w.adoptSpec(fresh)
	for _, f := range mail {
		f()
	}
	if w.state == New && w.sandbox == nil { // also of a pod that only has to end
		w.takeSandbox()
		if stopping && w.sandbox != nil {
			w.ips = statusIPs(fresh)
		}
	}
	w.observe(ctx)
	alarm := &next
	switch {
	case w.state == Gone || w.state == Stopped:
	case w.state == Stopping || stopping || w.overForAPI() || w.overdue(alarm):
		w.stopAll(base, alarm)
	case w.heldBack(base, alarm):
	default:
		w.advance(ctx, alarm)
		if w.state == Stopping { // one status tells that all is over
			w.stopAll(base, alarm)
		}
	}
	w.publish(alarm)
	if w.state == Stopped {
		w.m.grants.end(w.uid)
		w.finish(base, gone, alarm)
	}
	if w.state == Gone {
		if gone {
			w.removeFiles()
			return time.Time{}, true
		}
		if w.pod.DeletionTimestamp != nil {
			w.deleteObject(base, alarm)
		}
	}
	return next, false
}

// adoptSpec takes over a newer object: containers point into its spec.
func (w *worker) adoptSpec(p *v1.Pod) {
	if p == w.pod {
		return
	}
	old := w.pod
	w.pod = p
	if phase := p.Status.Phase; w.frozen && phase != v1.PodSucceeded && phase != v1.PodFailed {
		w.frozen = false // the API has gone back to an earlier state: it is told again how the pod ended
	}
	for _, c := range w.ctrs {
		if s := findContainer(p, c.spec.Name); s != nil {
			if s.Image != c.spec.Image {
				c.back, c.pullBack, c.pull, c.retryAt = backoff{}, backoff{}, nil, time.Time{} // they were another image's
			}
			c.spec = s
		}
	}
	w.takeEphemeral()
	if !sameMap(old.Labels, p.Labels) || !sameMap(old.Annotations, p.Annotations) {
		w.mu.Lock()
		w.dirty["volumes"] = true
		w.mu.Unlock()
	}
}

func sameMap(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if x, ok := b[k]; !ok || x != v {
			return false
		}
	}
	return true
}

// move changes the pod's state. A move that is not allowed is a mistake in
// this package: it is logged and not made.
func (w *worker) move(next State) {
	s, err := w.state.Move(next)
	if err != nil {
		w.log.Error("pod worker", "err", err)
		return
	}
	w.state = s
}

// earlier moves an alarm forward.
func earlier(alarm *time.Time, t time.Time) {
	if !t.IsZero() && (alarm.IsZero() || t.Before(*alarm)) {
		*alarm = t
	}
}

// advance takes the next steps of a pod that is to run.
func (w *worker) advance(ctx context.Context, alarm *time.Time) {
	if w.state == New && !w.accept() {
		return
	}
	if w.refused != "" {
		return
	}
	if w.sandbox != nil && !w.sandbox.Alive() && w.state != Preparing {
		w.lostSandbox()
	}
	if w.state == Preparing {
		if w.now().Before(w.retryAt) && w.changes.Load() == w.retrySeen {
			earlier(alarm, w.retryAt)
			return
		}
		w.retrySeen = w.changes.Load()
		if err := w.prepare(ctx); err != nil {
			if ctx.Err() == nil {
				w.retry = min(max(2*w.retry, 500*time.Millisecond), 2*time.Minute)
				w.retryAt = w.now().Add(w.retry)
				earlier(alarm, w.retryAt)
			}
			return
		}
		w.retry, w.retryAt, w.lastErr = 0, time.Time{}, ""
		w.resumeProbes()
		w.move(Initializing)
	}
	if w.restartingAll(ctx, alarm) {
		return
	}
	w.refreshVolumes(ctx, alarm)
	w.resize(ctx, alarm)
	w.runEphemeral(ctx, alarm)
	if w.state == Initializing {
		if !w.initialize(ctx, alarm) {
			return
		}
		w.move(Running)
	}
	w.keepRunning(ctx, alarm)
}

// overForAPI says that somebody else has declared a pod over that runs here.
func (w *worker) overForAPI() bool {
	p := w.pod.Status.Phase
	return w.state != New && (p == v1.PodSucceeded || p == v1.PodFailed)
}

// overdue says that activeDeadlineSeconds are over.
func (w *worker) overdue(alarm *time.Time) bool {
	d := w.pod.Spec.ActiveDeadlineSeconds
	if d == nil || w.state == New {
		return false
	}
	due := w.start.Add(time.Duration(*d) * time.Second)
	if w.now().Before(due) {
		earlier(alarm, due)
		return false
	}
	const msg = "Pod was active on the node longer than the specified deadline"
	w.eventPod(v1.EventTypeNormal, "DeadlineExceeded", msg)
	w.end = ending{reason: "DeadlineExceeded", message: msg}
	return true
}

func (w *worker) eventPod(kind, reason, format string, args ...any) {
	w.m.cfg.Recorder.Eventf(reference(w.pod, ""), kind, reason, format, args...)
}

func (w *worker) event(c *container, kind, reason, format string, args ...any) {
	w.m.cfg.Recorder.Eventf(reference(w.pod, c.fieldPath()), kind, reason, format, args...)
}

func reference(p *v1.Pod, fieldPath string) *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		ResourceVersion: p.ResourceVersion, FieldPath: fieldPath}
}

// listen wakes the worker whenever something happens in its sandbox.
func (w *worker) listen(base context.Context) {
	ctx, cancel := context.WithCancel(base)
	w.unlisten = cancel
	events := w.sandbox.Events(ctx)
	go func() {
		for range events {
			w.poke()
		}
		w.poke()
	}()
}

// faultAgain is when a failure that lasts is told anew: an event is kept for an
// hour.
const faultAgain = 30 * time.Minute

// fault tells of a failure to prepare the pod: at once when it is another one
// than before, else every half hour.
func (w *worker) fault(reason, prefix string, err error) {
	msg := prefix + err.Error()
	if reason+msg == w.lastErr && w.now().Before(w.lastTold.Add(faultAgain)) {
		return
	}
	w.lastErr, w.lastTold = reason+msg, w.now()
	w.eventPod(v1.EventTypeWarning, reason, "%s", msg)
	w.log.Warn("preparing a pod", "err", err)
}
