// Package localpath makes and deletes local-path volumes: folders on the node of
// the first pod that uses them.
//
// Making one is writing a PersistentVolume of the type local; the node makes the
// folder when it mounts it first. Deleting one is a request to the node that has
// the folder, tried again until it is done, and when a lost node comes back; the
// volume object stays until then. The folders of a node whose Node object is
// gone are nobody's any more: their volumes are deleted, and an event says so.
package localpath

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/localpath"
)

// Nodes deletes the folders of volumes.
type Nodes interface {
	// DeleteVolume returns nil when the node has no folder of that volume any
	// more. It fails as long as a pod uses it.
	DeleteVolume(ctx context.Context, node, volume string) error
}

// Config is the common one and the way to the nodes.
type Config struct {
	controller.Config
	// Nodes is required.
	Nodes Nodes
}

// Keys of the work queue.
const (
	claimKey  = "claim/"  // and namespace/name
	volumeKey = "volume/" // and name
)

// byNode is the index of volumes by the node that they are on.
const byNode = "skiff/node"

// Controller makes and deletes volumes.
type Controller struct {
	cfg     Config
	loop    *controller.Loop
	claims  corelisters.PersistentVolumeClaimLister
	volumes cache.SharedIndexInformer
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("localpath controller: %w", err)
	}
	if cfg.Nodes == nil {
		return nil, errors.New("localpath controller: config: Nodes is missing")
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{
		cfg: cfg, claims: core.PersistentVolumeClaims().Lister(), volumes: core.PersistentVolumes().Informer(),
		nodes: core.Nodes().Lister(), classes: cfg.Informers.Storage().V1().StorageClasses().Lister(),
	}
	// A node that does not answer keeps a worker for as long as a request lasts.
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "localpath", Sync: c.sync, Workers: 8, Logger: cfg.Logger})
	c.loop.Needs(cfg.Informers.Storage().V1().StorageClasses().Informer())
	err := errors.Join(
		c.volumes.AddIndexers(cache.Indexers{byNode: func(obj any) ([]string, error) {
			v, ok := obj.(*corev1.PersistentVolume)
			if !ok || !ours(v) {
				return nil, nil
			}
			return []string{nodeOf(v)}, nil
		}}),
		controller.Watch(c.loop, core.PersistentVolumeClaims().Informer(), func(_, cur *corev1.PersistentVolumeClaim) {
			if cur != nil && wanted(cur) {
				c.loop.Add(claimKey + controller.Key(cur.Namespace, cur.Name))
			}
		}),
		controller.Watch(c.loop, c.volumes, func(_, cur *corev1.PersistentVolume) {
			if cur != nil && doomed(cur) {
				c.loop.Add(volumeKey + cur.Name)
			}
		}),
		controller.Watch(c.loop, core.Nodes().Informer(), c.nodeChanged),
	)
	if err != nil {
		return nil, fmt.Errorf("localpath controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

// nodeChanged tries anew what could not be done while a node was away, or what
// nobody can do any more now that it is gone.
func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if old != nil && cur != nil && (!ready(cur) || ready(old)) && (lost(cur) || !lost(old)) {
		return
	}
	node := old
	if cur != nil {
		node = cur
	}
	objs, err := c.volumes.GetIndexer().ByIndex(byNode, node.Name)
	if err != nil {
		return
	}
	for _, obj := range objs {
		if v, ok := obj.(*corev1.PersistentVolume); ok && doomed(v) {
			c.loop.AddNow(volumeKey + v.Name)
		}
	}
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// errLost is that a volume's node does not answer anybody.
var errLost = errors.New("node is lost")

func lost(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

func (c *Controller) sync(ctx context.Context, key string) error {
	if name, ok := strings.CutPrefix(key, volumeKey); ok {
		return c.syncVolume(ctx, name)
	}
	return c.syncClaim(ctx, strings.TrimPrefix(key, claimKey))
}

// wanted reports whether a claim waits for a volume of this provisioner.
func wanted(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[storagehelpers.AnnStorageProvisioner] == localpath.Provisioner && claim.Spec.VolumeName == "" &&
		claim.Status.Phase == corev1.ClaimPending && claim.DeletionTimestamp == nil
}

func ours(v *corev1.PersistentVolume) bool {
	return v.Annotations[storagehelpers.AnnDynamicallyProvisioned] == localpath.Provisioner
}

// doomed reports whether a volume's folder is to be deleted, or the volume was
// deleted and waits for this controller to let it go.
func doomed(v *corev1.PersistentVolume) bool {
	if !ours(v) {
		return false
	}
	if v.DeletionTimestamp != nil {
		return v.Status.Phase != corev1.VolumeBound && slices.Contains(v.Finalizers, localpath.Finalizer)
	}
	return v.Status.Phase == corev1.VolumeReleased && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

func (c *Controller) volume(name string) *corev1.PersistentVolume {
	obj, ok, err := c.volumes.GetIndexer().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	v, _ := obj.(*corev1.PersistentVolume)
	return v
}

// syncVolume deletes a volume's folder and then the volume.
func (c *Controller) syncVolume(ctx context.Context, name string) error {
	v := c.volume(name)
	if v == nil || !doomed(v) {
		return nil
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		switch err := c.deleteFolder(ctx, v); {
		case errors.Is(err, errLost):
			return nil // nodeChanged leads back here
		case err != nil:
			return err
		}
	}
	if slices.Contains(v.Finalizers, localpath.Finalizer) {
		next := v.DeepCopy()
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == localpath.Finalizer })
		if _, err := c.cfg.Client.CoreV1().PersistentVolumes().Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("let volume %s go: %w", name, err)
		}
	}
	if v.DeletionTimestamp != nil {
		return nil
	}
	err := c.cfg.Client.CoreV1().PersistentVolumes().Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(v.UID))})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	return nil
}

