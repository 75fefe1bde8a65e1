// Package rootca publishes the cluster's CA certificate as the ConfigMap
// kube-root-ca.crt in every namespace, from where pods mount it beside their
// service account token. A changed or deleted copy is put right.
package rootca

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const (
	mapName     = "kube-root-ca.crt"
	mapKey      = "ca.crt"
	description = "kubernetes.io/description"
	// explanation is upstream's, which users may have seen.
	explanation = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Config is the common one and the certificate.
type Config struct {
	controller.Config
	// CA gives what is published as it is; PEM.
	CA func() []byte
	// Changes gives a channel that is poked when CA gives something else; nil:
	// never.
	Changes func() (poked <-chan struct{}, cancel func())
}

// Controller publishes the certificate.
type Controller struct {
	cfg  Config
	loop *controller.Loop
	// maps holds only the ConfigMaps of our name: all others are none of our
	// business, and would cost memory.
	maps cache.SharedIndexInformer
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("rootca controller: %w", err)
	}
	if cfg.CA == nil || len(cfg.CA()) == 0 {
		return nil, errors.New("rootca controller: config: CA is missing")
	}
	c := &Controller{cfg: cfg, maps: ownMaps(cfg.Client)}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "rootca", Sync: c.sync, Workers: 2, Logger: cfg.Logger})
	err := controller.Watch(c.loop, cfg.Informers.Core().V1().Namespaces().Informer(), func(_, cur *corev1.Namespace) {
		if cur != nil {
			c.loop.Add(cur.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("rootca controller: %w", err)
	}
	err = controller.Watch(c.loop, c.maps, func(old, cur *corev1.ConfigMap) {
		if cur == nil {
			cur = old
		}
		c.loop.Add(cur.Namespace)
	})
	if err != nil {
		return nil, fmt.Errorf("rootca controller: %w", err)
	}
	return c, nil
}

func ownMaps(client kubernetes.Interface) cache.SharedIndexInformer {
	return coreinformers.NewFilteredConfigMapInformer(client, metav1.NamespaceAll, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", mapName).String()
		})
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.maps.RunWithContext(ctx)
	}()
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		c.follow(ctx)
	}()
	err := c.loop.Run(ctx)
	<-stopped
	<-followed
	return err
}

// follow looks at all namespaces after a change of the CA.
func (c *Controller) follow(ctx context.Context) {
	if c.cfg.Changes == nil {
		return
	}
	poked, cancel := c.cfg.Changes()
	defer cancel()
	for {
		select {
		case <-poked:
		case <-ctx.Done():
			return
		}
		all, err := c.cfg.Informers.Core().V1().Namespaces().Lister().List(labels.Everything())
		if err != nil {
			c.cfg.Logger.Warn("list namespaces after a change of the CA", "error", err)
			continue
		}
		for _, ns := range all {
			c.loop.Add(ns.Name)
		}
	}
}

func (c *Controller) sync(ctx context.Context, name string) error {
	ns, err := c.cfg.Informers.Core().V1().Namespaces().Lister().Get(name)
	if apierrors.IsNotFound(err) || err == nil && ns.DeletionTimestamp != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", name, err)
	}
	obj, found, err := c.maps.GetStore().GetByKey(name + "/" + mapName)
	if err != nil {
		return fmt.Errorf("read cached ConfigMap of %s: %w", name, err)
	}
	current, ok := obj.(*corev1.ConfigMap)
	if !found || !ok {
		return c.create(ctx, name)
	}
	if right(current, string(c.cfg.CA())) {
		return nil
	}
	changed := current.DeepCopy()
	c.fill(changed)
	if _, err := c.cfg.Client.CoreV1().ConfigMaps(name).Update(ctx, changed, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update ConfigMap %s/%s: %w", name, mapName, err)
	}
	return nil
}

func (c *Controller) create(ctx context.Context, namespace string) error {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: mapName}}
	c.fill(m)
	_, err := c.cfg.Client.CoreV1().ConfigMaps(namespace).Create(ctx, m, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // one that exists comes by the informer, and is then looked at
	}
	return fmt.Errorf("create ConfigMap %s/%s: %w", namespace, mapName, err)
}

func (c *Controller) fill(m *corev1.ConfigMap) {
	m.Data = map[string]string{mapKey: string(c.cfg.CA())}
	m.BinaryData = nil
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[description] = explanation
}

func right(m *corev1.ConfigMap, ca string) bool {
	return len(m.Data) == 1 && m.Data[mapKey] == ca && len(m.BinaryData) == 0 && m.Annotations[description] != ""
}
