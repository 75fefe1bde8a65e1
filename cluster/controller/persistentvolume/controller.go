// Package persistentvolume binds claims to volumes, and says what becomes of a
// volume whose claim is gone.
//
// A claim gets the smallest volume that suits it, or waits for the provisioner
// of its class, or, where the class says so, for the scheduler's choice of a
// node. Both objects name each other; the volume is written first, so that a
// binding which was cut off is completed, or taken back, by the next pass.
//
// Who makes and deletes the volumes of a class watches claims and volumes
// itself: for local-path volumes that is package localpath beside this one.
//
// Limits: volumes are not recycled, and those that nobody provisioned are not
// deleted: they become Failed with an event that says so, as on a Kubernetes
// whose volume plugin can't.
package persistentvolume

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/registry/core"
)

const (
	minInterval = 50 * time.Millisecond
	// podPatience is how long a pod may wait for its node before its claim says
	// what it waits for.
	podPatience = 3 * time.Second
)

// Keys of the work queue.
const (
	claimKey  = "claim/"  // and namespace/name
	volumeKey = "volume/" // and name
)

// Indexes of volumes.
const (
	byClass = "skiff/class"
	byClaim = "skiff/claim" // namespace/name of the claim that a volume names
)

// Controller binds claims and releases volumes.
type Controller struct {
	cfg     controller.Config
	loop    *controller.Loop
	claims  corelisters.PersistentVolumeClaimLister
	volumes cache.SharedIndexInformer
	classes storagelisters.StorageClassLister
	pods    cache.SharedIndexInformer

	mu      sync.Mutex
	written map[types.UID]uint64                     // the resourceVersion that the cache has to reach; guarded by mu
	open    map[string]*corev1.PersistentVolumeClaim // claims that are not bound, by key; guarded by mu
	said    map[types.UID]saying                     // the last event of a claim that waits; guarded by mu

	sayAgain time.Duration // until it is told again, so that it does not expire

	picking sync.Mutex          // makes choosing a volume and noting it one step
	picked  map[string]struct{} // volumes that are being bound; guarded by picking
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("persistentvolume controller: %w", err)
	}
	api := cfg.Informers.Core().V1()
	c := &Controller{
		cfg: cfg, claims: api.PersistentVolumeClaims().Lister(), volumes: api.PersistentVolumes().Informer(),
		classes: cfg.Informers.Storage().V1().StorageClasses().Lister(), pods: api.Pods().Informer(),
		open: map[string]*corev1.PersistentVolumeClaim{}, written: map[types.UID]uint64{}, said: map[types.UID]saying{}, picked: map[string]struct{}{},
		sayAgain: core.EventTTL / 2,
	}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "persistentvolume", Sync: c.sync, Workers: 4, MinInterval: minInterval, Logger: cfg.Logger})
	if err := c.watch(); err != nil {
		return nil, fmt.Errorf("persistentvolume controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) watch() error {
	if err := controller.IndexPodsByClaim(c.pods); err != nil {
		return err
	}
	if err := c.volumes.AddIndexers(cache.Indexers{byClass: indexBy(storagehelpers.GetPersistentVolumeClass), byClaim: indexBy(claimOf)}); err != nil {
		return fmt.Errorf("index volumes: %w", err)
	}
	if err := controller.Watch(c.loop, c.cfg.Informers.Core().V1().PersistentVolumeClaims().Informer(), c.claimChanged); err != nil {
		return err
	}
	if err := controller.Watch(c.loop, c.volumes, c.volumeChanged); err != nil {
		return err
	}
	err := controller.Watch(c.loop, c.cfg.Informers.Storage().V1().StorageClasses().Informer(), func(_, cur *storagev1.StorageClass) {
		if cur != nil {
			c.wake(func(claim *corev1.PersistentVolumeClaim) bool {
				return !storagehelpers.PersistentVolumeClaimHasClass(claim) || storagehelpers.GetPersistentVolumeClaimClass(claim) == cur.Name
			})
		}
	})
	if err != nil {
		return err
	}
	return controller.Watch(c.loop, c.pods, func(old, cur *corev1.Pod) {
		if old == nil && cur.Spec.NodeName == "" {
			for _, name := range controller.ClaimNames(cur) {
				c.loop.AddAfter(claimKey+controller.Key(cur.Namespace, name), podPatience)
			}
		}
	})
}

func indexBy(value func(*corev1.PersistentVolume) string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		v, ok := obj.(*corev1.PersistentVolume)
		if !ok {
			return nil, nil
		}
		return []string{value(v)}, nil
	}
}

