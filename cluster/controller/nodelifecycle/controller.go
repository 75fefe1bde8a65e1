// Package nodelifecycle turns the conditions of nodes into taints, and evicts
// pods from nodes with NoExecute taints when their tolerations run out.
//
// It does not find out whether a node is alive: whoever knows that sets the
// node's Ready condition (package nodehealth). Evictions are limited in their
// rate, and frozen where so many nodes are not ready that it is doubtful which
// side is cut off: then nodes keep the NoSchedule taint only, and when the freeze
// ends the tolerations of their pods begin anew.
package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// announceAfter keeps a freeze quiet that lasts no longer, as when a node
// registers.
const announceAfter = 2 * time.Second

// assessKey is the key of the queue of nodes that stands for all of them.
const assessKey = "*"

// markers is how many pods of a lost node are marked at a time.
const markers = 32

// Config is the common one and whom to tell of a freeze.
type Config struct {
	controller.Config
	// Board shows the status; nil is allowed.
	Board *Board
	// Freeze is told at every look at the nodes, one look after the other, whether
	// evictions of the whole cluster are frozen; nil is allowed.
	Freeze func(frozen bool)
}

// Controller taints nodes and evicts pods.
type Controller struct {
	cfg    Config
	nodes  corelisters.NodeLister
	pods   cache.SharedIndexInformer
	taints *controller.Loop // by node
	evict  *controller.Loop // by pod
	now    func() time.Time

	mu        sync.Mutex
	limit     limiter        // guarded by mu
	status    EvictionStatus // guarded by mu
	announced bool           // guarded by mu
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("nodelifecycle controller: %w", err)
	}
	if cfg.Board == nil {
		cfg.Board = &Board{}
	}
	if cfg.Freeze == nil {
		cfg.Freeze = func(bool) {}
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{cfg: cfg, now: time.Now, nodes: core.Nodes().Lister(), pods: core.Pods().Informer()}
	c.limit.all.interval = normalInterval
	c.taints = controller.NewLoop(controller.LoopConfig{Name: "nodelifecycle", Sync: c.syncNode, Workers: 8, Logger: cfg.Logger})
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
func (c *Controller) Run(ctx context.Context) error {
	defer c.cfg.Board.set(EvictionStatus{}, false)
	c.cfg.Board.set(EvictionStatus{}, true)
	return controller.RunAll(ctx, c.taints, c.evict)
}

func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if old == nil || cur == nil || zoneOf(old) != zoneOf(cur) ||
		conditionStatus(old, corev1.NodeReady) != conditionStatus(cur, corev1.NodeReady) {
		c.taints.Add(assessKey)
	}
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

// assess judges all nodes. When the verdict changes, every node that is not ready
// is looked at again.
func (c *Controller) assess() error {
	nodes, changed, err := c.weigh()
	if err != nil {
		return err
	}
	c.mu.Lock()
	frozen := c.status.Frozen
	c.mu.Unlock()
	if frozen {
		c.taints.AddAfter(assessKey, announceAfter)
		c.announce(nodes)
	}
	if changed {
		for _, n := range nodes {
			if conditionStatus(n, corev1.NodeReady) != corev1.ConditionTrue {
				c.taints.Add(n.Name)
			}
		}
	}
	return nil
}

// weigh is the part of assess that is done by one worker at a time: the last word,
// here and with whom it is told to, has to be that of the newest nodes.
func (c *Controller) weigh() (nodes []*corev1.Node, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes, err = c.nodes.List(labels.Everything())
	if err != nil {
		return nil, false, fmt.Errorf("list nodes: %w", err)
	}
	all := make([]health, 0, len(nodes))
	waiting := 0
	for _, n := range nodes {
		ready := conditionStatus(n, corev1.NodeReady)
		all = append(all, health{zone: zoneOf(n), ready: ready == corev1.ConditionTrue})
		if (ready == corev1.ConditionFalse || ready == corev1.ConditionUnknown) && !evicting(n) {
			waiting++
		}
	}
	zones, whole := judge(all)
	changed = c.limit.set(zones, whole, c.now())
	c.cfg.Freeze(c.limit.all.interval == 0)
	next := EvictionStatus{Waiting: waiting, Since: c.status.Since}
	next.Frozen, next.Reason = c.limit.reasons()
	if waiting == 0 { // nobody is held back
		next.Frozen, next.Reason = false, ""
	}
	switch {
	case next.Reason == "":
		next.Since = time.Time{}
	case c.status.Reason == "":
		next.Since = c.now()
	}
	if c.announced && !next.Frozen {
		c.cfg.Logger.Info("evictions go on; tolerations begin anew")
	}
	c.announced = c.announced && next.Frozen
	c.status = next
	c.cfg.Board.set(next, true)
	return nodes, changed, nil
}

// announce tells once of a freeze that lasts.
func (c *Controller) announce(nodes []*corev1.Node) {
	c.mu.Lock()
	status := c.status
	due := status.Frozen && !c.announced && c.now().Sub(status.Since) >= announceAfter
	if due {
		c.announced = true
	}
	var waiting []*corev1.Node
	for _, n := range nodes {
		if conditionStatus(n, corev1.NodeReady) != corev1.ConditionTrue && c.limit.frozen(zoneOf(n)) {
			waiting = append(waiting, n)
		}
	}
	c.mu.Unlock()
	if !due {
		return
	}
	c.cfg.Logger.Warn("evictions are frozen", "reason", status.Reason, "waiting", status.Waiting)
	for _, n := range waiting {
		c.cfg.Events.Eventf(n, corev1.EventTypeWarning, "EvictionsFrozen", "Pods of this node are not evicted: %s", status.Reason)
	}
}

// syncNode makes a node's taints follow from its conditions, and takes the pods
// of an unreachable one out of service.
func (c *Controller) syncNode(ctx context.Context, name string) error {
	if name == assessKey {
		return c.assess()
	}
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	if conditionStatus(node, corev1.NodeReady) != corev1.ConditionTrue {
		if err := c.assess(); err != nil {
			return err
		}
	}
	if err := c.taint(ctx, node); err != nil {
		return err
	}
	if conditionStatus(node, corev1.NodeReady) != corev1.ConditionUnknown {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(markers)
	for _, pod := range controller.On(c.pods, name) {
		g.Go(func() error { return c.markNotReady(ctx, pod) })
	}
	return g.Wait()
}

// taint writes a node's taints if they are not what they should be.
func (c *Controller) taint(ctx context.Context, node *corev1.Node) error {
	evict, undo, wait := c.mayEvict(node)
	if wait > 0 {
		c.taints.AddAfter(node.Name, wait)
	}
	want := decideTaints(node, c.now(), evict)
	if sameTaints(node.Spec.Taints, want) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": want},
	})
	if err == nil {
		_, err = c.cfg.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		undo()
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("taint node %s: %w", node.Name, err)
	}
	c.taints.Add(assessKey) // one less waits
	return nil
}

