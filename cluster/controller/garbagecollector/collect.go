package garbagecollector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// ownership is what the owners of an object are worth.
type ownership struct {
	solid    int         // there, or not known to be gone
	dangling []types.UID // gone
	waiting  []types.UID // there, but only until their dependents are gone
}

// verdict is what follows from an ownership.
type verdict int

const (
	keep          verdict = iota
	letGo                 // keep, but drop references that keep nothing
	deletePlain           // delete in the background
	deleteInFront         // delete what it owns first: an owner waits for both
)

// judge decides on an object that is not being deleted.
func judge(o ownership, ownsSomething bool) verdict {
	switch {
	case o.solid > 0 && len(o.dangling)+len(o.waiting) > 0:
		return letGo
	case o.solid > 0 || len(o.dangling)+len(o.waiting) == 0:
		return keep
	case len(o.waiting) > 0 && ownsSomething:
		return deleteInFront
	}
	return deletePlain
}

// attempt deletes an object if it has become garbage.
func (c *Controller) attempt(ctx context.Context, uid types.UID) error {
	o, ok := c.graph.find(uid)
	if !ok {
		return nil
	}
	obj := c.cached(o)
	if obj == nil || obj.GetUID() != uid || obj.GetDeletionTimestamp() != nil {
		return nil
	}
	owners, err := c.weigh(ctx, o, obj.GetOwnerReferences())
	if err != nil {
		return err
	}
	switch judge(owners, len(c.graph.dependents(uid)) > 0) {
	case letGo:
		return c.dropOwners(ctx, o, obj, append(owners.dangling, owners.waiting...))
	case deletePlain:
		return c.remove(ctx, o, obj, policyOf(obj))
	case deleteInFront:
		if err := c.breakCircle(ctx, o, obj); err != nil {
			return err
		}
		return c.remove(ctx, o, obj, metav1.DeletePropagationForeground)
	}
	return nil
}

// weigh looks at each owner.
func (c *Controller) weigh(ctx context.Context, o object, refs []metav1.OwnerReference) (ownership, error) {
	var out ownership
	for _, ref := range refs {
		there, held, err := c.owner(ctx, o, ref)
		switch {
		case err != nil:
			return out, err
		case !there:
			out.dangling = append(out.dangling, ref.UID)
		case held:
			out.waiting = append(out.waiting, ref.UID)
		default:
			out.solid++
		}
	}
	return out, nil
}

// owner tells whether an owner is there, and whether it waits for what it owns.
// An owner of a kind that is not served counts as there: better leave garbage
// than delete what is needed.
func (c *Controller) owner(ctx context.Context, o object, ref metav1.OwnerReference) (there, held bool, err error) {
	if c.absent.has(ref.UID) {
		return false, false, nil
	}
	kind, ok := c.kind(ref)
	if !ok || kind.namespaced && o.namespace == "" {
		c.unresolved.add(o.uid)
		return true, false, nil
	}
	at := object{gvr: kind.gvr, name: ref.Name, uid: ref.UID}
	if kind.namespaced {
		at.namespace = o.namespace
	}
	if obj := c.cached(at); obj != nil && obj.GetUID() == ref.UID {
		return true, obj.GetDeletionTimestamp() != nil && has(obj.GetFinalizers(), metav1.FinalizerDeleteDependents), nil
	}
	live, err := c.cfg.Metadata.Resource(at.gvr).Namespace(at.namespace).Get(ctx, at.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && live.UID != ref.UID:
		c.absent.add(ref.UID)
		return false, false, nil
	case err != nil:
		return false, false, fmt.Errorf("look for owner %s %s of %s: %w", ref.Kind, ref.Name, o.key(), err)
	}
	return true, false, nil
}

