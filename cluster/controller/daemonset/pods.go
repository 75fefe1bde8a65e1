package daemonset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const (
	nodeNameField = "metadata.name"
	// parallel is how many pods are created or deleted at a time.
	parallel = 50
)

// apply carries out a plan. Deletions go first: they make room.
func (c *Controller) apply(ctx context.Context, key string, ds *appsv1.DaemonSet, hash string, p plan) error {
	remove := p.remove
	for _, pod := range p.failed {
		if wait := c.failing.wait(key+"/"+nodeOf(pod), c.now()); wait > 0 {
			c.loop.AddAfter(key, wait)
			continue
		}
		c.cfg.Events.Eventf(ds, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, pod.Spec.NodeName)
		remove = append(remove, pod)
	}
	names := make([]string, len(remove))
	for i, pod := range remove {
		names[i] = string(pod.UID)
	}
	c.pending.ExpectDeletions(key, names...)
	c.pending.ExpectCreations(key, len(p.create))
	deleted := inParallel(remove, func(pod *corev1.Pod) error {
		err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
		if err == nil {
			c.cfg.Events.Eventf(ds, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
			return nil
		}
		c.pending.DeletionObserved(key, string(pod.UID))
		if apierrors.IsNotFound(err) {
			return nil
		}
		c.cfg.Events.Eventf(ds, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	})
	created := inParallel(p.create, func(node string) error {
		made, err := c.cfg.Client.CoreV1().Pods(ds.Namespace).Create(ctx, podFor(ds, node, hash), metav1.CreateOptions{})
		if err == nil {
			c.cfg.Events.Eventf(ds, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", made.Name)
			return nil
		}
		c.pending.CreationObserved(key)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		c.cfg.Events.Eventf(ds, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		return fmt.Errorf("create pod for node %s: %w", node, err)
	})
	return errors.Join(deleted, created)
}

func inParallel[T any](list []T, do func(T) error) error {
	errs := make([]error, len(list))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, v := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = do(v)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// podFor is the pod of one node: the template, the affinity that names the node,
// and the tolerations that keep a daemon where others have to leave.
func podFor(ds *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	t := ds.Spec.Template.DeepCopy()
	prefix := ds.Name + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) > 0 {
		prefix = ds.Name
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: prefix, Namespace: ds.Namespace, Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(ds, kind)},
		},
		Spec: t.Spec,
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[controller.RevisionLabel] = hash
	pin(&pod.Spec, node)
	addTolerations(&pod.Spec)
	return pod
}

// pin replaces the required node affinity, which has been looked at, by the name
// of the node.
func pin(spec *corev1.PodSpec, node string) {
	if spec.Affinity == nil {
		spec.Affinity = &corev1.Affinity{}
	}
	if spec.Affinity.NodeAffinity == nil {
		spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: nodeNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
		}}}},
	}
}

func addTolerations(spec *corev1.PodSpec) {
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		if !slices.ContainsFunc(spec.Tolerations, func(o corev1.Toleration) bool { return o.MatchToleration(&t) }) {
			spec.Tolerations = append(spec.Tolerations, t)
		}
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
}

// backoff spaces the replacement of pods that fail again and again on one node.
type backoff struct {
	mu      sync.Mutex
	entries map[string]backoffEntry
}

type backoffEntry struct {
	last  time.Time
	delay time.Duration
}

const (
	backoffFirst = time.Second
	backoffMax   = 15 * time.Minute
)

func newBackoff() *backoff { return &backoff{entries: map[string]backoffEntry{}} }

// wait returns how long to wait before the next replacement; 0 for now, which
// doubles the next wait. A node without failures for twice the longest wait
// starts over.
func (b *backoff) wait(key string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, e := range b.entries {
		if now.Sub(e.last) > 2*backoffMax {
			delete(b.entries, k)
		}
	}
	e, ok := b.entries[key]
	if ok {
		if rest := e.last.Add(e.delay).Sub(now); rest > 0 {
			return rest
		}
	}
	e.delay = min(max(backoffFirst, 2*e.delay), backoffMax)
	e.last = now
	b.entries[key] = e
	return 0
}
