// Package disruption keeps the status of PodDisruptionBudgets: how many of their
// pods are healthy, how many should be, and how many evictions that allows. The
// eviction itself is decided and charged by the API (pods/eviction).
//
// Limits: a budget in percent, or with maxUnavailable, over pods whose owner is
// not a ReplicationController, ReplicaSet, Deployment or StatefulSet allows no
// eviction, and says so in its condition; owners of other kinds that have a
// scale subresource are not asked. The DisruptionTarget condition of a pod whose
// eviction came to nothing stays.
package disruption

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// minInterval bounds the writes for a budget whose pods all change at once.
const minInterval = 50 * time.Millisecond

// Controller keeps the status of budgets.
type Controller struct {
	cfg     controller.Config
	loop    *controller.Loop
	budgets policylisters.PodDisruptionBudgetLister
	pods    corelisters.PodLister

	rcs          corelisters.ReplicationControllerLister
	replicaSets  appslisters.ReplicaSetLister
	deployments  appslisters.DeploymentLister
	statefulSets appslisters.StatefulSetLister

	now func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("disruption controller: %w", err)
	}
	core, apps, policy := cfg.Informers.Core().V1(), cfg.Informers.Apps().V1(), cfg.Informers.Policy().V1()
	c := &Controller{
		cfg: cfg, now: time.Now,
		budgets: policy.PodDisruptionBudgets().Lister(), pods: core.Pods().Lister(),
		rcs: core.ReplicationControllers().Lister(), replicaSets: apps.ReplicaSets().Lister(),
		deployments: apps.Deployments().Lister(), statefulSets: apps.StatefulSets().Lister(),
	}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "disruption", Sync: c.sync, Workers: 2, MinInterval: minInterval, Logger: cfg.Logger})
	c.loop.Needs(core.ReplicationControllers().Informer())
	c.loop.Needs(apps.ReplicaSets().Informer())
	c.loop.Needs(apps.Deployments().Informer())
	c.loop.Needs(apps.StatefulSets().Informer())
	err := controller.Watch(c.loop, policy.PodDisruptionBudgets().Informer(), func(_, cur *policyv1.PodDisruptionBudget) {
		if cur != nil {
			c.loop.Add(controller.Key(cur.Namespace, cur.Name))
		}
	})
	if err == nil {
		err = controller.Watch(c.loop, core.Pods().Informer(), c.podChanged)
	}
	if err != nil {
		return nil, fmt.Errorf("disruption controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

// podChanged wakes the budgets that a pod belongs to or belonged to.
func (c *Controller) podChanged(old, cur *corev1.Pod) {
	some := cur
	if some == nil {
		some = old
	}
	if old != nil && cur != nil && old.UID == cur.UID && controller.Ready(old) == controller.Ready(cur) &&
		(old.DeletionTimestamp == nil) == (cur.DeletionTimestamp == nil) && maps.Equal(old.Labels, cur.Labels) &&
		equality.Semantic.DeepEqual(old.OwnerReferences, cur.OwnerReferences) {
		return
	}
	budgets, err := c.budgets.PodDisruptionBudgets(some.Namespace).List(labels.Everything())
	if err != nil {
		return // the lister reads memory: it never fails
	}
	for _, b := range budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue // the budget's own sync says so
		}
		if old != nil && selector.Matches(labels.Set(old.Labels)) || cur != nil && selector.Matches(labels.Set(cur.Labels)) {
			c.loop.Add(controller.Key(b.Namespace, b.Name))
		}
	}
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	b, err := c.budgets.PodDisruptionBudgets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read budget %s: %w", key, err)
	}
	if b.DeletionTimestamp != nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of budget %s: %w", key, err)
	}
	pods, err := c.pods.Pods(namespace).List(selector)
	if err != nil {
		return fmt.Errorf("pods of budget %s: %w", key, err)
	}
	if len(pods) == 0 && b.Status.ObservedGeneration < b.Generation {
		c.cfg.Events.Event(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	out, err := decide(input{budget: b, pods: pods, scale: c.scale, now: c.now()})
	if err != nil {
		c.cfg.Events.Event(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: "+err.Error())
		err = fmt.Errorf("budget %s: %w", key, err)
	}
	for _, pod := range out.stayed {
		c.cfg.Events.Eventf(pod, corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name)
	}
	if out.again > 0 {
		c.loop.AddAfter(key, out.again)
	}
	return errors.Join(err, c.save(ctx, b, out.status))
}

// save writes a status. One that was computed before an eviction was charged is
// refused as a conflict, and computed again.
func (c *Controller) save(ctx context.Context, b *policyv1.PodDisruptionBudget, status policyv1.PodDisruptionBudgetStatus) error {
	if equality.Semantic.DeepEqual(b.Status, status) {
		return nil
	}
	changed := b.DeepCopy()
	changed.Status = status
	_, err := c.cfg.Client.PolicyV1().PodDisruptionBudgets(b.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of budget %s/%s: %w", b.Namespace, b.Name, err)
	}
	return nil
}
