package garbagecollector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// served is how a kind is reached.
type served struct {
	gvr        schema.GroupVersionResource
	namespaced bool
}

// monitor watches one kind.
type monitor struct {
	informer cache.SharedIndexInformer
	stop     context.CancelFunc // nil for a shared one
	synced   cache.DoneChecker
}

// changesKinds are kinds whose objects make other kinds come and go.
var changesKinds = map[schema.GroupResource]bool{
	{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}: true,
	{Group: "apiregistration.k8s.io", Resource: "apiservices"}:             true,
}

// notCollected are kinds that own nothing and are many.
var notCollected = map[schema.GroupResource]bool{
	{Resource: "events"}:                         true,
	{Group: "events.k8s.io", Resource: "events"}: true,
}

// refresh makes the monitors match what is served.
func (c *Controller) refresh(ctx context.Context) error {
	lists, err := c.cfg.Discovery.ServerPreferredResources()
	if len(lists) == 0 && err != nil {
		return fmt.Errorf("discover kinds: %w", err)
	}
	kinds := map[schema.GroupKind]served{}
	wanted := map[schema.GroupVersionResource]bool{}
	for _, list := range lists {
		gv, parseErr := schema.ParseGroupVersion(list.GroupVersion)
		if parseErr != nil {
			err = errors.Join(err, parseErr)
			continue
		}
		for _, r := range list.APIResources {
			gvr := gv.WithResource(r.Name)
			if notCollected[gvr.GroupResource()] || !collectable(r.Verbs) {
				continue
			}
			kinds[schema.GroupKind{Group: gv.Group, Kind: r.Kind}] = served{gvr, r.Namespaced}
			wanted[gvr] = true
		}
	}
	c.mu.Lock()
	c.keepUnanswered(err, kinds, wanted)
	c.kinds = kinds
	added := c.matchMonitors(ctx, wanted)
	c.mu.Unlock()
	if added {
		for _, uid := range c.unresolved.take() {
			c.work.Add(attempt + string(uid))
		}
	}
	if err != nil {
		return fmt.Errorf("discover kinds: %w", err)
	}
	return nil
}

func collectable(verbs []string) bool {
	for _, v := range []string{"delete", "list", "watch"} {
		if !slices.Contains(verbs, v) {
			return false
		}
	}
	return true
}

// keepUnanswered carries over the kinds of groups that did not answer: that an
// aggregated API server is down says nothing about its objects. c.mu is held.
func (c *Controller) keepUnanswered(err error, kinds map[schema.GroupKind]served, wanted map[schema.GroupVersionResource]bool) {
	failed, ok := discovery.GroupDiscoveryFailedErrorGroups(err)
	if !ok {
		return
	}
	for gk, s := range c.kinds {
		if _, down := failed[s.gvr.GroupVersion()]; down {
			kinds[gk] = s
			wanted[s.gvr] = true
		}
	}
}

// matchMonitors starts and stops; true if any was started. c.mu is held.
func (c *Controller) matchMonitors(ctx context.Context, wanted map[schema.GroupVersionResource]bool) bool {
	for gvr, m := range c.monitors {
		if !wanted[gvr] && m.stop != nil {
			m.stop()
			delete(c.monitors, gvr)
			c.graph.dropKind(gvr)
		}
	}
	added := false
	for gvr := range wanted {
		if _, ok := c.monitors[gvr]; ok {
			continue
		}
		m, err := c.monitor(ctx, gvr)
		if err != nil {
			c.cfg.Logger.Error("cannot watch a kind; what it owns is not collected", "resource", gvr, "error", err)
			continue
		}
		c.monitors[gvr] = m
		added = true
	}
	return added
}

func (c *Controller) monitor(ctx context.Context, gvr schema.GroupVersionResource) (*monitor, error) {
	m := &monitor{informer: c.cfg.Shared[gvr]}
	shared := m.informer != nil
	if !shared {
		m.informer = metadatainformer.NewFilteredMetadataInformer(c.cfg.Metadata, gvr, metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
		if err := m.informer.SetTransform(onlyNeeded); err != nil {
			return nil, fmt.Errorf("watch %s: %w", gvr, err)
		}
	}
	reg, err := m.informer.AddEventHandler(c.handler(gvr))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", gvr, err)
	}
	m.synced = reg.HasSyncedChecker()
	if !shared {
		ctx, cancel := context.WithCancel(ctx)
		m.stop = cancel
		c.running.Go(func() { m.informer.RunWithContext(ctx) })
	}
	return m, nil
}

func (c *Controller) handler(gvr schema.GroupVersionResource) cache.ResourceEventHandler {
	changed := func(old, cur any) {
		before, after := accessor(old), accessor(cur)
		if before == nil && after == nil {
			return
		}
		c.changed(gvr, before, after)
		if changesKinds[gvr.GroupResource()] {
			// The new kind shows in discovery soon after, not at once.
			c.discover.Add("now")
			c.discover.AddAfter("soon", time.Second)
			c.discover.AddAfter("later", 5*time.Second)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { changed(nil, obj) },
		UpdateFunc: func(old, cur any) { changed(old, cur) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			changed(obj, nil)
		},
	}
}

// accessor is nil, as an interface, for what is no object.
func accessor(obj any) metav1.Object {
	if obj == nil {
		return nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	return m
}

// onlyNeeded drops what decisions do not look at.
func onlyNeeded(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	return &metav1.PartialObjectMetadata{
		TypeMeta: m.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
			OwnerReferences: m.OwnerReferences, Finalizers: m.Finalizers, DeletionTimestamp: m.DeletionTimestamp,
		},
	}, nil
}

func (c *Controller) synced() []cache.DoneChecker {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []cache.DoneChecker
	for _, m := range c.monitors {
		out = append(out, m.synced)
	}
	return out
}

// cached returns the object as it is known here; nil if it is not.
func (c *Controller) cached(o object) metav1.Object {
	c.mu.Lock()
	m, ok := c.monitors[o.gvr]
	c.mu.Unlock()
	if !ok {
		return nil
	}
	obj, found, err := m.informer.GetStore().GetByKey(o.key())
	if err != nil || !found {
		return nil
	}
	return accessor(obj)
}

// kind tells how the kind of an owner is reached.
func (c *Controller) kind(ref metav1.OwnerReference) (served, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return served{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.kinds[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	return s, ok
}