// policyOf keeps to what the finalizers of an object say about its own
// dependents.
func policyOf(obj metav1.Object) metav1.DeletionPropagation {
	switch {
	case has(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
		return metav1.DeletePropagationOrphan
	case has(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}

func (c *Controller) remove(ctx context.Context, o object, obj metav1.Object, policy metav1.DeletionPropagation) error {
	version := obj.GetResourceVersion()
	err := c.cfg.Metadata.Resource(o.gvr).Namespace(o.namespace).Delete(ctx, o.name, metav1.DeleteOptions{
		Preconditions:     &metav1.Preconditions{UID: &o.uid, ResourceVersion: &version},
		PropagationPolicy: &policy,
	})
	switch {
	case err == nil:
		c.cfg.Logger.Debug("deleted what nobody owns", "resource", o.gvr.Resource, "object", o.key(), "policy", policy)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return controller.ErrAgain // the cache is behind
	}
	return fmt.Errorf("delete %s %s: %w", o.gvr.Resource, o.key(), err)
}

// finishForeground lets an owner go when nothing blocks it any more, and sees to
// it that what blocks it is deleted.
func (c *Controller) finishForeground(ctx context.Context, uid types.UID) error {
	o, ok := c.graph.find(uid)
	if !ok {
		return nil
	}
	obj := c.cached(o)
	if obj == nil || obj.GetUID() != uid || obj.GetDeletionTimestamp() == nil || !has(obj.GetFinalizers(), metav1.FinalizerDeleteDependents) {
		return nil
	}
	if len(c.graph.blocking(uid)) == 0 {
		return c.dropFinalizer(ctx, o, obj, metav1.FinalizerDeleteDependents)
	}
	for _, d := range c.graph.dependents(uid) {
		c.work.Add(attempt + string(d.uid))
	}
	return nil
}

// orphanDependents releases what an owner owns, then lets the owner go.
func (c *Controller) orphanDependents(ctx context.Context, uid types.UID) error {
	o, ok := c.graph.find(uid)
	if !ok {
		return nil
	}
	obj := c.cached(o)
	if obj == nil || obj.GetUID() != uid || obj.GetDeletionTimestamp() == nil || !has(obj.GetFinalizers(), metav1.FinalizerOrphanDependents) {
		return nil
	}
	var errs []error
	for _, d := range c.graph.dependents(uid) {
		dependent := c.cached(d)
		if dependent == nil || dependent.GetUID() != d.uid {
			continue
		}
		errs = append(errs, c.dropOwners(ctx, d, dependent, []types.UID{uid}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.dropFinalizer(ctx, o, obj, metav1.FinalizerOrphanDependents)
}

// breakCircle takes back the blocking of owners if something that o owns waits
// for its own dependents already: in a circle each would wait for the other.
func (c *Controller) breakCircle(ctx context.Context, o object, obj metav1.Object) error {
	for _, d := range c.graph.dependents(o.uid) {
		if !c.graph.isHeld(d.uid) {
			continue
		}
		refs := slices.Clone(obj.GetOwnerReferences())
		for i := range refs {
			no := false
			refs[i].BlockOwnerDeletion = &no
		}
		return c.patch(ctx, o, obj, map[string]any{"ownerReferences": refs})
	}
	return nil
}

// dropOwners removes references to owners.
func (c *Controller) dropOwners(ctx context.Context, o object, obj metav1.Object, owners []types.UID) error {
	refs := slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(r metav1.OwnerReference) bool {
		return slices.Contains(owners, r.UID)
	})
	if len(refs) == len(obj.GetOwnerReferences()) {
		return nil
	}
	return c.patch(ctx, o, obj, map[string]any{"ownerReferences": refs})
}

func (c *Controller) dropFinalizer(ctx context.Context, o object, obj metav1.Object, finalizer string) error {
	rest := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == finalizer })
	return c.patch(ctx, o, obj, map[string]any{"finalizers": rest})
}

// patch changes metadata of the version of an object that was looked at.
func (c *Controller) patch(ctx context.Context, o object, obj metav1.Object, metadata map[string]any) error {
	metadata["uid"] = o.uid
	metadata["resourceVersion"] = obj.GetResourceVersion()
	data, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encode patch of %s %s: %w", o.gvr.Resource, o.key(), err)
	}
	_, err = c.cfg.Metadata.Resource(o.gvr).Namespace(o.namespace).Patch(ctx, o.name, types.MergePatchType, data, metav1.PatchOptions{})
	switch {
	case err == nil, apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return controller.ErrAgain
	}
	return fmt.Errorf("patch %s %s: %w", o.gvr.Resource, o.key(), err)
}
