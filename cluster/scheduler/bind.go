package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// bindWithVolumes is bind for a pod with claims that get their volumes on the
// node. It waits for those of others, so it does not take a worker.
func (s *Scheduler) bindWithVolumes(ctx context.Context, it *item, p *podInfo, node string) {
	err := s.bindVolumes(ctx, p.pod, p.plan)
	s.state.volumes.release(p.plan)
	if err != nil {
		s.bindFailed(ctx, it, p.pod, node, fmt.Errorf("binding volumes: %w", err))
		s.queue.move(volumeChanged) // what was meant for its claims is free again
		return
	}
	s.later(ctx, func(ctx context.Context) { s.bind(ctx, it, p.pod, node) })
}

// bind writes a decision; on failure the pod is taken off its node again and
// comes back later.
func (s *Scheduler) bind(ctx context.Context, it *item, pod *corev1.Pod, node string) {
	err := s.cfg.Binder.Bind(ctx, pod, node)
	if err == nil {
		s.queue.done(it)
		s.cfg.Events.Eventf(pod, corev1.EventTypeNormal, "Scheduled",
			"Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)
		return
	}
	s.bindFailed(ctx, it, pod, node, err)
}

func (s *Scheduler) bindFailed(ctx context.Context, it *item, pod *corev1.Pod, node string, err error) {
	s.state.forget(pod.UID)
	s.queue.move(podGone) // the room is free again
	switch {
	case ctx.Err() != nil:
		return
	case noPod(err):
		s.queue.done(it)
		return
	case apierrors.IsConflict(err): // placed by someone else: the informer tells where
	default:
		s.cfg.Logger.Warn("binding failed, will retry", "pod", pod.Namespace+"/"+pod.Name, "node", node, "error", err)
		s.cfg.Events.Eventf(pod, corev1.EventTypeWarning, "FailedScheduling", "%v", err)
	}
	s.queue.retry(it)
}

// noPod reports whether err is that a pod does not exist: a claim or a volume that
// does not is another matter.
func noPod(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Kind == "pods"
}

// refuse tells the user why a pod has no node, and lets it wait for a change.
// The same words are not written twice without something having happened, unless
// the event would expire.
func (s *Scheduler) refuse(ctx context.Context, it *item, pod *corev1.Pod, message string, wakes event) {
	repeated := s.queue.repeats(it, message)
	s.queue.park(it, wakes)
	if repeated {
		return
	}
	s.cfg.Events.Event(pod, corev1.EventTypeWarning, "FailedScheduling", message)
	if !said(pod, message) {
		s.later(ctx, func(ctx context.Context) { s.explain(ctx, pod, message) })
	}
}

// explain records the refusal in the pod's status. The write holds only for the
// version of the pod that was seen: one that got a node in the meantime must not
// be called unschedulable.
func (s *Scheduler) explain(ctx context.Context, pod *corev1.Pod, message string) {
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
		Reason: corev1.PodReasonUnschedulable, Message: message,
		ObservedGeneration: pod.Generation,
	}
	err := s.cfg.Binder.Explain(ctx, pod, condition)
	if apierrors.IsConflict(err) {
		newer, getErr := s.pods.Pods(pod.Namespace).Get(pod.Name)
		if getErr != nil || newer.UID != pod.UID || newer.Spec.NodeName != "" || s.state.isAssumed(pod.UID) {
			return
		}
		err = s.cfg.Binder.Explain(ctx, newer, condition)
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		s.cfg.Logger.Warn("cannot record why a pod is not scheduled", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	}
}

// said reports whether the pod's status holds the message already.
func said(pod *corev1.Pod, message string) bool {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == corev1.PodScheduled {
			return c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable && c.Message == message
		}
	}
	return false
}

// apiBinder writes through the API.
type apiBinder struct{ client kubernetes.Interface }

// NewBinder returns a Binder that posts to pods/binding and patches pods/status.
func NewBinder(client kubernetes.Interface) Binder { return apiBinder{client} }

func (b apiBinder) Bind(ctx context.Context, pod *corev1.Pod, node string) error {
	err := b.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("bind pod %s/%s to %s: %w", pod.Namespace, pod.Name, node, err)
	}
	return nil
}

func (b apiBinder) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	claim, err := b.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read claim %s/%s: %w", namespace, name, err)
	}
	return claim, nil
}

func (b apiBinder) UpdateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	out, err := b.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("update claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return out, nil
}

func (b apiBinder) UpdateVolume(ctx context.Context, v *corev1.PersistentVolume) error {
	if _, err := b.client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update volume %s: %w", v.Name, err)
	}
	return nil
}

func (b apiBinder) Explain(ctx context.Context, pod *corev1.Pod, c corev1.PodCondition) error {
	c.LastTransitionTime = metav1.NewTime(time.Now())
	for i := range pod.Status.Conditions {
		if old := &pod.Status.Conditions[i]; old.Type == c.Type && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID, "resourceVersion": pod.ResourceVersion},
		"status":   map[string]any{"conditions": []corev1.PodCondition{c}},
	})
	if err != nil {
		return fmt.Errorf("encode condition of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	_, err = b.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("patch status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
