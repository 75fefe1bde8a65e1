// Package namespace empties namespaces that are being deleted, and lets go of
// them when nothing is left.
//
// What a namespace can hold is asked of discovery each time, so custom resources
// go too. Pods go first, and everything else only when the last of them has
// ended: a NetworkPolicy, say, must not vanish while the pod that it restrains
// still runs. What remains, and for which finalizers, is told in the namespace's
// conditions.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// Config is the common one and what reaches kinds that are not known beforehand.
type Config struct {
	controller.Config
	// Discovery tells what there is.
	Discovery Discovery
	// Metadata lists and deletes it.
	Metadata metadata.Interface
}

// Discovery tells which kinds of objects namespaces can hold. What it returns
// beside an error is usable.
type Discovery interface {
	ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error)
}

// Controller deletes what is in namespaces that are being deleted.
type Controller struct {
	cfg  Config
	loop *controller.Loop
	now  func() time.Time
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("namespace controller: %w", err)
	}
	switch {
	case cfg.Discovery == nil:
		return nil, errors.New("namespace controller: config: Discovery is missing")
	case cfg.Metadata == nil:
		return nil, errors.New("namespace controller: config: Metadata is missing")
	}
	c := &Controller{cfg: cfg, now: time.Now}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "namespace", Sync: c.sync, Workers: 10, Logger: cfg.Logger})
	core := cfg.Informers.Core().V1()
	err := controller.Watch(c.loop, core.Namespaces().Informer(), func(_, cur *corev1.Namespace) {
		if cur != nil && cur.DeletionTimestamp != nil {
			c.loop.Add(cur.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("namespace controller: %w", err)
	}
	// The last pod that ends lets the rest go at once, not at the next try.
	err = controller.Watch(c.loop, core.Pods().Informer(), func(old, cur *corev1.Pod) {
		if cur != nil {
			return
		}
		if ns, err := core.Namespaces().Lister().Get(old.Namespace); err == nil && ns.DeletionTimestamp != nil {
			c.loop.Add(old.Namespace)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("namespace controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) sync(ctx context.Context, name string) error {
	ns, err := c.cfg.Informers.Core().V1().Namespaces().Lister().Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", name, err)
	}
	if ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return nil
	}
	left := c.empty(ctx, name)
	if left.nothing() {
		return c.finalize(ctx, ns)
	}
	if err := c.saveConditions(ctx, ns, left); err != nil {
		return err
	}
	if err := left.err(); err != nil {
		return fmt.Errorf("empty namespace %s: %w", name, err)
	}
	return controller.ErrAgain
}

// finalize lets the API server remove the namespace.
func (c *Controller) finalize(ctx context.Context, ns *corev1.Namespace) error {
	changed := ns.DeepCopy()
	changed.Spec.Finalizers = slices.DeleteFunc(changed.Spec.Finalizers, func(f corev1.FinalizerName) bool {
		return f == corev1.FinalizerKubernetes
	})
	_, err := c.cfg.Client.CoreV1().Namespaces().Finalize(ctx, changed, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("finalize namespace %s: %w", ns.Name, err)
	}
	return nil
}

// saveConditions tells what is left, if that differs from what was told.
func (c *Controller) saveConditions(ctx context.Context, ns *corev1.Namespace, left leftover) error {
	conditions, changed := merge(ns.Status.Conditions, left.conditions(), c.now())
	if !changed && ns.Status.Phase == corev1.NamespaceTerminating {
		return nil
	}
	next := ns.DeepCopy()
	next.Status.Phase = corev1.NamespaceTerminating
	next.Status.Conditions = conditions
	_, err := c.cfg.Client.CoreV1().Namespaces().UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update status of namespace %s: %w", ns.Name, err)
	}
	return nil
}
