package pod

import (
	"context"
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// Permit says whether a pod that must not run twice may run on this node now.
type Permit struct {
	// Run: its containers may go on.
	Run bool
	// For is how long that holds at most; 0: until further notice.
	For time.Duration
	// Start: containers may be started, if the pod is known to be there still: from
	// a version later than Revision, or because a write of its status succeeded
	// that began in this Chain.
	Start    bool
	Chain    uint64
	Revision uint64
	// Why not, for humans.
	Why string
}

const (
	reasonFenced = "NodeFenced"
	// fenceGrace is what containers get when their node may not run them any more.
	// It is part of the margin that the leader of the cluster waits.
	fenceGrace = 3 * time.Second
	// minLease is how long a node may go on after its last contact even with pods
	// that tolerate less.
	minLease = 20 * time.Second
	// fenceAgain is how often a pod looks whether it may run again.
	fenceAgain = time.Second
)

// once reports whether a pod has an identity that must not be there twice. The
// cluster's leader decides the same (cluster/nodehealth).
func once(p *v1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	return ref != nil && ref.Kind == "StatefulSet"
}

// tolerates is for how long a pod may go on without contact; false: for ever.
func tolerates(p *v1.Pod) (time.Duration, bool) {
	taint := v1.Taint{Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoExecute}
	var d time.Duration
	tolerated, bounded := false, false
	for i := range p.Spec.Tolerations {
		t := &p.Spec.Tolerations[i]
		if !t.ToleratesTaint(klog.Background(), &taint, false) {
			continue
		}
		tolerated = true
		if t.TolerationSeconds == nil {
			continue
		}
		s := time.Duration(max(0, *t.TolerationSeconds)) * time.Second
		if !bounded || s < d {
			d, bounded = s, true
		}
	}
	return d, !tolerated || bounded
}

// guarded reports whether the pod may only run with a permit.
func (w *worker) guarded() (tolerated time.Duration, yes bool) {
	if w.m.cfg.Permit == nil || !once(w.pod) {
		return 0, false
	}
	return tolerates(w.pod)
}

// heldBack asks for the permit of this pass, and stops the containers if there is
// none. The sandbox stays: the pod goes on in it.
func (w *worker) heldBack(ctx context.Context, alarm *time.Time) bool {
	d, yes := w.guarded()
	if !yes {
		return false
	}
	w.permit = w.m.cfg.Permit(d)
	if w.permit.For > 0 {
		earlier(alarm, w.now().Add(w.permit.For))
	}
	if w.permit.Run {
		w.goOn()
		return false
	}
	earlier(alarm, w.now().Add(fenceAgain))
	if w.fenced.IsZero() {
		w.fenced = w.now()
		w.log.Warn("the pod may be replaced elsewhere and is stopped here", "why", w.permit.Why)
		w.eventPod(v1.EventTypeWarning, reasonFenced, "Stopped: %s", w.permit.Why)
	}
	for _, c := range w.ctrs {
		if c.running() && w.sandbox != nil && w.sandbox.Alive() {
			w.killBy(ctx, c, w.fenced.Add(fenceGrace), "Stopping container "+c.spec.Name+": "+w.permit.Why)
			w.driveKill(ctx, c, alarm)
		}
		if !c.running() && c.role != roleEphemeral {
			c.wait(reasonFenced, w.permit.Why)
		}
	}
	return true
}

// goOn ends a fence.
func (w *worker) goOn() {
	if w.fenced.IsZero() {
		return
	}
	w.log.Info("node has contact again, the pod goes on", "stopped", w.fenced)
	w.eventPod(v1.EventTypeNormal, reasonFenced, "Was stopped at %s for lack of contact with the cluster, goes on", w.fenced.UTC().Format(time.RFC3339))
	w.fenced = time.Time{}
	for _, c := range w.ctrs {
		c.back = backoff{}
		if c.waiting.Reason == reasonFenced {
			c.waiting = v1.ContainerStateWaiting{}
		}
	}
}

// mayStart reports whether a container may be started. While the node had no
// contact the pod may have been removed, and its successor may run elsewhere; what
// the node reads may be old. So unless the pod as known here is newer than the
// contact, its status is written, with a text that was never written before: if
// that succeeds, the pod is there, and whoever decided before to remove it fails,
// because it is not the version any more on which that was decided.
func (w *worker) mayStart(c *container, alarm *time.Time) bool {
	if _, yes := w.guarded(); !yes {
		return true
	}
	p := w.permit
	if !p.Run || !p.Start {
		c.wait(reasonFenced, p.Why)
		earlier(alarm, w.now().Add(fenceAgain))
		return false
	}
	if w.confirmed == p.Chain {
		return true
	}
	if rv, err := strconv.ParseUint(w.pod.ResourceVersion, 10, 64); err == nil && rv > p.Revision {
		w.confirmed = p.Chain
		return true
	}
	w.mu.Lock()
	if w.asked == "" || w.askedIn != p.Chain {
		w.asked = fmt.Sprintf("asking at %s whether the pod is still bound to this node", w.now().UTC().Format(time.RFC3339Nano))
		w.askedIn = p.Chain
	}
	text, ok := w.asked, w.written && w.wantAsked == w.asked
	if ok {
		w.confirmed, w.asked = p.Chain, ""
	}
	w.mu.Unlock()
	if ok {
		c.waiting = v1.ContainerStateWaiting{}
		return true
	}
	c.wait("AwaitingContact", text)
	return false
}

// fencedStatus adds what a fence has to say, and takes away what one before said.
func (w *worker) fencedStatus(st *v1.PodStatus) {
	switch {
	case !w.fenced.IsZero():
		st.Reason, st.Message = reasonFenced, fmt.Sprintf("stopped at %s: %s", w.fenced.UTC().Format(time.RFC3339), w.permit.Why)
	case st.Reason == reasonFenced:
		st.Reason, st.Message = "", ""
	}
}
