// Package podgc removes pods that nobody else will: those whose node no longer
// exists, those that were deleted while their node is lost, those that were
// deleted before they got a node, and the oldest of too many finished ones.
package podgc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const (
	// DefaultThreshold is how many finished pods are kept.
	DefaultThreshold = 12500
	// DefaultQuarantine is how long a node must be missing before its pods go: it
	// may only be registering anew.
	DefaultQuarantine = 40 * time.Second
)

// Config is the common one and the limits.
type Config struct {
	controller.Config
	// Threshold is how many finished pods are kept; DefaultThreshold if 0.
	Threshold int
	// Quarantine is how long a node must be missing; DefaultQuarantine if 0.
	Quarantine time.Duration
	// Leases tell when a lost node has certainly stopped what must not run twice.
	// Nil: pods of lost nodes are removed only from nodes that bear the
	// out-of-service taint.
	Leases Leases
}

// Leases is what is needed of *nodehealth.Leases.
type Leases interface {
	OverAt(node string, tolerated time.Duration) (time.Time, bool)
	Confirm(ctx context.Context) error
}

// Controller removes pods.
type Controller struct {
	cfg  Config
	pods cache.SharedIndexInformer
	loop *controller.Loop

	mu       sync.Mutex
	finished map[types.UID]*corev1.Pod // guarded by mu
}

// Keys of the work queue.
const (
	lostNode   = "node/" // and its name
	unassigned = "pod/"  // and namespace/name
	stranded   = "lost/" // and namespace/name: deleted, on a node that may be lost
	tooMany    = "finished"
)

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("podgc controller: %w", err)
	}
	cfg.Threshold = cmp.Or(cfg.Threshold, DefaultThreshold)
	cfg.Quarantine = cmp.Or(cfg.Quarantine, DefaultQuarantine)
	core := cfg.Informers.Core().V1()
	c := &Controller{cfg: cfg, pods: core.Pods().Informer(), finished: map[types.UID]*corev1.Pod{}}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "podgc", Sync: c.sync, Workers: 4, MinInterval: time.Second, Logger: cfg.Logger})
	c.loop.Needs(c.pods)
	if err := controller.IndexPodsByNode(c.pods); err != nil {
		return nil, fmt.Errorf("podgc controller: %w", err)
	}
	err := controller.Watch(c.loop, core.Nodes().Informer(), func(old, cur *corev1.Node) {
		if cur == nil {
			c.loop.AddAfter(lostNode+old.Name, cfg.Quarantine)
			return
		}
		c.nodeChanged(old, cur)
	})
	if err != nil {
		return nil, fmt.Errorf("podgc controller: %w", err)
	}
	if err := controller.Watch(c.loop, c.pods, c.podChanged); err != nil {
		return nil, fmt.Errorf("podgc controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) podChanged(old, cur *corev1.Pod) {
	if cur == nil {
		c.note(old, false)
		return
	}
	if c.note(cur, controller.Finished(cur)) {
		c.loop.Add(tooMany)
	}
	switch {
	case cur.Spec.NodeName == "" && cur.DeletionTimestamp != nil:
		c.loop.Add(unassigned + controller.Key(cur.Namespace, cur.Name))
	case cur.Spec.NodeName != "" && cur.DeletionTimestamp != nil && (old == nil || old.DeletionTimestamp == nil):
		c.loop.AddNow(stranded + controller.Key(cur.Namespace, cur.Name))
	case cur.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == ""):
		if _, err := c.cfg.Informers.Core().V1().Nodes().Lister().Get(cur.Spec.NodeName); apierrors.IsNotFound(err) {
			c.loop.AddAfter(lostNode+cur.Spec.NodeName, c.cfg.Quarantine)
		}
	}
}

// note keeps count of finished pods; true if there are too many now.
func (c *Controller) note(pod *corev1.Pod, finished bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !finished {
		delete(c.finished, pod.UID)
		return false
	}
	c.finished[pod.UID] = pod
	return len(c.finished) > c.cfg.Threshold
}

func (c *Controller) sync(ctx context.Context, key string) error {
	switch {
	case key == tooMany:
		return c.removeOldest(ctx)
	case strings.HasPrefix(key, lostNode):
		return c.removeFrom(ctx, strings.TrimPrefix(key, lostNode))
	case strings.HasPrefix(key, stranded):
		return c.removeStranded(ctx, strings.TrimPrefix(key, stranded))
	case strings.HasPrefix(key, unassigned):
		return c.removeUnassigned(ctx, strings.TrimPrefix(key, unassigned))
	}
	return fmt.Errorf("unknown work %q", key)
}

func (c *Controller) removeOldest(ctx context.Context) error {
	c.mu.Lock()
	excess := oldest(c.finished, len(c.finished)-c.cfg.Threshold)
	c.mu.Unlock()
	var errs []error
	for _, pod := range excess {
		errs = append(errs, c.remove(ctx, pod))
	}
	return errors.Join(errs...)
}

// oldest returns the n pods of all that were created first.
func oldest(all map[types.UID]*corev1.Pod, n int) []*corev1.Pod {
	if n <= 0 {
		return nil
	}
	list := make([]*corev1.Pod, 0, len(all))
	for _, pod := range all {
		if pod.DeletionTimestamp == nil {
			list = append(list, pod)
		}
	}
	slices.SortFunc(list, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	return list[:min(n, len(list))]
}

// removeFrom removes the pods of a node that is really gone.
func (c *Controller) removeFrom(ctx context.Context, node string) error {
	pods := controller.On(c.pods, node)
	if len(pods) == 0 {
		return nil
	}
	_, err := c.cfg.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for node %s: %w", node, err)
	}
	var errs []error
	for _, pod := range pods {
		c.cfg.Logger.Info("removing pod of a node that no longer exists", "pod", pod.Namespace+"/"+pod.Name, "node", node)
		if !controller.Finished(pod) {
			err := controller.Disrupt(ctx, c.cfg.Client, pod, corev1.PodFailed, "DeletionByPodGC", "PodGC: node no longer exists")
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if metav1.GetControllerOfNoCopy(pod) == nil && pod.DeletionTimestamp == nil {
				c.cfg.Events.Eventf(pod, corev1.EventTypeWarning, "PodLost",
					"Node %s is no member of the cluster any more, and no controller replaces this pod: it is lost", node)
			}
		}
		errs = append(errs, c.remove(ctx, pod))
	}
	return errors.Join(errs...)
}

func (c *Controller) removeUnassigned(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	pod, err := c.cfg.Informers.Core().V1().Pods().Lister().Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s: %w", key, err)
	}
	if pod.Spec.NodeName != "" || pod.DeletionTimestamp == nil || len(pod.Finalizers) > 0 {
		return nil
	}
	return c.remove(ctx, pod)
}

// remove deletes a pod without grace: nobody is there to use it.
func (c *Controller) remove(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
