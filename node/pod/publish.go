package pod

import (
	"context"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// holdFirst keeps a status that says no more than "being created" back for so
// long: most pods run by then, and one write tells both.
const holdFirst = 250 * time.Millisecond

// publish computes the status, shows it to those who serve requests, and has
// it written when it differs from what the API has.
func (w *worker) publish(alarm *time.Time) {
	now := w.now()
	st := w.pod.Status
	if !w.frozen {
		st = w.status(now)
	}
	w.meterStart(st, now)
	shown := *w.pod
	shown.Status = st
	v := &View{Pod: &shown, Sandbox: w.sandbox, Containers: map[string]ContainerView{}, Volumes: w.vols, State: w.state, Static: w.static}
	for _, c := range w.ctrs {
		v.Containers[c.spec.Name] = w.containerView(c)
	}
	w.view.Store(v)
	if w.frozen {
		return
	}
	if early(st) && w.pod.Status.StartTime == nil {
		if due := w.accepted.Add(holdFirst); now.Before(due) && w.state != Preparing || now.Before(due) && w.lastErr == "" {
			earlier(alarm, due)
			return
		}
	}
	if w.static {
		w.remember(st, alarm)
		return
	}
	w.write(st)
}

// early says that nothing has happened yet that a user would wait for.
func early(st v1.PodStatus) bool {
	if st.Phase != v1.PodPending || st.Message != "" {
		return false
	}
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for i := range list {
			wait := list[i].State.Waiting
			if wait == nil || wait.Reason != "ContainerCreating" && wait.Reason != "PodInitializing" {
				return false
			}
		}
	}
	return true
}

func (w *worker) containerView(c *container) ContainerView {
	v := ContainerView{Running: c.running()}
	n := c.attempt
	if c.cur != nil {
		v.ID, v.TTY, v.Stdin, v.StdinOnce = c.cur.ID, c.spec.TTY, c.spec.Stdin, c.spec.StdinOnce
		v.StartedAt, v.FinishedAt = c.cur.StartedAt, c.cur.FinishedAt
	}
	if c.cur != nil || c.ended != nil {
		v.LogPath = w.logPath(c, n)
		if n > 0 {
			v.PrevLog = w.logPath(c, n-1)
		}
	} else if n > 0 {
		v.LogPath = w.logPath(c, n-1)
	}
	return v
}

// status is the pod's status as of now.
func (w *worker) status(now time.Time) v1.PodStatus {
	o := observed{pod: w.pod, ips: w.ips, hosts: w.m.cfg.HostIPs, start: w.start, final: w.state == Stopped || w.state == Gone,
		reason: w.end.reason, message: w.end.message, resetting: w.resetting, initialized: w.mainStarted()}
	o.networked = w.sandbox != nil && len(w.ips) > 0 && w.sandbox.Alive() && !o.final
	creating := v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	hasInit := len(w.pod.Spec.InitContainers) > 0
	var debug []v1.ContainerStatus
	for _, c := range w.ctrs {
		wait := creating
		if hasInit && (c.role == roleMain || c.role == roleEphemeral || c.cur == nil) {
			wait.Reason = "PodInitializing"
		}
		if c.ended != nil && (w.state.Final() || w.pod.DeletionTimestamp != nil) {
			c.waiting = v1.ContainerStateWaiting{} // it waits for nothing any more
		}
		s := c.status(wait)
		if s.Resources != nil {
			s.Resources, s.AllocatedResources = w.resourcesStatus(c)
		}
		switch c.role {
		case roleMain:
			o.main = append(o.main, s)
		case roleEphemeral:
			s.Ready, s.Started = false, nil // nothing asks for it
			debug = append(debug, s)
		default:
			o.init = append(o.init, s)
		}
	}
	if o.final && !w.rejected {
		concluded(&o)
	}
	if w.end.disruption && o.final { // as with upstream, not before all is over
		o.extra = append(o.extra, v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: w.end.message})
	}
	o.resize = w.resizeConditions()
	st := compute(o, now)
	st.Resources, st.AllocatedResources = w.podResourcesStatus()
	w.fencedStatus(&st)
	if w.rejected && !w.ranSomewhere() { // nothing is known of containers that never were
		st.ContainerStatuses, st.InitContainerStatuses = nil, nil
	}
	sortByName(debug)
	st.EphemeralContainerStatuses = debug
	shorten(&st)
	return st
}

// write hands a status to the writer, unless it is what the API has.
func (w *worker) write(st v1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone || w.want != nil && equality.Semantic.DeepEqual(*w.want, st) && (w.written || w.writing) {
		return
	}
	w.want, w.wantAsked = &st, w.asked
	if equality.Semantic.DeepEqual(w.latest.Status, st) && !w.writing {
		w.written = true
		return
	}
	w.written = false
	if !w.writing {
		w.writing = true
		w.m.wg.Go(w.writeLoop)
	}
}

