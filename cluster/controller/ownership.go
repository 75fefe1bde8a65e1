package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Claim takes possession of the children that match an owner's selector and
// lets go of those that no longer do.
type Claim[T metav1.Object] struct {
	// Owner and its kind are written into adopted children.
	Owner metav1.Object
	Kind  schema.GroupVersionKind
	// Selector tells the owner's children by their labels.
	Selector labels.Selector
	// Adoptable, if not nil, refuses the adoption of some children.
	Adoptable func(T) bool
	// StillThere reads the owner afresh, past the cache, and returns its UID and
	// whether it is being deleted. Asked at most once, before the first adoption:
	// a deleted owner must not adopt.
	StillThere func(ctx context.Context) (types.UID, bool, error)
	// Patch applies a strategic merge patch to a child.
	Patch func(ctx context.Context, child T, patch []byte) error
}

// Of returns those of children that the owner holds now.
func (c Claim[T]) Of(ctx context.Context, children []T) ([]T, error) {
	var held []T
	var errs []error
	var owner error
	asked := false
	for _, child := range children {
		ref := metav1.GetControllerOfNoCopy(child)
		matches := c.Selector.Matches(labels.Set(child.GetLabels()))
		switch {
		case ref != nil && ref.UID != c.Owner.GetUID():
		case ref != nil && matches:
			held = append(held, child)
		case ref != nil:
			if c.Owner.GetDeletionTimestamp() == nil {
				errs = append(errs, c.release(ctx, child))
			}
		case matches && c.Owner.GetDeletionTimestamp() == nil && child.GetDeletionTimestamp() == nil &&
			(c.Adoptable == nil || c.Adoptable(child)):
			if !asked {
				owner, asked = c.ownerAlive(ctx), true
			}
			if owner != nil {
				errs = append(errs, owner)
				continue
			}
			switch err := c.adopt(ctx, child); {
			case err == nil:
				held = append(held, child)
			case !apierrors.IsNotFound(err):
				errs = append(errs, err)
			}
		}
	}
	return held, errors.Join(errs...)
}

func (c Claim[T]) ownerAlive(ctx context.Context) error {
	uid, deleting, err := c.StillThere(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read %s %s before adopting: %w", c.Kind.Kind, c.Owner.GetName(), err)
	case uid != c.Owner.GetUID():
		return fmt.Errorf("%s %s was replaced: got uid %s, wanted %s", c.Kind.Kind, c.Owner.GetName(), uid, c.Owner.GetUID())
	case deleting:
		return fmt.Errorf("%s %s is being deleted", c.Kind.Kind, c.Owner.GetName())
	}
	return nil
}

func (c Claim[T]) adopt(ctx context.Context, child T) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             child.GetUID(),
		"ownerReferences": []metav1.OwnerReference{*metav1.NewControllerRef(c.Owner, c.Kind)},
	}})
	if err != nil {
		return fmt.Errorf("encode adoption of %s: %w", child.GetName(), err)
	}
	if err := c.Patch(ctx, child, patch); err != nil {
		return fmt.Errorf("adopt %s: %w", child.GetName(), err)
	}
	return nil
}

// release removes the owner's reference. A child that is gone, or that has
// changed hands in between, needs no release.
func (c Claim[T]) release(ctx context.Context, child T) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             child.GetUID(),
		"ownerReferences": []map[string]any{{"$patch": "delete", "uid": c.Owner.GetUID()}},
	}})
	if err != nil {
		return fmt.Errorf("encode release of %s: %w", child.GetName(), err)
	}
	err = c.Patch(ctx, child, patch)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return fmt.Errorf("release %s: %w", child.GetName(), err)
}
