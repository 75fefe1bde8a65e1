package podgc

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/nodehealth"
)

// askAgain is how often a pod is looked at whose node's lease cannot be judged
// now, as while evictions are frozen.
const askAgain = 5 * time.Second

// nodeChanged looks at the deleted pods of a node that is lost, or is said to be
// out of service.
func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if !lost(cur) && !nodehealth.OutOfService(cur) || old != nil && lost(old) == lost(cur) && nodehealth.OutOfService(old) == nodehealth.OutOfService(cur) {
		return
	}
	for _, pod := range controller.On(c.pods, cur.Name) {
		if pod.DeletionTimestamp != nil {
			c.loop.AddNow(stranded + controller.Key(pod.Namespace, pod.Name))
		}
	}
}

func readiness(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

// lost reports whether a node cannot be reached.
func lost(node *corev1.Node) bool { return readiness(node) == corev1.ConditionUnknown }

// removeStranded removes a deleted pod of a lost node as soon as the node has
// certainly stopped it, so that its controller may replace it.
//
// The order is what makes it safe (see ../DESIGN.md): the pod is read, then the
// lease is over, then this server still leads, and the deletion fails if the pod
// was written since: a node that has come back writes before it starts anything.
func (c *Controller) removeStranded(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	core := c.cfg.Informers.Core().V1()
	pod, err := core.Pods().Lister().Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s: %w", key, err)
	}
	if pod.DeletionTimestamp == nil || pod.Spec.NodeName == "" {
		return nil
	}
	node, err := core.Nodes().Lister().Get(pod.Spec.NodeName)
	if apierrors.IsNotFound(err) {
		return nil // see removeFrom
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", pod.Spec.NodeName, err)
	}
	why := "its node is out of service"
	if !nodehealth.OutOfService(node) {
		if !lost(node) || c.cfg.Leases == nil {
			return nil
		}
		tolerated, ok := nodehealth.RunsOn(pod)
		if !ok {
			c.cfg.Logger.Debug("a pod of a lost node has to be removed by hand", "pod", key, "node", node.Name)
			return nil
		}
		at, ok := c.cfg.Leases.OverAt(node.Name, tolerated)
		if !ok {
			c.loop.AddAfter(stranded+key, askAgain)
			return nil
		}
		if wait := time.Until(at); wait > 0 {
			c.loop.AddAfter(stranded+key, wait)
			return nil
		}
		if err := c.cfg.Leases.Confirm(ctx); err != nil {
			return fmt.Errorf("before removing pod %s: %w", key, err)
		}
		why = "its node is lost and may not run it any more"
	}
	now := int64(0)
	err = c.cfg.Client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now,
		Preconditions: &metav1.Preconditions{UID: &pod.UID, ResourceVersion: &pod.ResourceVersion}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", key, err)
	}
	c.cfg.Logger.Info("pod removed without its node", "pod", key, "node", node.Name, "why", why)
	c.cfg.Events.Eventf(pod, corev1.EventTypeNormal, "RemovedFromLostNode", "Removed from node %s: %s", node.Name, why)
	return nil
}
