package core

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

var namespaceKind = registry.Kind{
	Resource: gvr("namespaces"), Singular: "namespace",
	Object: &corev1.Namespace{}, List: &corev1.NamespaceList{},
	ClusterScoped: true, HasStatus: true, ShortNames: []string{"ns"},
	ValidateName: apivalidation.ValidateNamespaceName,
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		n := obj.(*corev1.Namespace)
		n.Generation = 0 // namespaces have none
		n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
			n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
		}
	},
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		// Only the finalize subresource changes the spec.
		obj.(*corev1.Namespace).Spec.Finalizers = old.(*corev1.Namespace).Spec.Finalizers
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateFinalizers(obj.(*corev1.Namespace))
	},
	ValidateUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateFinalizers(obj.(*corev1.Namespace))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		n := obj.(*corev1.Namespace)
		p := field.NewPath("status", "Phase")
		switch {
		case n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceActive:
			return field.ErrorList{field.Invalid(p, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")}
		case !n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceTerminating:
			return field.ErrorList{field.Invalid(p, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")}
		}
		return nil
	},
	// The label can't be removed or changed.
	Canonicalize: func(obj runtime.Object) { setNamespaceDefaults(obj.(*corev1.Namespace)) },
	Fields: func(obj runtime.Object) fields.Set {
		return fields.Set{"status.phase": string(obj.(*corev1.Namespace).Status.Phase)}
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the namespace"),
		registry.Column("Status", "Phase: Active or Terminating"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		n := obj.(*corev1.Namespace)
		return []any{n.Name, string(n.Status.Phase), registry.Age(n.CreationTimestamp)}
	},
}

func setNamespaceDefaults(n *corev1.Namespace) {
	// Without a name it is named by generateName, and labelled afterwards.
	if n.Name != "" {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
	if n.Status.Phase == "" {
		n.Status.Phase = corev1.NamespaceActive
	}
}

func validateFinalizers(n *corev1.Namespace) field.ErrorList {
	var errs field.ErrorList
	for i, f := range n.Spec.Finalizers {
		p := field.NewPath("spec", "finalizers").Index(i)
		msgs := validation.IsQualifiedName(string(f))
		errs = append(errs, check.Messages(p, string(f), msgs)...)
		if len(msgs) == 0 && f != corev1.FinalizerKubernetes && !strings.Contains(string(f), "/") {
			errs = append(errs, field.Invalid(p, string(f), "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

// namespaceStore deletes in two steps: the first DELETE makes the namespace
// Terminating, and it goes away when its finalizers are gone. It has no
// DeleteCollection: namespaces are deleted by name.
type namespaceStore struct {
	allButDelete
	store *registry.Store
}

type allButDelete interface {
	rest.Storage
	rest.Scoper
	rest.SingularNameProvider
	rest.ShortNamesProvider
	rest.CategoriesProvider
	rest.Getter
	rest.Lister
	rest.CreaterUpdater
	rest.Watcher
	rest.ResetFieldsStrategy
	rest.StorageVersionProvider
}

var (
	_ rest.GracefulDeleter            = (*namespaceStore)(nil)
	_ rest.MayReturnFullObjectDeleter = (*namespaceStore)(nil)
)

func namespaceStorage(o registry.Options, _ Config, m map[string]rest.Storage) error {
	kind := namespaceKind
	kind.Customize = func(s *genericregistry.Store) {
		s.ShouldDeleteDuringUpdate = func(ctx context.Context, key string, obj, old runtime.Object) bool {
			return len(obj.(*corev1.Namespace).Spec.Finalizers) == 0 && genericregistry.ShouldDeleteDuringUpdate(ctx, key, obj, old)
		}
	}
	store, err := kind.NewStore(o)
	if err != nil {
		return err
	}
	m["namespaces"] = &namespaceStore{store, store}
	m["namespaces/status"] = store.Status()
	update := finalizeStrategy{store.UpdateStrategy}
	m["namespaces/finalize"] = &finalizeREST{registry.NewSubresource(store.With(update, update))}
	return nil
}

// finalizeStrategy lets spec.finalizers be changed, and nothing else of the
// spec or status.
type finalizeStrategy struct{ rest.RESTUpdateStrategy }

func (finalizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*corev1.Namespace).Status = old.(*corev1.Namespace).Status
}

func (finalizeStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return map[fieldpath.APIVersion]*fieldpath.Set{"v1": fieldpath.NewSet(fieldpath.MakePathOrDie("status"))}
}

// finalizeREST serves namespaces/finalize: update only.
type finalizeREST struct{ sub *registry.Subresource }

var _ rest.Updater = (*finalizeREST)(nil)

// New implements rest.Storage.
func (r *finalizeREST) New() runtime.Object { return r.sub.New() }

// Destroy implements rest.Storage; the main resource owns the store.
func (r *finalizeREST) Destroy() {}

// Update implements rest.Updater.
func (r *finalizeREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, force bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.sub.Update(ctx, name, info, create, update, force, o)
}

// DeleteReturnsDeletedObject implements rest.MayReturnFullObjectDeleter: a
// namespace that is still terminating is given back.
func (r *namespaceStore) DeleteReturnsDeletedObject() bool {
	return r.store.DeleteReturnsDeletedObject()
}

// Delete implements rest.GracefulDeleter.
func (r *namespaceStore) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, o *metav1.DeleteOptions) (runtime.Object, bool, error) {
	obj, err := r.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	n := obj.(*corev1.Namespace)
	if o == nil {
		o = metav1.NewDeleteOptions(0)
	}
	if o.Preconditions == nil {
		o.Preconditions = &metav1.Preconditions{}
	}
	if o.Preconditions.UID == nil {
		o.Preconditions.UID = &n.UID
	}
	mismatch := func(what, want, have string) error {
		return apierrors.NewConflict(r.store.DefaultQualifiedResource, name,
			fmt.Errorf("%[1]s: %[2]s in precondition: %[3]v, %[2]s in object meta: %[4]v", "Precondition failed", what, want, have))
	}
	if *o.Preconditions.UID != n.UID {
		return nil, false, mismatch("UID", string(*o.Preconditions.UID), string(n.UID))
	}
	if v := o.Preconditions.ResourceVersion; v != nil && *v != n.ResourceVersion {
		return nil, false, mismatch("ResourceVersion", *v, n.ResourceVersion)
	}
	if n.DeletionTimestamp.IsZero() {
		return r.terminate(ctx, name, validate, o)
	}
	if len(n.Spec.Finalizers) != 0 {
		return n, false, nil // it is under way
	}
	return r.store.Delete(ctx, name, validate, o)
}

// terminate marks the namespace as Terminating.
func (r *namespaceStore) terminate(ctx context.Context, name string, validate rest.ValidateObjectFunc, o *metav1.DeleteOptions) (runtime.Object, bool, error) {
	key, err := r.store.KeyFunc(ctx, name)
	if err != nil {
		return nil, false, err
	}
	pre := &storage.Preconditions{UID: o.Preconditions.UID, ResourceVersion: o.Preconditions.ResourceVersion}
	out := &corev1.Namespace{}
	err = r.store.Storage.GuaranteedUpdate(ctx, key, out, false, pre, storage.SimpleUpdate(func(existing runtime.Object) (runtime.Object, error) {
		n := existing.(*corev1.Namespace)
		if validate != nil {
			if err := validate(ctx, n); err != nil {
				return nil, err
			}
		}
		if n.DeletionTimestamp.IsZero() {
			now := metav1.Now()
			n.DeletionTimestamp = &now
		}
		n.Status.Phase = corev1.NamespaceTerminating
		wanted := map[string]bool{}
		switch {
		//lint:ignore SA1019 clients still send it
		case o.OrphanDependents != nil:
			//lint:ignore SA1019 clients still send it
			wanted[metav1.FinalizerOrphanDependents] = *o.OrphanDependents
		case o.PropagationPolicy != nil:
			wanted[metav1.FinalizerOrphanDependents] = *o.PropagationPolicy == metav1.DeletePropagationOrphan
			wanted[metav1.FinalizerDeleteDependents] = *o.PropagationPolicy == metav1.DeletePropagationForeground
		}
		for f, on := range wanted {
			n.Finalizers = slices.DeleteFunc(n.Finalizers, func(have string) bool { return have == f })
			if on {
				n.Finalizers = append(n.Finalizers, f)
			}
		}
		return n, nil
	}), dryrun.IsDryRun(o.DryRun), nil)
	if err != nil {
		err = storeerr.InterpretGetError(err, r.store.DefaultQualifiedResource, name)
		err = storeerr.InterpretUpdateError(err, r.store.DefaultQualifiedResource, name)
		return nil, false, err
	}
	return out, false, nil
}
