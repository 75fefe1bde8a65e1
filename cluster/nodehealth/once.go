package nodehealth

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// Once reports whether a pod has an identity that must not be there twice. Nodes
// decide the same (node/pod).
func Once(pod *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(pod)
	return ref != nil && ref.Kind == "StatefulSet"
}

// RunsOn is for how long a node that is cut off goes on with a pod that must not
// run twice; nodes decide the same (node/pod). It is false for pods that may run
// on without end: those that tolerate it for ever, and those whose tolerations may
// have changed since the node last heard of them (a deletion is a change, too,
// which says nothing of them). Other pods are replaced without regard to where
// they run; a lease counts for them as if they tolerated nothing.
func RunsOn(pod *corev1.Pod) (time.Duration, bool) {
	if !Once(pod) {
		return 0, true
	}
	first := int64(1)
	if pod.DeletionTimestamp != nil {
		first++
	}
	if pod.Generation > first {
		return 0, false
	}
	taint := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}
	var d time.Duration
	tolerated, bounded := false, false
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if !t.ToleratesTaint(klog.Background(), &taint, false) {
			continue
		}
		tolerated = true
		if t.TolerationSeconds == nil {
			continue
		}
		s := time.Duration(max(0, *t.TolerationSeconds)) * time.Second
		if !bounded || s < d {
			d, bounded = s, true
		}
	}
	return d, !tolerated || bounded
}

// OutOfService reports whether somebody says that a node, which does not work, has
// no running pods.
func OutOfService(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeOutOfService {
			return true
		}
	}
	return false
}
