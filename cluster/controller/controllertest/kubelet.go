package controllertest

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// RunPods plays the node: it makes every pod ready after delay, as often as good
// accepts it; the others stay Pending. Call it before Run.
func (c *Cluster) RunPods(t *testing.T, delay time.Duration, good func(*corev1.Pod) bool) {
	t.Helper()
	start := func(obj any) {
		pod, ok := obj.(*corev1.Pod)
		if !ok || len(pod.Status.Conditions) > 0 || good != nil && !good(pod) {
			return
		}
		time.AfterFunc(delay, func() {
			p := pod.DeepCopy()
			p.Spec.NodeName = nodeFor(p)
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
			}}
			// Whoever deleted it in the meantime was faster.
			_, _ = c.Client.CoreV1().Pods(p.Namespace).Update(context.Background(), p, metav1.UpdateOptions{})
		})
	}
	_, err := c.Config.Informers.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    start,
		UpdateFunc: func(_, obj any) { start(obj) },
	})
	if err != nil {
		t.Fatal(err)
	}
}

// nodeFor is the node that a pod's affinity names, or any.
func nodeFor(pod *corev1.Pod) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range term.MatchFields {
				if f.Key == "metadata.name" && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return "node"
}
