package static

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/node/pod"
)

// MirrorConfig configures Mirrors.
type MirrorConfig struct {
	Client kubernetes.Interface
	// Node is the Node object as last seen; nil while it is not known.
	Node func() *v1.Node
	// Pods are the static pods with their status, those that still end included.
	Pods   func() []*v1.Pod
	Logger *slog.Logger
}

// Mirrors keeps the mirror pods of a node's static pods. It is told of all pods
// of this node that are mirrors; see IsMirror. Safe for concurrent use.
type Mirrors struct {
	cfg  MirrorConfig
	wake chan struct{} // room for one

	mu     sync.Mutex
	synced bool               // a list of the API's pods has come
	seen   map[string]*v1.Pod // by namespace/name
	wait   map[string]delay   // after failures, and before a mirror comes back
}

type delay struct {
	until time.Time
	last  time.Duration
	said  string
}

const (
	firstDelay = 500 * time.Millisecond
	mostDelay  = 30 * time.Second
	// absence is how long a mirror that was deleted stays away at least. Clients
	// look and then watch: kubectl delete before 1.36 waits for ever if another pod
	// has the name by then.
	absence = time.Second
)

// NewMirrors returns Mirrors that do nothing yet.
func NewMirrors(cfg MirrorConfig) *Mirrors {
	return &Mirrors{cfg: cfg, wake: make(chan struct{}, 1), seen: map[string]*v1.Pod{}, wait: map[string]delay{}}
}

// IsMirror says that a pod of the API only shows what a node runs by itself.
func IsMirror(p *v1.Pod) bool {
	_, ok := p.Annotations[v1.MirrorPodAnnotationKey]
	return ok
}

func key(p *v1.Pod) string { return p.Namespace + "/" + p.Name }

// Poke makes Run look again; it never blocks.
func (m *Mirrors) Poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Saw tells of a mirror pod as the API has it.
func (m *Mirrors) Saw(p *v1.Pod) {
	m.mu.Lock()
	m.seen[key(p)] = p
	delete(m.wait, key(p))
	m.mu.Unlock()
	m.Poke()
}

// Gone tells that a mirror pod is no more.
func (m *Mirrors) Gone(p *v1.Pod) {
	m.mu.Lock()
	if have := m.seen[key(p)]; have != nil && have.UID == p.UID {
		delete(m.seen, key(p))
		m.wait[key(p)] = delay{until: time.Now().Add(absence)}
	}
	m.mu.Unlock()
	m.Poke()
}

// Have tells which mirror pods there are, after a list.
func (m *Mirrors) Have(list []*v1.Pod) {
	m.mu.Lock()
	m.synced = true
	clear(m.seen)
	clear(m.wait)
	for _, p := range list {
		m.seen[key(p)] = p
	}
	m.mu.Unlock()
	m.Poke()
}

// Run keeps the mirrors until ctx ends.
func (m *Mirrors) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		again := time.Hour
		if next := m.pass(ctx); !next.IsZero() {
			again = max(0, time.Until(next))
		}
		timer.Reset(again)
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// step is one request to the API.
type step struct {
	verb   string // create, delete or status
	pod    *v1.Pod
	reason string // for the log
}

// decide compares static pods with the mirrors that there are.
func decide(statics []*v1.Pod, seen map[string]*v1.Pod, node *v1.Node) (out []step) {
	have := map[string]*v1.Pod{}
	for _, p := range statics {
		if old := have[key(p)]; old == nil || old.DeletionTimestamp != nil { // the one that runs, not the one that ends
			have[key(p)] = p
		}
	}
	for _, k := range sortedKeys(seen) {
		mirror, p := seen[k], have[k]
		switch {
		case p == nil:
			out = append(out, step{"delete", mirror, "its manifest is gone"})
		case mirror.DeletionTimestamp != nil:
			out = append(out, step{"delete", mirror, "it was deleted; the pod is its manifest's and goes on"})
		case mirror.Annotations[v1.MirrorPodAnnotationKey] != string(p.UID):
			out = append(out, step{"delete", mirror, "the manifest has changed"})
		case over(mirror) && !over(p): // an object of the API does not come back from its end
			out = append(out, step{"delete", mirror, "the pod runs again"})
		default:
			if next := mirrored(mirror, p); !equality.Semantic.DeepEqual(next.Status, mirror.Status) {
				out = append(out, step{"status", next, ""})
			}
		}
	}
	for _, k := range sortedKeys(have) {
		if p := have[k]; seen[k] == nil && p.DeletionTimestamp == nil {
			out = append(out, step{"create", mirrorOf(p, node), ""})
		}
	}
	return out
}