func (c *Controller) deleteFolder(ctx context.Context, v *corev1.PersistentVolume) error {
	// Once more, and not from the cache: somebody may have taken the volume for
	// another claim, or decided to keep it.
	fresh, err := c.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, v.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look at volume %s: %w", v.Name, err)
	case fresh.UID != v.UID || !doomed(fresh) || fresh.Spec.PersistentVolumeReclaimPolicy != v.Spec.PersistentVolumeReclaimPolicy:
		return controller.ErrAgain
	}
	node := nodeOf(v)
	if node == "" {
		why := fmt.Sprintf("annotation %s is missing: nobody knows which node has the folder", localpath.NodeAnnotation)
		c.cfg.Events.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", why)
		return fmt.Errorf("delete the folder of volume %s: %s", v.Name, why)
	}
	at, err := c.nodes.Get(node)
	if apierrors.IsNotFound(err) {
		if _, err = c.cfg.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			c.cfg.Events.Eventf(v, corev1.EventTypeWarning, "VolumeDelete",
				"node %q of the volume no longer exists: its folder %s is left to whoever has the disk", node, path(v))
			return nil
		}
	}
	if at != nil && lost(at) {
		// Questions that nobody answers would hold up those to other nodes.
		c.cfg.Events.Eventf(v, corev1.EventTypeWarning, "VolumeFailedDelete", "node %q is lost: the folder of the volume is deleted when it is back", node)
		return errLost
	}
	if err := c.cfg.Nodes.DeleteVolume(ctx, node, v.Name); err != nil {
		c.cfg.Events.Eventf(v, corev1.EventTypeWarning, "VolumeFailedDelete", "%v", err)
		return fmt.Errorf("delete the folder of volume %s: %w", v.Name, err)
	}
	if at != nil {
		if root, _ := localpath.Offer(at); root != "" && filepath.Dir(path(v)) != root {
			c.cfg.Events.Eventf(v, corev1.EventTypeWarning, "VolumeDelete",
				"node %q has its volumes in %s by now: the folder %s is left there, delete it by hand", node, root, path(v))
		}
	}
	return nil
}

// nodeOf gives the node that a volume of this controller is on: the one that is
// noted, else the one of its affinity; "" if somebody took both away.
func nodeOf(v *corev1.PersistentVolume) string {
	if node := v.Annotations[localpath.NodeAnnotation]; node != "" {
		return node
	}
	if a := v.Spec.NodeAffinity; a != nil && a.Required != nil {
		for _, term := range a.Required.NodeSelectorTerms {
			for _, e := range term.MatchExpressions {
				if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
					return e.Values[0]
				}
			}
		}
	}
	return ""
}

func path(v *corev1.PersistentVolume) string {
	if v.Spec.Local == nil {
		return ""
	}
	return v.Spec.Local.Path
}