// anyToEvict reports whether a node that is not ready has pods to lose; one that
// has none, as when it registers, takes nobody's turn.
func (c *Controller) anyToEvict(node *corev1.Node) bool {
	taint := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}
	if conditionStatus(node, corev1.NodeReady) == corev1.ConditionFalse {
		taint.Key = corev1.TaintNodeNotReady
	}
	for _, pod := range controller.On(c.pods, node.Name) {
		if _, evict := evictAt(pod, []corev1.Taint{taint}); evict && controller.Active(pod) {
			return true
		}
	}
	return false
}

// mayEvict decides whether a node that is not ready bears the NoExecute taint:
// one that has it keeps it unless its zone is frozen, others wait for their turn.
func (c *Controller) mayEvict(node *corev1.Node) (evict bool, undo func(), wait time.Duration) {
	nothing := func() {}
	switch conditionStatus(node, corev1.NodeReady) {
	case corev1.ConditionFalse, corev1.ConditionUnknown:
	default:
		return false, nothing, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch zone := zoneOf(node); {
	case c.limit.frozen(zone):
		return false, nothing, 0
	case evicting(node), !c.anyToEvict(node):
		return true, nothing, 0
	default:
		give, wait := c.limit.take(zone, c.now())
		if give == nil {
			return false, nothing, wait
		}
		return true, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			give()
		}, 0
	}
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
	if metav1.GetControllerOfNoCopy(pod) == nil {
		c.cfg.Events.Eventf(pod, corev1.EventTypeWarning, "PodLost",
			"Node %s does not run pods any more, and no controller replaces this one: it is lost", pod.Spec.NodeName)
	}
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
