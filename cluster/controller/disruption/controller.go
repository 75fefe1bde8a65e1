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
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
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
	err := controller.Watch(c.loop, policy.PodDisruptionBudgets().Informer(), func(_, cur *policyv1.PodDisruptionBudget) {
		if cur != nil {
			c.loop.Add(controller.Key(cur.Namespace, cur.Name))
		}
	})
	if err == nil {
		err = controller.Watch(c.loop, core.Pods().Informer(), c.podChanged)
	}
	if err == nil {
		err = c.watchOwners()
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
	if old != nil && cur != nil && old.UID == cur.UID && controller.Ready(old) == controller.Ready(cur) &&
		(old.DeletionTimestamp == nil) == (cur.DeletionTimestamp == nil) && maps.Equal(old.Labels, cur.Labels) &&
		equality.Semantic.DeepEqual(old.OwnerReferences, cur.OwnerReferences) {
		return
	}
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod != nil {
			c.wake(pod.Namespace, pod.Labels, func(*policyv1.PodDisruptionBudgetSpec) bool { return true })
		}
	}
}

// wake asks for a sync of those budgets that select pods with these labels.
func (c *Controller) wake(namespace string, pod map[string]string, which func(*policyv1.PodDisruptionBudgetSpec) bool) {
	budgets, err := c.budgets.PodDisruptionBudgets(namespace).List(labels.Everything())
	if err != nil {
		return // the lister reads memory: it never fails
	}
	for _, b := range budgets {
		if !which(&b.Spec) {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && selector.Matches(labels.Set(pod)) { // else the budget's own sync says so
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
	out, told := c.judge(b)
	if out.again > 0 {
		c.loop.AddAfter(key, out.again)
	}
	// What cannot be computed comes back when a pod or its owner changes: there is
	// nothing to retry. Events go with a change of the status, so they are told once.
	saved, err := c.save(ctx, b, out.status)
	if !saved {
		return err
	}
	for _, n := range told {
		c.cfg.Events.Event(n.about, n.severity, n.reason, n.text)
	}
	return nil
}

// notice is an Event to be recorded.
type notice struct {
	about                  runtime.Object
	severity, reason, text string
}

// judge gathers what a budget depends on, and decides.
func (c *Controller) judge(b *policyv1.PodDisruptionBudget) (outcome, []notice) {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	var pods []*corev1.Pod
	if err == nil {
		pods, err = c.pods.Pods(b.Namespace).List(selector)
	}
	if err != nil {
		return refuse(b, err), []notice{{b, corev1.EventTypeWarning, "NoPods", "Failed to get pods: " + err.Error()}}
	}
	// The same of several complaints each time.
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	var told []notice
	if len(pods) == 0 {
		told = append(told, notice{b, corev1.EventTypeNormal, "NoPods", "No matching pods found"})
	}
	out, err := decide(input{budget: b, pods: pods, scale: c.scale, now: c.now()})
	switch {
	case err != nil:
		told = append(told, notice{b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: " + err.Error()})
	case relative(&b.Spec) && slices.ContainsFunc(pods, unmanaged):
		told = append(told, notice{b, corev1.EventTypeWarning, "UnmanagedPods", fmt.Sprintf("Pods selected by this PodDisruptionBudget (selector: %v) were found "+
			"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" "+
			"field of the PDB to an integer value.", b.Spec.Selector)})
	}
	for _, pod := range out.stayed {
		told = append(told, notice{pod, corev1.EventTypeWarning, "NotDeleted",
			fmt.Sprintf("Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name)})
	}
	return out, told
}

func unmanaged(pod *corev1.Pod) bool { return metav1.GetControllerOfNoCopy(pod) == nil }

// save writes a status. One that was computed before an eviction was charged is
// refused as a conflict, and computed again. It reports whether there was
// something to write, and it was written.
func (c *Controller) save(ctx context.Context, b *policyv1.PodDisruptionBudget, status policyv1.PodDisruptionBudgetStatus) (bool, error) {
	if equality.Semantic.DeepEqual(b.Status, status) {
		return false, nil
	}
	changed := b.DeepCopy()
	changed.Status = status
	_, err := c.cfg.Client.PolicyV1().PodDisruptionBudgets(b.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write status of budget %s/%s: %w", b.Namespace, b.Name, err)
	}
	return true, nil
}
