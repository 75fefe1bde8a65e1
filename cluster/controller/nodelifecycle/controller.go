// Package nodelifecycle turns the conditions of nodes into taints, and evicts
// pods from nodes with NoExecute taints when their tolerations run out.
//
// It does not find out whether a node is alive: whoever knows that sets the
// node's Ready condition.
package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// Controller taints nodes and evicts pods.
type Controller struct {
	cfg    controller.Config
	nodes  corelisters.NodeLister
	pods   cache.SharedIndexInformer
	taints *controller.Loop // by node
	evict  *controller.Loop // by pod
	now    func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("nodelifecycle controller: %w", err)
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{cfg: cfg, now: time.Now, nodes: core.Nodes().Lister(), pods: core.Pods().Informer()}
	c.taints = controller.NewLoop(controller.LoopConfig{Name: "nodelifecycle", Sync: c.syncNode, Workers: 4, Logger: cfg.Logger})
	c.evict = controller.NewLoop(controller.LoopConfig{Name: "taint-eviction", Sync: c.syncPod, Workers: 8, Logger: cfg.Logger})
	c.evict.Needs(core.Nodes().Informer())
	c.taints.Needs(c.pods)
	if err := controller.IndexPodsByNode(c.pods); err != nil {
		return nil, fmt.Errorf("nodelifecycle controller: %w", err)
	}
	if err := controller.Watch(c.taints, core.Nodes().Informer(), c.nodeChanged); err != nil {
		return nil, fmt.Errorf("nodelifecycle controller: %w", err)
	}
	if err := controller.Watch(c.evict, c.pods, c.podChanged); err != nil {
		return nil, fmt.Errorf("nodelifecycle controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return controller.RunAll(ctx, c.taints, c.evict) }

func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if cur == nil {
		return
	}
	if old == nil || old.Spec.Unschedulable != cur.Spec.Unschedulable ||
		!equality.Semantic.DeepEqual(old.Spec.Taints, cur.Spec.Taints) || !sameConditions(old, cur) {
		c.taints.Add(cur.Name)
	}
	if old == nil && len(noExecute(cur)) > 0 || old != nil && !equality.Semantic.DeepEqual(noExecute(old), noExecute(cur)) {
		for _, pod := range controller.On(c.pods, cur.Name) {
			c.evict.Add(controller.Key(pod.Namespace, pod.Name))
		}
	}
}

func sameConditions(a, b *corev1.Node) bool {
	status := func(n *corev1.Node) map[corev1.NodeConditionType]corev1.ConditionStatus {
		out := map[corev1.NodeConditionType]corev1.ConditionStatus{}
		for _, c := range n.Status.Conditions {
			out[c.Type] = c.Status
		}
		return out
	}
	return equality.Semantic.DeepEqual(status(a), status(b))
}

func (c *Controller) podChanged(old, cur *corev1.Pod) {
	if cur == nil || cur.Spec.NodeName == "" || cur.DeletionTimestamp != nil {
		return
	}
	if old != nil && old.Spec.NodeName == cur.Spec.NodeName && equality.Semantic.DeepEqual(old.Spec.Tolerations, cur.Spec.Tolerations) {
		return
	}
	if n, err := c.nodes.Get(cur.Spec.NodeName); err == nil && len(noExecute(n)) > 0 {
		c.evict.Add(controller.Key(cur.Namespace, cur.Name))
	}
}

// syncNode makes a node's taints follow from its conditions, and takes the pods
// of an unreachable one out of service.
func (c *Controller) syncNode(ctx context.Context, name string) error {
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	want := decideTaints(node, c.now())
	if !sameTaints(node.Spec.Taints, want) {
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
			"spec":     map[string]any{"taints": want},
		})
		if err != nil {
			return fmt.Errorf("encode taints of node %s: %w", name, err)
		}
		if _, err := c.cfg.Client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("taint node %s: %w", name, err)
		}
	}
	if conditionStatus(node, corev1.NodeReady) != corev1.ConditionUnknown {
		return nil
	}
	for _, pod := range controller.On(c.pods, name) {
		if err := c.markNotReady(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// markNotReady takes a pod out of its Services: its node cannot say any more
// whether it works.
func (c *Controller) markNotReady(ctx context.Context, pod *corev1.Pod) error {
	ready := controller.Condition(pod, corev1.PodReady)
	if ready == nil || ready.Status != corev1.ConditionTrue {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(c.now()), Reason: "NodeNotReady",
		}}},
	})
	if err != nil {
		return fmt.Errorf("encode condition of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	_, err = c.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("mark pod %s/%s not ready: %w", pod.Namespace, pod.Name, err)
	}
	c.cfg.Events.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	return nil
}

// syncPod evicts a pod whose tolerations of its node's taints have run out, or
// comes back when they will have.
func (c *Controller) syncPod(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	pod, err := c.cfg.Informers.Core().V1().Pods().Lister().Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s: %w", key, err)
	}
	if pod.Spec.NodeName == "" || pod.DeletionTimestamp != nil || controller.Finished(pod) {
		return nil
	}
	node, err := c.nodes.Get(pod.Spec.NodeName)
	if apierrors.IsNotFound(err) {
		return nil // podgc's work
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", pod.Spec.NodeName, err)
	}
	at, evict := evictAt(pod, noExecute(node))
	if !evict {
		return nil
	}
	if wait := at.Sub(c.now()); wait > 0 {
		c.evict.AddAfter(key, wait)
		return nil
	}
	return c.remove(ctx, pod)
}

func (c *Controller) remove(ctx context.Context, pod *corev1.Pod) error {
	c.cfg.Events.Eventf(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", pod.Namespace, pod.Name)
	err := controller.Disrupt(ctx, c.cfg.Client, pod, "", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
	if err != nil {
		return err
	}
	err = c.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
