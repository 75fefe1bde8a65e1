// Package statefulset runs pods that have names: web-0, web-1 and so on, each
// with the volume claims of its own.
//
// With the policy OrderedReady there is one step at a time: a pod is created when
// all before it are available, and removed when all after it are gone. Parallel
// knows no order. Updates go from the last pod to the first, down to the
// partition, within maxUnavailable.
//
// Claims outlive pods and set unless persistentVolumeClaimRetentionPolicy says
// otherwise (claims.go).
//
// Limits: identities of existing pods are not repaired.
package statefulset

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

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

// Controller reconciles StatefulSets.
type Controller struct {
	cfg     controller.Config
	loop    *controller.Loop
	sets    appslisters.StatefulSetLister
	pods    cache.SharedIndexInformer
	claims  corelisters.PersistentVolumeClaimLister
	history controller.History
	now     func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("statefulset controller: %w", err)
	}
	apps := cfg.Informers.Apps().V1()
	c := &Controller{
		cfg: cfg, now: time.Now,
		sets: apps.StatefulSets().Lister(), pods: cfg.Informers.Core().V1().Pods().Informer(),
		claims: cfg.Informers.Core().V1().PersistentVolumeClaims().Lister(),
	}
	c.history = controller.History{
		Client: cfg.Client, Revisions: apps.ControllerRevisions().Lister(), Kind: kind, StillThere: c.live,
	}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "statefulset", Sync: c.sync, Workers: 2, MinInterval: minInterval, Logger: cfg.Logger})
	if err := c.watch(); err != nil {
		return nil, fmt.Errorf("statefulset controller: %w", err)
	}
	return c, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) watch() error {
	if err := errors.Join(controller.IndexPodsByOwner(c.pods), controller.IndexPodsByClaim(c.pods)); err != nil {
		return err
	}
	apps := c.cfg.Informers.Apps().V1()
	c.loop.Needs(apps.ControllerRevisions().Informer())
	err := controller.Watch(c.loop, apps.StatefulSets().Informer(), func(old, cur *appsv1.StatefulSet) {
		if cur == nil {
			cur = old
		}
		c.loop.Add(controller.Key(cur.Namespace, cur.Name))
	})
	if err != nil {
		return err
	}
	err = controller.Watch(c.loop, c.cfg.Informers.Core().V1().PersistentVolumeClaims().Informer(), c.claimChanged)
	if err != nil {
		return err
	}
	return controller.Watch(c.loop, c.pods, c.podChanged)
}

// claimChanged looks at the sets whose pods may wait for a claim's end.
func (c *Controller) claimChanged(old, cur *corev1.PersistentVolumeClaim) {
	if cur != nil {
		return
	}
	for _, pod := range controller.PodsWithClaim(c.pods, old.Namespace, old.Name) {
		c.podChanged(nil, pod)
	}
	for _, ref := range old.OwnerReferences {
		if parent, _, ok := parse(ref.Name); ok && ref.Kind == podKind.Kind {
			c.loop.Add(controller.Key(old.Namespace, parent))
		}
	}
}

func (c *Controller) podChanged(old, cur *corev1.Pod) {
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod == nil {
			continue
		}
		ref := metav1.GetControllerOfNoCopy(pod)
		switch {
		case ref != nil && ref.Kind == kind.Kind:
			c.loop.Add(controller.Key(pod.Namespace, ref.Name))
		case ref == nil && pod == cur && cur.DeletionTimestamp == nil:
			if parent, _, ok := parse(pod.Name); ok {
				c.loop.Add(controller.Key(pod.Namespace, parent))
			}
		}
	}
}

func (c *Controller) live(ctx context.Context, namespace, name string) (types.UID, bool, error) {
	set, err := c.cfg.Client.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", false, err
	}
	return set.UID, set.DeletionTimestamp != nil, nil
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	set, err := c.sets.StatefulSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read stateful set %s: %w", key, err)
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || selector.Empty() {
		c.cfg.Logger.Error("selector cannot be used, giving up until it changes", "key", key, "error", err)
		return nil
	}
	if set.DeletionTimestamp != nil {
		return nil
	}
	in, history, err := c.gather(ctx, set, selector)
	if errors.Is(err, controller.ErrCollision) {
		status := *set.Status.DeepCopy()
		n := int32(1)
		if status.CollisionCount != nil {
			n += *status.CollisionCount
		}
		status.CollisionCount = &n
		return errors.Join(err, c.saveStatus(ctx, set, status))
	}
	if err != nil {
		return err
	}
	if err := c.keepClaims(ctx, in); err != nil {
		return err
	}
	failed := c.apply(ctx, in, decide(in))
	status, wait := decideStatus(in)
	if wait > 0 {
		c.loop.AddAfter(key, wait)
	}
	if failed == nil {
		inUse := map[string]bool{in.current.Name: true, in.update.Name: true}
		for _, pod := range in.pods {
			inUse[revisionOf(pod)] = true
		}
		failed = c.history.Prune(ctx, history, set.Spec.RevisionHistoryLimit, inUse)
	}
	return errors.Join(failed, c.saveStatus(ctx, set, status))
}

func (c *Controller) gather(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) (input, []*appsv1.ControllerRevision, error) {
	in := input{set: set, now: c.now()}
	history, err := c.history.Of(ctx, set, selector)
	if err != nil {
		return in, nil, err
	}
	in.update, history, err = c.history.Current(ctx, set, &set.Spec.Template, set.Status.CollisionCount, history)
	if err != nil {
		return in, nil, err
	}
	in.current = in.update
	for _, r := range history {
		if r.Name == set.Status.CurrentRevision {
			in.current = r
		}
	}
	in.pods, err = c.claim(ctx, set, selector)
	return in, history, err
}

func (c *Controller) claim(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := controller.Owned(c.pods, set.UID)
	for _, pod := range controller.Orphans(c.pods, set.Namespace) {
		if selector.Matches(labels.Set(pod.Labels)) {
			candidates = append(candidates, pod)
		}
	}
	held, err := controller.Claim[*corev1.Pod]{
		Owner: set, Kind: kind, Selector: selector,
		Adoptable: func(pod *corev1.Pod) bool {
			parent, _, ok := parse(pod.Name)
			return ok && parent == set.Name
		},
		StillThere: func(ctx context.Context) (types.UID, bool, error) { return c.live(ctx, set.Namespace, set.Name) },
		Patch: func(ctx context.Context, pod *corev1.Pod, patch []byte) error {
			_, err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}.Of(ctx, candidates)
	if err != nil {
		return nil, fmt.Errorf("claim pods of stateful set %s/%s: %w", set.Namespace, set.Name, err)
	}
	return held, nil
}

func (c *Controller) saveStatus(ctx context.Context, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if equality.Semantic.DeepEqual(set.Status, status) {
		return nil
	}
	changed := set.DeepCopy()
	changed.Status = status
	_, err := c.cfg.Client.AppsV1().StatefulSets(set.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update status of stateful set %s/%s: %w", set.Namespace, set.Name, err)
	}
	return nil
}
