package registry

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Scalable tells how a kind is seen through its scale subresource.
type Scalable struct {
	// Replicas gives spec.replicas to read and write; the pointer it returns
	// stays valid as long as obj.
	Replicas func(obj runtime.Object) *int32
	// Observed gives status.replicas and the label selector as a string.
	Observed func(obj runtime.Object) (replicas int32, selector string)
}

// Scale serves NAME/scale as an autoscaling/v1 Scale: a view on the store that
// changes nothing but spec.replicas.
type Scale struct {
	store *genericregistry.Store
	kind  Kind
	of    Scalable
}

var (
	_ rest.Patcher                  = (*Scale)(nil)
	_ rest.GroupVersionKindProvider = (*Scale)(nil)
	_ rest.TableConvertor           = (*Scale)(nil)
)

// NewScale builds the scale subresource of s.
func (s *Store) NewScale(of Scalable) *Scale { return &Scale{store: s.Store, kind: s.kind, of: of} }

// New implements rest.Storage.
func (r *Scale) New() runtime.Object { return &autoscalingv1.Scale{} }

// Destroy implements rest.Storage; the main resource owns the store.
func (r *Scale) Destroy() {}

// GroupVersionKind implements rest.GroupVersionKindProvider: the scale of every
// kind has the type of the autoscaling group.
func (r *Scale) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
}

// Get implements rest.Getter.
func (r *Scale) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	obj, err := r.store.Get(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return r.scale(obj)
}

// Update implements rest.Updater; it never creates.
func (r *Scale) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	onScale := func(f func(ctx context.Context, obj runtime.Object) error) rest.ValidateObjectFunc {
		return func(ctx context.Context, obj runtime.Object) error {
			s, err := r.scale(obj)
			if err != nil {
				return err
			}
			return f(ctx, s)
		}
	}
	create = onScale(create)
	validate := func(ctx context.Context, obj, old runtime.Object) error {
		oldScale, err := r.scale(old)
		if err != nil {
			return err
		}
		return onScale(func(ctx context.Context, s runtime.Object) error { return update(ctx, s, oldScale) })(ctx, obj)
	}
	obj, _, err := r.store.Update(ctx, name, &scaleInfo{r, name, info}, create, validate, false, o)
	if err != nil {
		return nil, false, err
	}
	s, err := r.scale(obj)
	return s, false, err
}

// ConvertToTable implements rest.TableConvertor.
func (r *Scale) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return scaleTable.ConvertToTable(ctx, obj, options)
}

var scaleTable = NewTable([]metav1.TableColumnDefinition{
	Column("Name", "Name must be unique within a namespace."),
	IntColumn("Desired", "Number of replicas that is wanted."),
	IntColumn("Available", "Number of replicas that was observed."),
	Column("Age", "Time since creation."),
}, func(obj runtime.Object) []any {
	s := obj.(*autoscalingv1.Scale)
	return []any{s.Name, int64(s.Spec.Replicas), int64(s.Status.Replicas), Age(s.CreationTimestamp)}
})

func (r *Scale) scale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, fmt.Errorf("read scale of %s: %w", r.kind.Resource.Resource, err)
	}
	s := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUID(),
		ResourceVersion: m.GetResourceVersion(), CreationTimestamp: m.GetCreationTimestamp(),
	}}
	s.Spec.Replicas = *r.of.Replicas(obj)
	s.Status.Replicas, s.Status.Selector = r.of.Observed(obj)
	return s, nil
}

// scaleInfo turns an update of the scale into one of the object behind it.
type scaleInfo struct {
	rest *Scale
	name string
	info rest.UpdatedObjectInfo
}

func (i *scaleInfo) Preconditions() *metav1.Preconditions { return i.info.Preconditions() }

func (i *scaleInfo) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	if m, err := meta.Accessor(old); err != nil || m.GetResourceVersion() == "" {
		return nil, apierrors.NewNotFound(i.rest.kind.Resource.GroupResource(), i.name)
	}
	obj := old.DeepCopyObject()
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, fmt.Errorf("scale %s: %w", i.name, err)
	}
	version := i.rest.kind.Resource.GroupVersion()
	owners := managedfields.NewScaleHandler(m.GetManagedFields(), version, managedfields.ResourcePathMappings{
		version.String(): fieldpath.MakePathOrDie("spec", "replicas"),
	})
	before, err := i.rest.scale(obj)
	if err != nil {
		return nil, err
	}
	if before.ManagedFields, err = owners.ToSubresource(); err != nil {
		return nil, fmt.Errorf("field owners of the scale of %s: %w", i.name, err)
	}
	updated, err := i.info.UpdatedObject(ctx, before)
	if err != nil {
		return nil, err
	}
	after, ok := updated.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected input object type to be Scale, but %T", updated))
	}
	if errs := validateScale(after); len(errs) > 0 {
		return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), i.name, errs)
	}
	if after.UID != "" && after.UID != m.GetUID() {
		//lint:ignore ST1005 these are the API's own words
		other := fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", after.UID, m.GetUID())
		return nil, apierrors.NewConflict(i.rest.kind.Resource.GroupResource(), i.name, other)
	}
	*i.rest.of.Replicas(obj) = after.Spec.Replicas
	m.SetResourceVersion(after.ResourceVersion)
	entries, err := owners.ToParent(after.ManagedFields)
	if err != nil {
		return nil, fmt.Errorf("field owners of %s: %w", i.name, err)
	}
	m.SetManagedFields(entries)
	return obj, nil
}

func validateScale(s *autoscalingv1.Scale) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&s.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	if s.Spec.Replicas < 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0"))
	}
	return errs
}
