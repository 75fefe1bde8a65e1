// Package garbagecollector deletes objects whose owners are gone.
//
// It watches the metadata of everything that discovery lists, custom resources
// included, and keeps one index: which objects name a given UID as their owner.
// Whether an owner is still there is looked up in the cache, and only if it is
// not found asked of the API server, so that in a quiet cluster nothing is asked.
//
// The three ways of deletion: in the background (owner first, then what it
// owned), in the foreground (finalizer foregroundDeletion: the owner stays until
// those that block it are gone) and orphaning (finalizer orphan: what it owned
// is released).
//
// A deletion carries the UID and the resource version that the decision was
// based on, so a decision on an outdated cache has no effect.
package garbagecollector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// Discovery tells which kinds of objects there are. What it returns beside an
// error is usable.
type Discovery interface {
	ServerPreferredResources() ([]*metav1.APIResourceList, error)
}

// Config is the common one and what reaches every kind.
type Config struct {
	controller.Config
	// Discovery and Metadata reach everything that is served.
	Discovery Discovery
	Metadata  metadata.Interface
	// Shared are informers that run anyway; their kinds are not watched again.
	Shared map[schema.GroupVersionResource]cache.SharedIndexInformer
}

// Controller collects garbage.
type Controller struct {
	cfg      Config
	work     *controller.Loop
	discover *controller.Loop
	graph    *graph

	mu       sync.Mutex
	monitors map[schema.GroupVersionResource]*monitor // guarded by mu
	kinds    map[schema.GroupKind]served              // guarded by mu
	// absent holds UIDs that are known to be gone; they never come back.
	absent *uidSet
	// unresolved are objects with owners of a kind that is not served.
	unresolved *uidSet

	running sync.WaitGroup // informers
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("garbage collector: %w", err)
	}
	switch {
	case cfg.Discovery == nil:
		return nil, errors.New("garbage collector: config: Discovery is missing")
	case cfg.Metadata == nil:
		return nil, errors.New("garbage collector: config: Metadata is missing")
	}
	c := &Controller{
		cfg: cfg, graph: newGraph(), monitors: map[schema.GroupVersionResource]*monitor{},
		kinds: map[schema.GroupKind]served{}, absent: newUIDSet(10000), unresolved: newUIDSet(10000),
	}
	c.work = controller.NewLoop(controller.LoopConfig{Name: "garbagecollector", Sync: c.sync, Workers: 20, Logger: cfg.Logger})
	c.discover = controller.NewLoop(controller.LoopConfig{
		Name: "garbagecollector-discovery", Workers: 1, MinInterval: 100 * time.Millisecond, Logger: cfg.Logger,
		Sync: func(ctx context.Context, _ string) error { return c.refresh(ctx) },
	})
	return c, nil
}

// Run collects until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	defer c.running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The first discovery may fail in parts, or altogether while the API server
	// starts; the loop goes on with it.
	if err := c.refresh(ctx); err != nil && ctx.Err() == nil {
		c.cfg.Logger.Debug("discovery is not complete yet", "error", err)
		c.discover.Add("again")
	}
	// Decisions do not depend on the caches being complete, they only cost more
	// requests then; a kind that cannot be listed must not stop the others.
	patience, done := context.WithTimeout(ctx, syncPatience)
	if !cache.WaitFor(patience, "", c.synced()...) && ctx.Err() == nil {
		c.cfg.Logger.Warn("some kinds cannot be listed yet, collecting without them")
	}
	done()
	return controller.RunAll(ctx, c.discover, c.work)
}

// syncPatience is how long the first lists may take.
const syncPatience = 15 * time.Second

// Keys of the work queue are one of these and a UID.
const (
	attempt    = "attempt/"    // should this object be deleted?
	foreground = "foreground/" // can this owner go?
	orphan     = "orphan/"     // release what this owner owns
)

func (c *Controller) sync(ctx context.Context, key string) error {
	what, uid, _ := strings.Cut(key, "/")
	switch what + "/" {
	case attempt:
		return c.attempt(ctx, types.UID(uid))
	case foreground:
		return c.finishForeground(ctx, types.UID(uid))
	case orphan:
		return c.orphanDependents(ctx, types.UID(uid))
	}
	return fmt.Errorf("unknown work %q", key)
}

// changed takes note of an object; old is nil if it is new, cur if it is gone.
func (c *Controller) changed(gvr schema.GroupVersionResource, old, cur metav1.Object) {
	if cur == nil {
		c.left(old)
		return
	}
	if old != nil && old.GetUID() != cur.GetUID() {
		c.left(old)
		old = nil
	}
	uid := cur.GetUID()
	ending := cur.GetDeletionTimestamp() != nil
	held := ending && (has(cur.GetFinalizers(), metav1.FinalizerDeleteDependents) || has(cur.GetFinalizers(), metav1.FinalizerOrphanDependents))
	moved := c.graph.set(object{gvr, cur.GetNamespace(), cur.GetName(), uid}, cur.GetOwnerReferences(), held)
	if moved && len(cur.GetOwnerReferences()) > 0 {
		c.work.Add(attempt + string(uid))
	}
	if !held {
		return
	}
	if has(cur.GetFinalizers(), metav1.FinalizerOrphanDependents) {
		c.work.Add(orphan + string(uid))
		return
	}
	c.work.Add(foreground + string(uid))
}

// left takes note of an object that is gone: what it owned may be garbage now,
// and an owner that waited for it may go.
func (c *Controller) left(old metav1.Object) {
	uid := old.GetUID()
	c.absent.add(uid)
	c.unresolved.drop(uid)
	owners := old.GetOwnerReferences()
	c.graph.drop(uid)
	for _, d := range c.graph.dependents(uid) {
		c.work.Add(attempt + string(d.uid))
	}
	for _, o := range owners {
		if c.graph.isHeld(o.UID) {
			c.work.Add(foreground + string(o.UID))
		}
	}
}

func has(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