// claimOf is the key of the claim that a volume names, "" without.
func claimOf(v *corev1.PersistentVolume) string {
	if v.Spec.ClaimRef == nil {
		return ""
	}
	return controller.Key(v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
}

func (c *Controller) at(index, value string) []*corev1.PersistentVolume {
	objs, err := c.volumes.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil
	}
	out := make([]*corev1.PersistentVolume, 0, len(objs))
	for _, obj := range objs {
		if v, ok := obj.(*corev1.PersistentVolume); ok {
			out = append(out, v)
		}
	}
	return out
}

// volume gives a volume from the cache, nil if there is none.
func (c *Controller) volume(name string) *corev1.PersistentVolume {
	obj, ok, err := c.volumes.GetIndexer().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	v, _ := obj.(*corev1.PersistentVolume)
	return v
}

func (c *Controller) claimChanged(old, cur *corev1.PersistentVolumeClaim) {
	c.noteOpen(old, cur)
	if cur == nil {
		c.forget(old.UID)
		for _, v := range c.at(byClaim, controller.Key(old.Namespace, old.Name)) {
			c.loop.AddNow(volumeKey + v.Name)
		}
		return
	}
	c.loop.AddNow(claimKey + controller.Key(cur.Namespace, cur.Name))
	if cur.Spec.VolumeName != "" {
		c.loop.Add(volumeKey + cur.Spec.VolumeName)
	}
}

func (c *Controller) volumeChanged(old, cur *corev1.PersistentVolume) {
	if cur == nil {
		c.forget(old.UID)
		if key := claimOf(old); key != "" {
			c.loop.Add(claimKey + key)
		}
		return
	}
	c.loop.AddNow(volumeKey + cur.Name)
	if key := claimOf(cur); key != "" {
		c.loop.Add(claimKey + key)
	}
	if old != nil && old.Status.Phase == cur.Status.Phase && cur.Spec.ClaimRef != nil {
		return // nothing that others may have waited for
	}
	class := storagehelpers.GetPersistentVolumeClass(cur)
	c.wake(func(claim *corev1.PersistentVolumeClaim) bool {
		return claim.Spec.VolumeName == cur.Name || cur.Spec.ClaimRef == nil && storagehelpers.GetPersistentVolumeClaimClass(claim) == class
	})
}

// noteOpen keeps the claims that wake goes through.
func (c *Controller) noteOpen(old, cur *corev1.PersistentVolumeClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case cur == nil:
		delete(c.open, controller.Key(old.Namespace, old.Name))
	case cur.Status.Phase == corev1.ClaimBound:
		delete(c.open, controller.Key(cur.Namespace, cur.Name))
	default:
		c.open[controller.Key(cur.Namespace, cur.Name)] = cur
	}
}

// wake asks for a sync of the claims that are not bound and meet which.
func (c *Controller) wake(which func(*corev1.PersistentVolumeClaim) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, claim := range c.open {
		if which(claim) {
			c.loop.Add(claimKey + key)
		}
	}
}

func (c *Controller) sync(ctx context.Context, key string) error {
	if name, ok := strings.CutPrefix(key, volumeKey); ok {
		return c.syncVolume(ctx, name)
	}
	return c.syncClaim(ctx, strings.TrimPrefix(key, claimKey))
}

// wrote remembers what was written, so that no decision is made on what the
// cache had before.
func (c *Controller) wrote(obj metav1.Object) {
	if n, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64); err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.written[obj.GetUID()] = n
	}
}

// behind reports whether the cache does not yet show the last write; the event
// of it leads back here.
func (c *Controller) behind(obj metav1.Object) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	want, ok := c.written[obj.GetUID()]
	if !ok {
		return false
	}
	if n, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64); err == nil && n < want {
		return true
	}
	delete(c.written, obj.GetUID())
	return false
}

func (c *Controller) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.written, uid)
	delete(c.said, uid)
}

// saying is an event, and when it was told.
type saying struct {
	message string
	at      time.Time
}

// tell records an event of a claim that waits, unless it was the last one; that is
// told again before it expires.
func (c *Controller) tell(claim *corev1.PersistentVolumeClaim, kind, reason, message string) {
	c.mu.Lock()
	last := c.said[claim.UID]
	repeated := last.message == message && time.Since(last.at) < c.sayAgain
	if !repeated {
		c.said[claim.UID] = saying{message, time.Now()}
	}
	c.mu.Unlock()
	if !repeated {
		c.cfg.Events.Event(claim, kind, reason, message)
		c.loop.AddAfter(claimKey+controller.Key(claim.Namespace, claim.Name), c.sayAgain)
	}
}
