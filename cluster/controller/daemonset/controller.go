// Package daemonset runs one pod of each DaemonSet on every node that it fits.
//
// The controller decides which nodes these are, by node selector, affinity and
// taints; the scheduler then places each pod on the one node that its injected
// affinity names. Updates replace pods within maxUnavailable or maxSurge.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const minInterval = 10 * time.Millisecond

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// Controller reconciles DaemonSets.
type Controller struct {
	cfg     controller.Config
	loop    *controller.Loop
	sets    appslisters.DaemonSetLister
	nodes   corelisters.NodeLister
	pods    cache.SharedIndexInformer
	history controller.History
	pending *controller.Expectations
	failing *backoff
	now     func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	apps, core := cfg.Informers.Apps().V1(), cfg.Informers.Core().V1()
	c := &Controller{
		cfg: cfg, now: time.Now, pending: controller.NewExpectations(), failing: newBackoff(),
		sets: apps.DaemonSets().Lister(), nodes: core.Nodes().Lister(), pods: core.Pods().Informer(),
	}
	c.history = controller.History{
		Client: cfg.Client, Revisions: apps.ControllerRevisions().Lister(), Kind: kind, StillThere: c.live,
	}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "daemonset", Sync: c.sync, Workers: 2, MinInterval: minInterval, Logger: cfg.Logger})
	if err := c.watch(); err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	return c, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) watch() error {
	if err := controller.IndexPodsByOwner(c.pods); err != nil {
		return err
	}
	apps, core := c.cfg.Informers.Apps().V1(), c.cfg.Informers.Core().V1()
	c.loop.Needs(apps.ControllerRevisions().Informer())
	err := controller.Watch(c.loop, apps.DaemonSets().Informer(), func(old, cur *appsv1.DaemonSet) {
		if cur == nil || old != nil && old.UID != cur.UID {
			c.pending.Forget(controller.Key(old.Namespace, old.Name))
		}
		if cur == nil {
			cur = old
		}
		c.loop.Add(controller.Key(cur.Namespace, cur.Name))
	})
	if err != nil {
		return err
	}
	if err := controller.Watch(c.loop, core.Nodes().Informer(), c.nodeChanged); err != nil {
		return err
	}
	return controller.Watch(c.loop, c.pods, c.podChanged)
}

func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if old != nil && cur != nil && labels.Equals(old.Labels, cur.Labels) && equality.Semantic.DeepEqual(old.Spec.Taints, cur.Spec.Taints) {
		return
	}
	all, err := c.sets.List(labels.Everything())
	if err != nil {
		return
	}
	for _, ds := range all {
		c.loop.Add(controller.Key(ds.Namespace, ds.Name))
	}
}

func (c *Controller) podChanged(old, cur *corev1.Pod) {
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod == nil {
			continue
		}
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			if pod == cur && cur.DeletionTimestamp == nil {
				c.offer(cur)
			}
			continue
		}
		if ref.Kind != kind.Kind {
			continue
		}
		key := controller.Key(pod.Namespace, ref.Name)
		if old == nil {
			c.pending.CreationObserved(key)
		}
		if cur == nil || cur.DeletionTimestamp != nil {
			c.pending.DeletionObserved(key, string(pod.UID))
		}
		c.loop.Add(key)
	}
}

// offer wakes those who may adopt an orphan.
func (c *Controller) offer(pod *corev1.Pod) {
	all, err := c.sets.DaemonSets(pod.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, ds := range all {
		if s, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector); err == nil && !s.Empty() && s.Matches(labels.Set(pod.Labels)) {
			c.loop.Add(controller.Key(ds.Namespace, ds.Name))
		}
	}
}

func (c *Controller) live(ctx context.Context, namespace, name string) (types.UID, bool, error) {
	ds, err := c.cfg.Client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", false, err
	}
	return ds.UID, ds.DeletionTimestamp != nil, nil
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	ds, err := c.sets.DaemonSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.pending.Forget(key)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read daemon set %s: %w", key, err)
	}
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || selector.Empty() {
		c.cfg.Events.Event(ds, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	if ds.DeletionTimestamp != nil {
		return nil
	}
	upToDate := c.pending.Satisfied(key)
	history, err := c.history.Of(ctx, ds, selector)
	if err != nil {
		return err
	}
	current, history, err := c.history.Current(ctx, ds, &ds.Spec.Template, ds.Status.CollisionCount, history)
	if errors.Is(err, controller.ErrCollision) {
		return c.countCollision(ctx, ds, err)
	}
	if err != nil {
		return err
	}
	hash := current.Labels[controller.RevisionLabel]
	pods, err := c.claim(ctx, ds, selector)
	if err != nil {
		return err
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	in := input{set: ds, nodes: nodes, pods: pods, hash: hash, now: c.now()}
	var failed error
	if upToDate {
		failed = c.apply(ctx, key, ds, hash, decide(in))
		if failed == nil {
			inUse := map[string]bool{hash: true}
			for _, pod := range pods {
				inUse[pod.Labels[controller.RevisionLabel]] = true
			}
			failed = c.history.Prune(ctx, history, ds.Spec.RevisionHistoryLimit, inUse)
		}
	}
	status, wait := decideStatus(in)
	if wait > 0 {
		c.loop.AddAfter(key, wait)
	}
	return errors.Join(failed, c.saveStatus(ctx, ds, status))
}

func (c *Controller) countCollision(ctx context.Context, ds *appsv1.DaemonSet, cause error) error {
	status := *ds.Status.DeepCopy()
	n := int32(1)
	if status.CollisionCount != nil {
		n += *status.CollisionCount
	}
	status.CollisionCount = &n
	return errors.Join(cause, c.saveStatus(ctx, ds, status))
}

func (c *Controller) saveStatus(ctx context.Context, ds *appsv1.DaemonSet, status appsv1.DaemonSetStatus) error {
	if equality.Semantic.DeepEqual(ds.Status, status) {
		return nil
	}
	changed := ds.DeepCopy()
	changed.Status = status
	_, err := c.cfg.Client.AppsV1().DaemonSets(ds.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update status of daemon set %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	return nil
}

func (c *Controller) claim(ctx context.Context, ds *appsv1.DaemonSet, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := controller.Owned(c.pods, ds.UID)
	for _, pod := range controller.Orphans(c.pods, ds.Namespace) {
		if selector.Matches(labels.Set(pod.Labels)) {
			candidates = append(candidates, pod)
		}
	}
	held, err := controller.Claim[*corev1.Pod]{
		Owner: ds, Kind: kind, Selector: selector,
		StillThere: func(ctx context.Context) (types.UID, bool, error) { return c.live(ctx, ds.Namespace, ds.Name) },
		Patch: func(ctx context.Context, pod *corev1.Pod, patch []byte) error {
			_, err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}.Of(ctx, candidates)
	if err != nil {
		return nil, fmt.Errorf("claim pods of daemon set %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	return held, nil
}
