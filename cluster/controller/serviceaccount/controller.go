// Package serviceaccount gives every namespace the service account `default`,
// which pods run as that name no other, and makes it anew when it is deleted.
package serviceaccount

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const accountName = "default"

// Controller creates missing default service accounts.
type Controller struct {
	cfg  controller.Config
	loop *controller.Loop
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("serviceaccount controller: %w", err)
	}
	c := &Controller{cfg: cfg}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "serviceaccount", Sync: c.sync, Workers: 2, Logger: cfg.Logger})
	core := cfg.Informers.Core().V1()
	err := controller.Watch(c.loop, core.Namespaces().Informer(), func(_, cur *corev1.Namespace) {
		if cur != nil {
			c.loop.Add(cur.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("serviceaccount controller: %w", err)
	}
	err = controller.Watch(c.loop, core.ServiceAccounts().Informer(), func(old, cur *corev1.ServiceAccount) {
		if cur == nil && old.Name == accountName {
			c.loop.Add(old.Namespace)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("serviceaccount controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) sync(ctx context.Context, name string) error {
	ns, err := c.cfg.Informers.Core().V1().Namespaces().Lister().Get(name)
	if apierrors.IsNotFound(err) || err == nil && ns.DeletionTimestamp != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", name, err)
	}
	_, err = c.cfg.Informers.Core().V1().ServiceAccounts().Lister().ServiceAccounts(name).Get(accountName)
	if !apierrors.IsNotFound(err) {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: accountName}}
	_, err = c.cfg.Client.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return fmt.Errorf("create service account %s/%s: %w", name, accountName, err)
}
