// Package replicaset keeps the number of pods that ReplicaSets and
// ReplicationControllers ask for.
//
// A pod belongs to the owner that its controller reference names; pods that
// match a selector and have no such reference are adopted, those that no longer
// match are released. Creation starts slowly (1, 2, 4 ... at a time) so that a
// pod that cannot be created costs one refusal, not hundreds, but the batches
// follow each other without a pause.
package replicaset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// minInterval bounds how often one owner is synced while its pods change.
const minInterval = 10 * time.Millisecond

// Controller reconciles one of the two kinds.
type Controller struct {
	cfg     controller.Config
	kind    kind
	pods    cache.SharedIndexInformer
	loop    *controller.Loop
	pending *controller.Expectations
	now     func() time.Time
}

// New returns the controller of ReplicaSets.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("replicaset controller: %w", err)
	}
	return build(cfg, "replicaset", newReplicaSets(cfg))
}

// NewForReplicationControllers returns the controller of ReplicationControllers,
// which are ReplicaSets with a simpler selector.
func NewForReplicationControllers(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("replicationcontroller controller: %w", err)
	}
	return build(cfg, "replicationcontroller", newReplicationControllers(cfg))
}

func build(cfg controller.Config, name string, k kind) (*Controller, error) {
	c := &Controller{
		cfg: cfg, kind: k, now: time.Now,
		pods:    cfg.Informers.Core().V1().Pods().Informer(),
		pending: controller.NewExpectations(),
	}
	c.loop = controller.NewLoop(controller.LoopConfig{
		Name: name, Sync: c.sync, Workers: 5, MinInterval: minInterval, Logger: cfg.Logger,
	})
	if err := controller.IndexPodsByOwner(c.pods); err != nil {
		return nil, fmt.Errorf("%s controller: %w", name, err)
	}
	if err := k.watch(c.loop, c.ownerChanged); err != nil {
		return nil, fmt.Errorf("%s controller: %w", name, err)
	}
	if err := controller.Watch(c.loop, c.pods, c.podChanged); err != nil {
		return nil, fmt.Errorf("%s controller: %w", name, err)
	}
	return c, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) ownerChanged(key string, gone bool) {
	if gone {
		c.pending.Forget(key)
	}
	c.loop.Add(key)
}

// podChanged settles expectations and wakes the owners, old and new, or whoever
// may adopt an orphan.
func (c *Controller) podChanged(old, cur *corev1.Pod) {
	if cur == nil {
		if key, ok := c.ownerOf(old); ok {
			c.pending.DeletionObserved(key, podKey(old))
			c.loop.Add(key)
		}
		return
	}
	if old != nil && old.ResourceVersion == cur.ResourceVersion {
		return
	}
	key, owned := c.ownerOf(cur)
	if old != nil {
		if before, ok := c.ownerOf(old); ok && before != key {
			c.loop.Add(before)
		}
	}
	if owned {
		if old == nil {
			c.pending.CreationObserved(key)
		}
		if cur.DeletionTimestamp != nil {
			c.pending.DeletionObserved(key, podKey(cur))
		}
		c.loop.Add(key)
		return
	}
	if metav1.GetControllerOfNoCopy(cur) != nil || cur.DeletionTimestamp != nil {
		return
	}
	if old == nil || metav1.GetControllerOfNoCopy(old) != nil || !labels.Equals(old.Labels, cur.Labels) {
		for _, key := range c.kind.matching(cur) {
			c.loop.Add(key)
		}
	}
}

// ownerOf returns the key of the owner of our kind that a pod names. The owner
// may be gone; its sync then does nothing.
func (c *Controller) ownerOf(pod *corev1.Pod) (string, bool) {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != c.kind.gvk().Kind {
		return "", false
	}
	return controller.Key(pod.Namespace, ref.Name), true
}

func podKey(pod *corev1.Pod) string { return string(pod.UID) }

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	owner, err := c.kind.get(namespace, name)
	if apierrors.IsNotFound(err) {
		c.pending.Forget(key)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", c.kind.gvk().Kind, key, err)
	}
	selector, err := metav1.LabelSelectorAsSelector(owner.Spec.Selector)
	if err != nil {
		c.cfg.Logger.Error("selector cannot be used, giving up until it changes", "key", key, "error", err)
		return nil
	}
	upToDate := c.pending.Satisfied(key)
	held, err := c.claim(ctx, owner, selector)
	if err != nil {
		return err
	}
	var failed error
	if upToDate && owner.DeletionTimestamp == nil {
		failed = c.resize(ctx, key, owner, held)
	}
	status, wait := decideStatus(owner, held, failed, c.now())
	if err := c.saveStatus(ctx, owner, status); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if wait > 0 {
		c.loop.AddAfter(key, wait)
	}
	return nil
}

// claim adopts and releases, and returns the pods that owner holds, finished
// ones and those being deleted included.
func (c *Controller) claim(ctx context.Context, owner *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := controller.Owned(c.pods, owner.UID)
	for _, pod := range controller.Orphans(c.pods, owner.Namespace) {
		if selector.Matches(labels.Set(pod.Labels)) {
			candidates = append(candidates, pod)
		}
	}
	claim := controller.Claim[*corev1.Pod]{
		Owner: owner, Kind: c.kind.gvk(), Selector: selector,
		Adoptable: controller.Active,
		StillThere: func(ctx context.Context) (types.UID, bool, error) {
			return c.kind.live(ctx, owner.Namespace, owner.Name)
		},
		Patch: func(ctx context.Context, pod *corev1.Pod, patch []byte) error {
			_, err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name,
				types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
	held, err := claim.Of(ctx, candidates)
	if err != nil {
		return nil, fmt.Errorf("claim pods of %s %s/%s: %w", c.kind.gvk().Kind, owner.Namespace, owner.Name, err)
	}
	return held, nil
}

// saveStatus writes the status if it differs. A conflict is retried by the loop
// with what the cache holds then.
func (c *Controller) saveStatus(ctx context.Context, owner *appsv1.ReplicaSet, status appsv1.ReplicaSetStatus) error {
	if sameStatus(owner.Status, status) {
		return nil
	}
	changed := owner.DeepCopy()
	changed.Status = status
	err := c.kind.updateStatus(ctx, changed)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("update status of %s %s/%s: %w", c.kind.gvk().Kind, owner.Namespace, owner.Name, err)
	}
	return nil
}
