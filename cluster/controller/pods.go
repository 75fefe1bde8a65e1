package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Names of the pod indexes: Owned and Orphans read the first, On the second.
const (
	podsByOwner = "skiff/owner"
	podsByNode  = "skiff/node"
)

// IndexPodsByOwner adds the index that Owned and Orphans need. Several
// controllers may ask for it on one informer, before or after it starts.
func IndexPodsByOwner(inf cache.SharedIndexInformer) error {
	return index(inf, podsByOwner, func(pod *corev1.Pod) string {
		if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
			return string(ref.UID)
		}
		return "orphans/" + pod.Namespace
	})
}

// IndexPodsByNode adds the index that On needs, under the same terms.
func IndexPodsByNode(inf cache.SharedIndexInformer) error {
	return index(inf, podsByNode, func(pod *corev1.Pod) string { return pod.Spec.NodeName })
}

func index(inf cache.SharedIndexInformer, name string, value func(*corev1.Pod) string) error {
	if _, ok := inf.GetIndexer().GetIndexers()[name]; ok {
		return nil
	}
	err := inf.AddIndexers(cache.Indexers{name: func(obj any) ([]string, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		return []string{value(pod)}, nil
	}})
	if err != nil {
		return fmt.Errorf("index pods by %s: %w", name, err)
	}
	return nil
}

// Owned returns the cached pods that uid controls.
func Owned(inf cache.SharedIndexInformer, uid types.UID) []*corev1.Pod {
	return podsAt(inf, podsByOwner, string(uid))
}

// Orphans returns the cached pods of a namespace that nothing controls.
func Orphans(inf cache.SharedIndexInformer, namespace string) []*corev1.Pod {
	return podsAt(inf, podsByOwner, "orphans/"+namespace)
}

// On returns the cached pods of a node; of none, for "".
func On(inf cache.SharedIndexInformer, node string) []*corev1.Pod {
	return podsAt(inf, podsByNode, node)
}

func podsAt(inf cache.SharedIndexInformer, index, value string) []*corev1.Pod {
	objs, err := inf.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil
	}
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, obj := range objs {
		if pod, ok := obj.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return pods
}

// Active reports whether a pod still counts: neither finished nor being deleted.
func Active(pod *corev1.Pod) bool { return !Finished(pod) && pod.DeletionTimestamp == nil }

// Finished reports whether every container of a pod has ended for good.
func Finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// Condition returns the pod's condition of type t, or nil.
func Condition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// Ready reports whether a pod's Ready condition is true.
func Ready(pod *corev1.Pod) bool {
	c := Condition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available reports whether a pod has been ready for minReadySeconds, and if it
// is ready but not yet for so long, how much is missing.
func Available(pod *corev1.Pod, minReadySeconds int32, now time.Time) (ok bool, missing time.Duration) {
	c := Condition(pod, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, 0
	}
	if minReadySeconds == 0 {
		return true, 0
	}
	if c.LastTransitionTime.IsZero() {
		return false, 0
	}
	missing = c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
	return missing <= 0, max(missing, 0)
}

// Disrupt records in a pod's status that it is about to be deleted, and why, for
// those who watch it.
func Disrupt(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, phase corev1.PodPhase, reason, message string) error {
	status := map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		LastTransitionTime: metav1.Now(), ObservedGeneration: pod.Generation,
	}}}
	if phase != "" {
		status["phase"] = phase
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("encode condition of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	_, err = client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("mark pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// deletionCost is the annotation by which users rank pods for deletion.
const deletionCost = "controller.kubernetes.io/pod-deletion-cost"

// SortForDeletion orders pods so that those whose loss hurts least come first:
// unassigned before assigned, Pending before Unknown before Running, not ready
// before ready, low deletion cost first, those that share their node with more
// siblings first, ready for a shorter time first (in powers of ten of seconds,
// so that small differences do not decide), more restarts first, younger first.
// siblings holds all pods of the same owner family, for the node ranking.
func SortForDeletion(pods, siblings []*corev1.Pod, now time.Time) {
	perNode := map[string]int{}
	for _, p := range siblings {
		if Active(p) {
			perNode[p.Spec.NodeName]++
		}
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(
			truthFirst(a.Spec.NodeName == "", b.Spec.NodeName == ""),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			truthFirst(!Ready(a), !Ready(b)),
			cmp.Compare(costOf(a), costOf(b)),
			cmp.Compare(perNode[b.Spec.NodeName], perNode[a.Spec.NodeName]),
			cmp.Compare(ageRank(readySince(a), now), ageRank(readySince(b), now)),
			cmp.Compare(restarts(b), restarts(a)),
			cmp.Compare(ageRank(a.CreationTimestamp.Time, now), ageRank(b.CreationTimestamp.Time, now)),
			cmp.Compare(string(a.UID), string(b.UID)),
		)
	})
}

func truthFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodPending, "":
		return 0
	case corev1.PodUnknown:
		return 1
	}
	return 2
}

func costOf(pod *corev1.Pod) int64 {
	n, err := strconv.ParseInt(pod.Annotations[deletionCost], 10, 32)
	if err != nil {
		return 0 // absent, or what upstream ignores too
	}
	return n
}

func readySince(pod *corev1.Pod) time.Time {
	if c := Condition(pod, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// ageRank is the order of magnitude, in powers of two, of the time since t; an
// unset time ranks youngest.
func ageRank(t, now time.Time) int {
	if t.IsZero() {
		return -1
	}
	rank := 0
	for age := now.Sub(t); age > time.Second; age /= 2 {
		rank++
	}
	return rank
}

func restarts(pod *corev1.Pod) int32 {
	var most int32
	for _, c := range pod.Status.ContainerStatuses {
		most = max(most, c.RestartCount)
	}
	return most
}
