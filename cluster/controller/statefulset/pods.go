package statefulset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// apply carries out a plan.
func (c *Controller) apply(ctx context.Context, in input, p plan) error {
	var errs []error
	for _, pod := range p.failed {
		c.cfg.Events.Eventf(in.set, corev1.EventTypeWarning, "RecreatingFailedPod",
			"StatefulSet %s/%s is recreating failed Pod %s", in.set.Namespace, in.set.Name, pod.Name)
		errs = append(errs, c.remove(ctx, in.set, pod))
	}
	for _, pod := range p.remove {
		errs = append(errs, c.remove(ctx, in.set, pod))
	}
	for _, n := range p.create {
		errs = append(errs, c.create(ctx, in.set, n))
	}
	return errors.Join(errs...)
}

func (c *Controller) remove(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	switch {
	case err == nil:
		c.cfg.Events.Eventf(set, corev1.EventTypeNormal, "SuccessfulDelete", "delete Pod %s in StatefulSet %s successful", pod.Name, set.Name)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	c.cfg.Events.Eventf(set, corev1.EventTypeWarning, "FailedDelete", "delete Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
	return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
}

// create makes a pod and, before it, its claims. A pod of the name that exists
// already is one that the cache does not show yet, or a stranger; its event, or
// its end, leads here again.
func (c *Controller) create(ctx context.Context, set *appsv1.StatefulSet, n creation) error {
	pod, err := podFor(set, n.ordinal, n.revision)
	if err != nil {
		return err
	}
	for _, claim := range claimsFor(set, n.ordinal) {
		if err := c.createClaim(ctx, set, pod, claim); err != nil {
			return err
		}
	}
	_, err = c.cfg.Client.CoreV1().Pods(set.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.cfg.Events.Eventf(set, corev1.EventTypeNormal, "SuccessfulCreate", "create Pod %s in StatefulSet %s successful", pod.Name, set.Name)
		return nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsAlreadyExists(err):
		return controller.ErrAgain
	}
	c.cfg.Events.Eventf(set, corev1.EventTypeWarning, "FailedCreate", "create Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
	return fmt.Errorf("create pod %s/%s: %w", pod.Namespace, pod.Name, err)
}

// podFor is the pod of an ordinal, from the template that a revision holds.
func podFor(set *appsv1.StatefulSet, ordinal int, revision *appsv1.ControllerRevision) (*corev1.Pod, error) {
	t, err := controller.TemplateOf(revision)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%d", set.Name, ordinal)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: set.Namespace, Labels: maps.Clone(t.Labels), Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, kind)},
		},
		Spec: t.Spec,
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinal)
	pod.Labels[controller.RevisionLabel] = revision.Name
	pod.Spec.Hostname = name
	pod.Spec.Subdomain = set.Spec.ServiceName
	for _, template := range set.Spec.VolumeClaimTemplates {
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == template.Name })
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: template.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(template.Name, set.Name, ordinal)},
		}})
	}
	return pod, nil
}

func claimName(template, set string, ordinal int) string {
	return fmt.Sprintf("%s-%s-%d", template, set, ordinal)
}

// claimsFor are the volume claims of an ordinal, without owners.
func claimsFor(set *appsv1.StatefulSet, ordinal int) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range set.Spec.VolumeClaimTemplates {
		claim := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		claim.Name = claimName(claim.Name, set.Name, ordinal)
		claim.Namespace = set.Namespace
		if claim.Labels == nil {
			claim.Labels = map[string]string{}
		}
		maps.Copy(claim.Labels, set.Spec.Selector.MatchLabels)
		claim.Status = corev1.PersistentVolumeClaimStatus{}
		out = append(out, claim)
	}
	return out
}
