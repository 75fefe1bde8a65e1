package pod

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
)

// Evicted is the reason of a pod that had to go for the node's sake.
const Evicted = "Evicted"

// Eviction says why and how a pod is ended for good; its phase becomes Failed.
type Eviction struct {
	Reason, Message string
	Grace           int64 // seconds
	Disruption      bool  // it gets a DisruptionTarget condition: it was not the pod's fault
}

// End ends a pod for good. One that ends already, for whatever reason, gets a shorter
// grace period, never a longer one.
func (m *Manager) End(uid types.UID, e Eviction) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	if w.ending.reason == "" {
		w.ending = ending{reason: e.Reason, message: e.Message, grace: &e.Grace, disruption: e.Disruption}
		w.interrupt()
	} else if e.Grace < *w.ending.grace {
		w.ending.grace = &e.Grace
	}
	w.mu.Unlock()
	w.poke()
}

// Critical says that the node never evicts the pod: one that has a priority of the
// system, and one that no API server could bring back.
func Critical(p *v1.Pod) bool {
	if s := p.Annotations["kubernetes.io/config.source"]; s != "" && s != "api" {
		return true
	}
	if p.Annotations[v1.MirrorPodAnnotationKey] != "" {
		return true
	}
	return p.Spec.Priority != nil && *p.Spec.Priority >= 2_000_000_000
}

// pressed says why a node of these conditions takes no such pod; the words are
// kubelet's. One that is short of memory only takes those that ask for some, and
// those that tolerate it.
func pressed(p *v1.Pod, conds []v1.NodeConditionType) (reason, message string) {
	if len(conds) == 0 || Critical(p) {
		return "", ""
	}
	if slices.Equal(conds, []v1.NodeConditionType{v1.NodeMemoryPressure}) {
		taint := &v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
		if QOS(p) != v1.PodQOSBestEffort || corev1helpers.TolerationsTolerateTaint(logr.FromSlogHandler(slog.DiscardHandler), p.Spec.Tolerations, taint, true) {
			return "", ""
		}
	}
	return Evicted, fmt.Sprintf("The node had condition: %v. ", conds)
}

// roomPatience is how long the volumes of an evicted pod wait for its last status.
const roomPatience = 2 * time.Second

// giveRoom removes the volumes of an evicted pod whose last status can't be written:
// if they fill the disk of the only server, it never could be.
func (w *worker) giveRoom(alarm *time.Time) {
	if w.end.reason != Evicted || w.vols == nil || w.endedBy.IsZero() {
		return
	}
	if due := w.endedBy.Add(roomPatience); w.now().Before(due) {
		earlier(alarm, due)
		return
	}
	if err := w.m.cfg.Volumes.Teardown(string(w.uid)); err != nil {
		w.log.Warn("making room by the volumes of an evicted pod", "err", err)
		earlier(alarm, w.now().Add(roomPatience))
		return
	}
	w.vols = nil
}