// writeLoop writes until the API has the newest status. There is at most one
// for each pod, and a bounded number of requests under way.
func (w *worker) writeLoop() {
	ctx := w.m.ctx
	for {
		w.mu.Lock()
		if w.written || w.gone || ctx.Err() != nil {
			w.writing = false
			w.mu.Unlock()
			w.poke()
			return
		}
		st, base, delay := w.want, w.latest, w.failure
		w.mu.Unlock()
		if delay > 0 {
			select {
			case <-ctx.Done():
				continue
			case <-time.After(delay):
			}
		}
		select {
		case w.m.writes <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		after, err := w.put(ctx, base, *st)
		<-w.m.writes
		w.mu.Lock()
		switch {
		case err == nil:
			w.failure = 0
			if newer(after, w.latest) {
				w.latest = after
			}
			w.written = w.want == st
		case apierrors.IsNotFound(err):
			w.gone = true
			w.interrupt()
		case ctx.Err() == nil:
			w.failure = min(max(2*w.failure, 100*time.Millisecond), 10*time.Second)
			w.log.Warn("writing a pod's status, trying again", "err", err, "in", w.failure)
		}
		w.mu.Unlock()
	}
}

// put replaces the status. When somebody else changed the object meanwhile,
// their part of the conditions is kept and it is tried again.
func (w *worker) put(ctx context.Context, base *v1.Pod, st v1.PodStatus) (*v1.Pod, error) {
	pods := w.m.cfg.Client.CoreV1().Pods(base.Namespace)
	for range 5 {
		next := *base
		next.Status = mergeStatus(base.Status, st)
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		after, err := pods.UpdateStatus(ctx, &next, metav1.UpdateOptions{})
		cancel()
		if err == nil || !apierrors.IsConflict(err) {
			return after, err
		}
		if base, err = pods.Get(ctx, base.Name, metav1.GetOptions{}); err != nil {
			return nil, err
		}
		if base.UID != w.uid {
			return nil, apierrors.NewNotFound(v1.Resource("pods"), base.Name)
		}
	}
	return nil, apierrors.NewConflict(v1.Resource("pods"), base.Name, nil)
}

// ours are the conditions that the node decides.
var ours = map[v1.PodConditionType]bool{v1.PodReadyToStartContainers: true, v1.PodInitialized: true, v1.PodReady: true, v1.ContainersReady: true, v1.PodScheduled: true,
	v1.AllContainersRestarting: true}

func mergeStatus(base, st v1.PodStatus) v1.PodStatus {
	var conds []v1.PodCondition
	have := map[v1.PodConditionType]bool{}
	newest := map[v1.PodConditionType]v1.PodCondition{}
	for _, c := range base.Conditions {
		newest[c.Type] = c
	}
	for _, c := range st.Conditions {
		if n, ok := newest[c.Type]; ok && !ours[c.Type] && !resizeCondition(c.Type) {
			c = n
		}
		have[c.Type] = true
		conds = append(conds, c)
	}
	for _, c := range base.Conditions {
		if !have[c.Type] && !resizeCondition(c.Type) {
			conds = append(conds, c)
		}
	}
	st.Conditions = conds
	st.NominatedNodeName, st.Resize = base.NominatedNodeName, base.Resize
	st.ResourceClaimStatuses = base.ResourceClaimStatuses
	return st
}

// finish releases what a pod held whose containers have all ended, once its
// last status is safe: a crash in between must not lose how it ended.
func (w *worker) finish(ctx context.Context, gone bool, alarm *time.Time) {
	w.mu.Lock()
	safe := gone || w.gone || w.frozen || w.written
	w.mu.Unlock()
	if !safe {
		w.giveRoom(alarm)
		return // the writer wakes us
	}
	if w.now().Before(w.retryAt) {
		earlier(alarm, w.retryAt)
		return
	}
	if err := w.releaseAll(ctx); err != nil {
		if ctx.Err() == nil {
			w.log.Warn("releasing what a pod held, trying again", "err", err)
		}
		w.retryAt = w.now().Add(2 * time.Second)
		earlier(alarm, w.retryAt)
		return
	}
	w.retryAt = time.Time{}
	w.move(Gone)
	if v := w.view.Load(); v != nil {
		c := *v
		c.Sandbox, c.Volumes, c.State = nil, nil, Gone
		w.view.Store(&c)
	}
}

func (w *worker) releaseAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ips := w.ips
	if err := w.dropSandbox(ctx); err != nil {
		return err
	}
	w.ips = ips // the last status keeps them
	if !w.pod.Spec.HostNetwork {
		if err := w.m.cfg.Network.Detach(ctx, string(w.uid)); err != nil {
			return err
		}
	}
	if err := w.m.cfg.Volumes.Teardown(string(w.uid)); err != nil {
		return err
	}
	w.vols = nil
	if w.release != nil {
		w.release()
		w.release = nil
	}
	return os.RemoveAll(w.m.podDir(w.uid))
}

// deleteObject removes the API object of a pod that has ended and is to be
// deleted; that it is gone comes back by the watch.
func (w *worker) deleteObject(ctx context.Context, alarm *time.Time) {
	if w.deleted {
		return
	}
	if w.static {
		w.deleted = true
		w.remove()
		return
	}
	if w.now().Before(w.deleteAt) {
		earlier(alarm, w.deleteAt)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	zero := int64(0)
	err := w.m.cfg.Client.CoreV1().Pods(w.pod.Namespace).Delete(ctx, w.pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(w.uid))})
	switch {
	case err == nil:
		w.deleted = true
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, and perhaps replaced
		w.deleted = true
		w.remove()
	default:
		if ctx.Err() == nil {
			w.log.Warn("deleting a pod that has ended, trying again", "err", err)
		}
		w.deleteAt = w.now().Add(2 * time.Second)
		earlier(alarm, w.deleteAt)
	}
}

func (w *worker) removeFiles() {
	if err := w.m.logs.Remove(w.pod.Namespace, w.pod.Name, string(w.uid)); err != nil {
		w.log.Warn("removing a pod's logs", "err", err)
	}
}
