package replicaset

import (
	"context"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// burst is the most pods that one sync creates or deletes.
const burst = 500

// plan is what resize has to do.
type plan struct {
	create int
	remove []*corev1.Pod
}

// decide compares the active pods with what owner asks for. family holds the
// pods of the owner's siblings, which matter for the choice of what to remove.
func decide(owner *appsv1.ReplicaSet, held, family []*corev1.Pod, now time.Time) plan {
	var active []*corev1.Pod
	for _, pod := range held {
		if controller.Active(pod) {
			active = append(active, pod)
		}
	}
	missing := int(wanted(owner)) - len(active)
	switch {
	case missing > 0:
		return plan{create: min(missing, burst)}
	case missing < 0:
		excess := min(-missing, burst)
		if excess < len(active) { // no ranking when all go
			controller.SortForDeletion(active, family, now)
		}
		return plan{remove: active[:excess]}
	}
	return plan{}
}

// resize creates or deletes pods. What it returns goes into the ReplicaFailure
// condition.
func (c *Controller) resize(ctx context.Context, key string, owner *appsv1.ReplicaSet, held []*corev1.Pod) error {
	var family []*corev1.Pod
	for _, uid := range c.kind.family(owner) {
		family = append(family, controller.Owned(c.pods, uid)...)
	}
	p := decide(owner, held, family, c.now())
	if p.create > 0 {
		return c.createPods(ctx, key, owner, p.create)
	}
	if len(p.remove) > 0 {
		return c.deletePods(ctx, key, owner, p.remove)
	}
	return nil
}

// createPods creates n pods in batches that double while all of a batch succeed.
func (c *Controller) createPods(ctx context.Context, key string, owner *appsv1.ReplicaSet, n int) error {
	pod := podFor(owner, *metav1.NewControllerRef(owner, c.kind.gvk()))
	c.pending.ExpectCreations(key, n)
	done, err := slowStart(n, func() error {
		err := c.createPod(ctx, owner, pod)
		if err != nil {
			c.pending.CreationObserved(key)
		}
		return err
	})
	c.pending.CreationsObserved(key, n-done) // those that were never tried
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // no pod will ever come of it, and soon the owner goes too
	}
	return err
}

func (c *Controller) createPod(ctx context.Context, owner *appsv1.ReplicaSet, pod *corev1.Pod) error {
	made, err := c.cfg.Client.CoreV1().Pods(owner.Namespace).Create(ctx, pod.DeepCopy(), metav1.CreateOptions{})
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.cfg.Events.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return err
	}
	c.cfg.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", made.Name)
	return nil
}

// slowStart calls fn up to n times, in parallel batches of 1, 2, 4 ..., and stops
// after the first batch with an error. It returns how many calls were made.
func slowStart(n int, fn func() error) (tried int, err error) {
	for batch := 1; tried < n; batch *= 2 {
		size := min(batch, n-tried)
		errs := make(chan error, size)
		var wg sync.WaitGroup
		for range size {
			wg.Go(func() {
				if err := fn(); err != nil {
					errs <- err
				}
			})
		}
		wg.Wait()
		tried += size
		select {
		case err := <-errs:
			return tried, err
		default:
		}
	}
	return tried, nil
}

func (c *Controller) deletePods(ctx context.Context, key string, owner *appsv1.ReplicaSet, pods []*corev1.Pod) error {
	names := make([]string, len(pods))
	for i, pod := range pods {
		names[i] = podKey(pod)
	}
	c.pending.ExpectDeletions(key, names...)
	errs := make(chan error, len(pods))
	var wg sync.WaitGroup
	for _, pod := range pods {
		wg.Go(func() {
			if err := c.deletePod(ctx, owner, pod); err != nil {
				c.pending.DeletionObserved(key, podKey(pod))
				if !apierrors.IsNotFound(err) {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func (c *Controller) deletePod(ctx context.Context, owner *appsv1.ReplicaSet, pod *corev1.Pod) error {
	err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
	switch {
	case err == nil:
		c.cfg.Events.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
	case !apierrors.IsNotFound(err):
		c.cfg.Events.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
	}
	return err
}

// podFor is a pod from owner's template, named by the API server.
func podFor(owner *appsv1.ReplicaSet, ref metav1.OwnerReference) *corev1.Pod {
	t := owner.Spec.Template.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName:    namePrefix(owner.Name),
			Namespace:       owner.Namespace,
			Labels:          t.Labels,
			Annotations:     t.Annotations,
			Finalizers:      t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{ref},
		},
		Spec: t.Spec,
	}
}

// namePrefix ends in a dash unless that makes the name invalid.
func namePrefix(name string) string {
	if len(validation.NameIsDNSSubdomain(name+"-", true)) > 0 {
		return name
	}
	return name + "-"
}
