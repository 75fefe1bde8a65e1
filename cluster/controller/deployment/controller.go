// Package deployment rolls ReplicaSets over as Deployments ask for.
//
// Every template of a Deployment gets a ReplicaSet, told apart by the label
// pod-template-hash; the one whose template equals the Deployment's is the new
// one, the others are its history, numbered by a revision annotation. A sync
// takes the next step from one to the other within maxSurge and maxUnavailable,
// and the change of a ReplicaSet's status leads to the next sync.
package deployment

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// minInterval bounds how often one Deployment is synced while its pods change.
const minInterval = 10 * time.Millisecond

var (
	deploymentKind = appsv1.SchemeGroupVersion.WithKind("Deployment")
	replicaSetKind = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
)

// Controller reconciles Deployments.
type Controller struct {
	cfg         controller.Config
	loop        *controller.Loop
	deployments appslisters.DeploymentLister
	replicaSets appslisters.ReplicaSetLister
	pods        cache.SharedIndexInformer
	now         func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	apps := cfg.Informers.Apps().V1()
	c := &Controller{
		cfg: cfg, now: time.Now,
		deployments: apps.Deployments().Lister(),
		replicaSets: apps.ReplicaSets().Lister(),
		pods:        cfg.Informers.Core().V1().Pods().Informer(),
	}
	c.loop = controller.NewLoop(controller.LoopConfig{
		Name: "deployment", Sync: c.sync, Workers: 5, MinInterval: minInterval, Logger: cfg.Logger,
	})
	if err := c.watch(); err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	return c, nil
}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) watch() error {
	if err := controller.IndexPodsByOwner(c.pods); err != nil {
		return err
	}
	apps := c.cfg.Informers.Apps().V1()
	err := controller.Watch(c.loop, apps.Deployments().Informer(), func(old, cur *appsv1.Deployment) {
		if cur == nil {
			cur = old
		}
		c.loop.Add(controller.Key(cur.Namespace, cur.Name))
	})
	if err != nil {
		return err
	}
	if err := controller.Watch(c.loop, apps.ReplicaSets().Informer(), c.replicaSetChanged); err != nil {
		return err
	}
	return controller.Watch(c.loop, c.pods, c.podChanged)
}

func (c *Controller) replicaSetChanged(old, cur *appsv1.ReplicaSet) {
	if old != nil {
		c.addOwner(old)
	}
	if cur == nil {
		return
	}
	c.addOwner(cur)
	if metav1.GetControllerOfNoCopy(cur) != nil || cur.DeletionTimestamp != nil {
		return
	}
	if old != nil && metav1.GetControllerOfNoCopy(old) == nil && labels.Equals(old.Labels, cur.Labels) {
		return
	}
	for _, d := range c.matching(cur) {
		c.loop.Add(controller.Key(d.Namespace, d.Name))
	}
}

// podChanged matters to Recreate alone, which waits for the last old pod to go.
func (c *Controller) podChanged(old, cur *corev1.Pod) {
	if old == nil || cur != nil && !controller.Finished(cur) {
		return
	}
	ref := metav1.GetControllerOfNoCopy(old)
	if ref == nil || ref.Kind != replicaSetKind.Kind {
		return
	}
	rs, err := c.replicaSets.ReplicaSets(old.Namespace).Get(ref.Name)
	if err != nil || rs.UID != ref.UID {
		return
	}
	owner := metav1.GetControllerOfNoCopy(rs)
	if owner == nil || owner.Kind != deploymentKind.Kind {
		return
	}
	d, err := c.deployments.Deployments(old.Namespace).Get(owner.Name)
	if err == nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		c.loop.Add(controller.Key(d.Namespace, d.Name))
	}
}

func (c *Controller) addOwner(rs *appsv1.ReplicaSet) {
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil && ref.Kind == deploymentKind.Kind {
		c.loop.Add(controller.Key(rs.Namespace, ref.Name))
	}
}

// matching returns the Deployments that may adopt an orphan.
func (c *Controller) matching(rs *appsv1.ReplicaSet) []*appsv1.Deployment {
	all, err := c.deployments.Deployments(rs.Namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	var out []*appsv1.Deployment
	for _, d := range all {
		selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(rs.Labels)) {
			out = append(out, d)
		}
	}
	return out
}

func (c *Controller) sync(ctx context.Context, key string) error {
	namespace, name := controller.SplitKey(key)
	cached, err := c.deployments.Deployments(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read deployment %s: %w", key, err)
	}
	d := cached.DeepCopy()
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || selector.Empty() {
		c.cfg.Events.Event(d, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return nil
	}
	all, err := c.claim(ctx, d, selector)
	if err != nil {
		return err
	}
	r := &rollout{c: c, d: d}
	r.sort(all)
	if d.DeletionTimestamp != nil {
		return r.saveStatus(ctx)
	}
	r.notePause()
	switch {
	case d.Spec.Paused:
		return r.resize(ctx)
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		return r.recreate(ctx)
	case r.resized():
		return r.resize(ctx)
	}
	return r.roll(ctx)
}

// claim adopts and releases, and returns the ReplicaSets that d holds.
func (c *Controller) claim(ctx context.Context, d *appsv1.Deployment, selector labels.Selector) ([]*appsv1.ReplicaSet, error) {
	all, err := c.replicaSets.ReplicaSets(d.Namespace).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list replica sets: %w", err)
	}
	claim := controller.Claim[*appsv1.ReplicaSet]{
		Owner: d, Kind: deploymentKind, Selector: selector,
		StillThere: func(ctx context.Context) (types.UID, bool, error) {
			fresh, err := c.cfg.Client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
			if err != nil {
				return "", false, err
			}
			return fresh.UID, fresh.DeletionTimestamp != nil, nil
		},
		Patch: func(ctx context.Context, rs *appsv1.ReplicaSet, patch []byte) error {
			_, err := c.cfg.Client.AppsV1().ReplicaSets(rs.Namespace).Patch(ctx, rs.Name,
				types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
	held, err := claim.Of(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("claim replica sets of deployment %s/%s: %w", d.Namespace, d.Name, err)
	}
	return held, nil
}
