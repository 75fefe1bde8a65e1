package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/skiff-sh/skiff/node/shutdown"
)

// Pods of manifests (static pods) have workers as all others. What differs: no
// API object tells of them, so their status is kept on this node; nothing waits
// for a server; and they end when they are taken out, never by a deletion in
// the API.

// Annotations of a pod by which its origin is known, as kubelet writes them.
const (
	HashAnnotation   = "kubernetes.io/config.hash"
	SourceAnnotation = "kubernetes.io/config.source"
)

// keepAgain is how long after a failure a status is kept again.
const keepAgain = 2 * time.Second

// statics is what a Manager knows of pods of manifests beside their workers.
type statics struct {
	// still is held while no such worker may come; before Manager.mu.
	still sync.Mutex
	// waiting, by namespace/name, run when the one before them has ended; under
	// Manager.mu.
	waiting map[string]*v1.Pod
	// before StartStatic these root file systems were mounted; nil without it.
	mounts []string
}

// MergeStatus is the status st for a pod that has the status base in the API:
// conditions of others are kept.
func MergeStatus(base, st v1.PodStatus) v1.PodStatus { return mergeStatus(base, st) }

// Newer compares versions of one object of the API.
func Newer(a, b *v1.Pod) bool { return newer(a, b) }

func fullName(p *v1.Pod) string { return p.Namespace + "/" + p.Name }

// StartStatic begins to run the pods of this node's manifests, before anything
// is known of the API's: Start follows, and leaves them alone. What an earlier
// agent left running of them is adopted. Workers run until ctx ends.
func (m *Manager) StartStatic(ctx context.Context, pods []*v1.Pod) error {
	m.ctx = ctx
	m.grants.load(pods)
	boxes, err := m.cfg.Runtime.Sandboxes(ctx)
	if err != nil {
		return fmt.Errorf("finding the sandboxes that are running: %w", err)
	}
	mounts, err := m.cfg.Images.Mounts()
	if err != nil {
		return fmt.Errorf("finding the containers' file systems: %w", err)
	}
	m.statics.mounts = append([]string{}, mounts...)
	for _, sb := range boxes {
		if slices.ContainsFunc(pods, func(p *v1.Pod) bool { return string(p.UID) == sb.PodUID() }) {
			m.adopted[sb.PodUID()] = sb
		}
	}
	for _, p := range pods {
		m.AddStatic(p)
	}
	return nil
}

// AddStatic begins to run a pod of a manifest. Its UID is a hash of what the
// manifest says, so the same UID means the same pod, and its status is what is
// known of it from before. A pod of the same name that ends is awaited.
func (m *Manager) AddStatic(p *v1.Pod) {
	m.statics.still.Lock()
	defer m.statics.still.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if !w.static || w.name != fullName(p) {
			continue
		}
		if w.uid == p.UID && !w.retired() {
			delete(m.statics.waiting, fullName(p))
			return
		}
		if m.statics.waiting == nil {
			m.statics.waiting = map[string]*v1.Pod{}
		}
		m.statics.waiting[fullName(p)] = p
		w.retire()
		return
	}
	w := newWorker(m, p)
	w.static = true
	m.workers[p.UID] = w
	m.wg.Go(func() { w.run(m.ctx) })
}

// RemoveStatic ends a pod whose manifest is gone, within its grace period.
func (m *Manager) RemoveStatic(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.statics.waiting {
		if p.UID == uid {
			delete(m.statics.waiting, name)
		}
	}
	if w := m.workers[uid]; w != nil && w.static {
		w.retire()
	}
}

// StaticPods returns the pods of manifests with their status, also those that
// still end.
func (m *Manager) StaticPods() (out []*v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w.static {
			w.mu.Lock()
			out = append(out, w.latest)
			w.mu.Unlock()
		}
	}
	slices.SortFunc(out, func(a, b *v1.Pod) int { return strings.Compare(fullName(a), fullName(b)) })
	return out
}

// followStatic lets the pod run that waited for w's end; m.mu is held.
func (m *Manager) followStatic(w *worker) {
	if m.ctx.Err() != nil {
		return
	}
	next := m.statics.waiting[w.name]
	delete(m.statics.waiting, w.name)
	m.wg.Go(func() {
		if next != nil {
			m.AddStatic(next)
		}
		m.staticChanged()
	})
}

func (m *Manager) staticChanged() {
	if f := m.cfg.StaticChanged; f != nil {
		f()
	}
}

// staticUIDs are those of pods of manifests that have a worker.
func (m *Manager) staticUIDs() []string {
	out := []string{}
	for _, p := range m.StaticPods() {
		out = append(out, string(p.UID))
	}
	return out
}

// leftover says that a root file system was mounted before this agent mounted
// any.
func (m *Manager) leftover(key string) bool {
	return m.statics.mounts == nil || slices.Contains(m.statics.mounts, key)
}

// keepStatics adds what pods of manifests have to what a sweep leaves.
func (m *Manager) keepStatics(files, logs map[string]bool) {
	for _, p := range m.StaticPods() {
		files[string(p.UID)] = true
		logs[logBase(p)] = true
	}
}

// retire ends the pod as its deletion would.
func (w *worker) retire() {
	w.mu.Lock()
	if w.latest.DeletionTimestamp == nil {
		p := *w.latest
		now, grace := metav1.NewTime(w.now()), int64(v1.DefaultTerminationGracePeriodSeconds)
		if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = *g
		}
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
		w.latest = &p
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

func (w *worker) retired() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest.DeletionTimestamp != nil
}

// remember makes st the status of a pod that has no other record than this node's.
func (w *worker) remember(st v1.PodStatus, alarm *time.Time) {
	w.mu.Lock()
	next := *w.latest
	done := w.written && equality.Semantic.DeepEqual(next.Status, st)
	w.mu.Unlock()
	if done {
		return
	}
	next.Status = st
	kept := true
	if f := w.m.cfg.KeepStatic; f != nil {
		if err := f(&next); err != nil {
			w.log.Warn("keeping a pod's status, trying again", "err", err)
			earlier(alarm, w.now().Add(keepAgain))
			kept = false
		}
	}
	w.mu.Lock()
	now := *w.latest // it may have been retired meanwhile
	now.Status = st
	w.latest, w.written = &now, kept
	w.mu.Unlock()
	w.m.staticChanged()
}

// services are those that the container gets variables for. A pod of a manifest
// takes what is known by now: it may be what brings the servers up.
func (w *worker) services(ctx context.Context) ([]*v1.Service, error) {
	if !w.static {
		return w.m.cfg.Services(ctx)
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	list, err := w.m.cfg.Services(now)
	if err != nil {
		return nil, ctx.Err()
	}
	return list, nil
}

// admit decides whether the pod may run here, with what others have.
func (w *worker) admit() (reason, message string) {
	if f := w.m.cfg.Closing; f != nil && f() {
		return shutdown.NotAdmitted, shutdown.NotAdmittedMessage
	}
	if w.static {
		return w.m.admitStatic(w.pod)
	}
	return w.m.admit(w)
}

// admitStatic is for pods of manifests. They come before all others, so nothing
// that others have keeps them out.
func (m *Manager) admitStatic(p *v1.Pod) (reason, message string) {
	node := m.cfg.Node()
	if node == nil {
		return "", ""
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(node); err != nil || !ok {
		return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
	}
	return "", ""
}