func over(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

func sortedKeys(m map[string]*v1.Pod) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// mirrorOf is the mirror pod to make for p.
func mirrorOf(p *v1.Pod, node *v1.Node) *v1.Pod {
	m := p.DeepCopy()
	yes := true
	m.ObjectMeta = metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: m.Labels, Annotations: m.Annotations,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &yes}}}
	m.Annotations[v1.MirrorPodAnnotationKey] = string(p.UID)
	m.Status = v1.PodStatus{}
	return m
}

// mirrored is the mirror with the status of the pod. It shows the generation that
// the mirror has: which pod it shows does not change.
func mirrored(mirror, p *v1.Pod) *v1.Pod {
	next := *mirror
	next.Status = pod.MergeStatus(mirror.Status, *p.Status.DeepCopy())
	next.Status.ObservedGeneration = mirror.Generation
	for i := range next.Status.Conditions {
		if c := &next.Status.Conditions[i]; c.ObservedGeneration == p.Generation {
			c.ObservedGeneration = mirror.Generation
		}
	}
	if next.Status.QOSClass == "" {
		next.Status.QOSClass = mirror.Status.QOSClass
	}
	return &next
}

// pass takes the steps that are due, and returns when the next one is.
func (m *Mirrors) pass(ctx context.Context) (next time.Time) {
	node := m.cfg.Node()
	statics := m.cfg.Pods()
	m.mu.Lock()
	if !m.synced || node == nil {
		m.mu.Unlock()
		if len(statics) == 0 {
			return time.Time{}
		}
		return time.Now().Add(firstDelay) // the Node comes without telling
	}
	maps.DeleteFunc(m.wait, func(_ string, w delay) bool { return w.last == 0 && !time.Now().Before(w.until) })
	var due []step
	for _, s := range decide(statics, m.seen, node) {
		if w := m.wait[key(s.pod)]; time.Now().Before(w.until) {
			if next.IsZero() || w.until.Before(next) {
				next = w.until
			}
			continue
		}
		due = append(due, s)
	}
	m.mu.Unlock()
	for _, s := range due {
		if err := m.take(ctx, s); err != nil && ctx.Err() == nil {
			until := m.failed(s, err)
			if next.IsZero() || until.Before(next) {
				next = until
			}
		}
	}
	return next
}

// take does one step.
func (m *Mirrors) take(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pods := m.cfg.Client.CoreV1().Pods(s.pod.Namespace)
	log := m.cfg.Logger.With("pod", key(s.pod))
	switch s.verb {
	case "create":
		p, err := pods.Create(ctx, s.pod, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("another pod has the name: delete it, or rename the one of the manifest: %w", err)
		}
		if err != nil {
			return err
		}
		m.saw(p)
	case "delete":
		log.Info("deleting a mirror pod", "why", s.reason)
		zero := int64(0)
		err := pods.Delete(ctx, s.pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(s.pod.UID))})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
		m.Gone(s.pod)
	case "status":
		p, err := pods.UpdateStatus(ctx, s.pod, metav1.UpdateOptions{})
		switch {
		case apierrors.IsNotFound(err):
			m.Gone(s.pod)
		case apierrors.IsConflict(err):
			if p, err = pods.Get(ctx, s.pod.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
				m.Gone(s.pod)
			} else if err != nil {
				return err
			} else if IsMirror(p) {
				m.saw(p)
			} else {
				m.Gone(s.pod)
			}
		case err != nil:
			return err
		default:
			m.saw(p)
		}
	}
	return nil
}

// saw takes in an answer of the API, unless the watch was faster.
func (m *Mirrors) saw(p *v1.Pod) {
	m.mu.Lock()
	if have := m.seen[key(p)]; have == nil || have.UID != p.UID || pod.Newer(p, have) {
		m.seen[key(p)] = p
	}
	delete(m.wait, key(p))
	m.mu.Unlock()
	m.Poke()
}

// failed notes a failure, and returns when the step is tried again.
func (m *Mirrors) failed(s step, err error) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.wait[key(s.pod)]
	if w.said != err.Error() {
		w.said = err.Error()
		m.cfg.Logger.Warn("keeping a mirror pod; the static pod itself goes on", "pod", key(s.pod), "step", s.verb, "err", err)
	}
	w.last = min(max(2*w.last, firstDelay), mostDelay)
	w.until = time.Now().Add(w.last)
	m.wait[key(s.pod)] = w
	return w.until
}
