// Package volumeprotection keeps claims that are deleted until no pod uses them,
// and volumes until no claim is bound to them. Both bear a finalizer from their
// creation on (admission); this controller removes it, and adds it to objects
// that are older than the admission.
package volumeprotection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// Keys of the work queue.
const (
	claimKey  = "claim/"  // and namespace/name
	volumeKey = "volume/" // and name
)

// Controller adds and removes the finalizers.
type Controller struct {
	cfg     controller.Config
	loop    *controller.Loop
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	pods    cache.SharedIndexInformer
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("volumeprotection controller: %w", err)
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{cfg: cfg, claims: core.PersistentVolumeClaims().Lister(), volumes: core.PersistentVolumes().Lister(), pods: core.Pods().Informer()}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "volumeprotection", Sync: c.sync, Workers: 2, Logger: cfg.Logger})
	err := errors.Join(
		controller.IndexPodsByClaim(c.pods),
		controller.Watch(c.loop, core.PersistentVolumeClaims().Informer(), func(_, cur *corev1.PersistentVolumeClaim) {
			if cur != nil && (cur.DeletionTimestamp != nil) == slices.Contains(cur.Finalizers, claimFinalizer) {
				c.loop.Add(claimKey + controller.Key(cur.Namespace, cur.Name))
			}
		}),
		controller.Watch(c.loop, core.PersistentVolumes().Informer(), func(_, cur *corev1.PersistentVolume) {
			if cur != nil && (cur.DeletionTimestamp != nil) == slices.Contains(cur.Finalizers, volumeFinalizer) {
				c.loop.Add(volumeKey + cur.Name)
			}
		}),
		controller.Watch(c.loop, c.pods, c.podChanged),
	)
	if err != nil {
		return nil, fmt.Errorf("volumeprotection controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

// podChanged looks at the claims of pods that may have let them go.
func (c *Controller) podChanged(old, cur *corev1.Pod) {
	pod := cur
	switch {
	case cur == nil:
		pod = old
	case old != nil && old.UID != cur.UID:
		c.podChanged(old, nil)
	case !shutDown(cur):
		return
	}
	for _, name := range controller.ClaimNames(pod) {
		c.loop.Add(claimKey + controller.Key(pod.Namespace, name))
	}
}

func (c *Controller) sync(ctx context.Context, key string) error {
	if name, ok := strings.CutPrefix(key, volumeKey); ok {
		return c.syncVolume(ctx, name)
	}
	return c.syncClaim(ctx, strings.TrimPrefix(key, claimKey))
}

func (c *Controller) syncVolume(ctx context.Context, name string) error {
	v, err := c.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read volume %s: %w", name, err)
	}
	finalizers := v.Finalizers
	switch has := slices.Contains(finalizers, volumeFinalizer); {
	case v.DeletionTimestamp == nil && !has:
		finalizers = append(slices.Clone(finalizers), volumeFinalizer)
	case v.DeletionTimestamp != nil && has && v.Status.Phase != corev1.VolumeBound:
		finalizers = without(finalizers, volumeFinalizer)
	default:
		return nil
	}
	next := v.DeepCopy()
	next.Finalizers = finalizers
	if _, err := c.cfg.Client.CoreV1().PersistentVolumes().Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("protection of volume %s: %w", name, err)
	}
	return nil
}

func (c *Controller) syncClaim(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read claim %s: %w", key, err)
	}
	finalizers := claim.Finalizers
	switch has := slices.Contains(finalizers, claimFinalizer); {
	case claim.DeletionTimestamp == nil && !has:
		finalizers = append(slices.Clone(finalizers), claimFinalizer)
	case claim.DeletionTimestamp != nil && has:
		used, err := c.used(ctx, claim)
		if err != nil || used {
			return err
		}
		finalizers = without(finalizers, claimFinalizer)
	default:
		return nil
	}
	next := claim.DeepCopy()
	next.Finalizers = finalizers
	if _, err := c.cfg.Client.CoreV1().PersistentVolumeClaims(namespace).Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("protection of claim %s: %w", key, err)
	}
	return nil
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

// used reports whether a pod that has a node uses a claim. That none does is
// asked of the API too: the cache may not know yet of one that was just bound.
// A pod without a node does not count, since none is given to it any more.
func (c *Controller) used(ctx context.Context, claim *corev1.PersistentVolumeClaim) (bool, error) {
	for _, pod := range controller.PodsWithClaim(c.pods, claim.Namespace, claim.Name) {
		if uses(pod, claim) {
			return true, nil
		}
	}
	list, err := c.cfg.Client.CoreV1().Pods(claim.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, fmt.Errorf("pods that use claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	for i := range list.Items {
		if uses(&list.Items[i], claim) {
			return true, nil
		}
	}
	return false, nil
}

func uses(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) bool {
	if pod.Spec.NodeName == "" {
		return false
	}
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name:
			return true // also when it has finished: it is still there to be looked at
		case v.Ephemeral != nil && ephemeral.VolumeClaimName(pod, v) == claim.Name && ephemeral.VolumeIsForPod(pod, claim) == nil:
			return !shutDown(pod) // its end waits for the claim's
		}
	}
	return false
}

// shutDown reports whether a pod that was deleted has been let go by its node,
// or by force, and only waits for what depends on it.
func shutDown(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds == 0
}
