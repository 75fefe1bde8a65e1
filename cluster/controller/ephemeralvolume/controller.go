// Package ephemeralvolume makes the claims of generic ephemeral volumes: claims
// from a template in the pod, which end with the pod. That they end is the
// garbage collector's work, since the pod owns them.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// Controller makes claims.
type Controller struct {
	cfg    controller.Config
	loop   *controller.Loop
	pods   corelisters.PodLister
	byPod  cache.SharedIndexInformer
	claims corelisters.PersistentVolumeClaimLister
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("ephemeralvolume controller: %w", err)
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{cfg: cfg, pods: core.Pods().Lister(), byPod: core.Pods().Informer(), claims: core.PersistentVolumeClaims().Lister()}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "ephemeralvolume", Sync: c.sync, Workers: 4, Logger: cfg.Logger})
	err := errors.Join(
		controller.IndexPodsByClaim(c.byPod),
		controller.Watch(c.loop, c.byPod, func(old, cur *corev1.Pod) {
			if cur != nil && (old == nil || old.UID != cur.UID) && slices.ContainsFunc(cur.Spec.Volumes, isEphemeral) {
				c.loop.Add(controller.Key(cur.Namespace, cur.Name))
			}
		}),
		controller.Watch(c.loop, core.PersistentVolumeClaims().Informer(), func(old, cur *corev1.PersistentVolumeClaim) {
			if cur != nil {
				return
			}
			for _, pod := range controller.PodsWithClaim(c.byPod, old.Namespace, old.Name) {
				c.loop.Add(controller.Key(pod.Namespace, pod.Name))
			}
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("ephemeralvolume controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func isEphemeral(v corev1.Volume) bool { return v.Ephemeral != nil }

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	pod, err := c.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s: %w", key, err)
	}
	if !controller.Active(pod) {
		return nil
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		if err := c.ensure(ctx, pod, v); err != nil {
			c.cfg.Events.Eventf(pod, corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", v.Name, err)
			return fmt.Errorf("pod %s, ephemeral volume %s: %w", key, v.Name, err)
		}
	}
	return nil
}

// ensure makes the claim of a volume unless it is there. One of that name that
// is not the pod's own is never used.
func (c *Controller) ensure(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) error {
	claim, err := c.claims.PersistentVolumeClaims(pod.Namespace).Get(ephemeral.VolumeClaimName(pod, v))
	switch {
	case err == nil:
		return ephemeral.VolumeIsForPod(pod, claim)
	case !apierrors.IsNotFound(err):
		return err
	}
	template := v.Ephemeral.VolumeClaimTemplate
	claim = &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: ephemeral.VolumeClaimName(pod, v), Namespace: pod.Namespace, Labels: template.Labels, Annotations: template.Annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))},
		},
		Spec: template.Spec,
	}
	_, err = c.cfg.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	switch {
	case err == nil || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsAlreadyExists(err): // and the cache does not show it yet
		if claim, err = c.cfg.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, claim.Name, metav1.GetOptions{}); err == nil {
			return ephemeral.VolumeIsForPod(pod, claim)
		}
		return err
	}
	return fmt.Errorf("create PVC %s: %w", claim.Name, err)
}
