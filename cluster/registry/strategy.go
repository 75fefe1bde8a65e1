package registry

import (
	"context"
	"reflect"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy adapts a Kind to the create, update and delete strategies of the
// API library.
type strategy struct {
	runtime.ObjectTyper
	kind   Kind
	status bool // strategy of the status subresource
}

func (s strategy) GenerateName(base string) string {
	return names.SimpleNameGenerator.GenerateName(base)
}

func (s strategy) NamespaceScoped() bool { return !s.kind.ClusterScoped }
func (s strategy) AllowCreateOnUpdate(context.Context) bool {
	return s.kind.AllowCreateOnUpdate && !s.status
}
func (s strategy) AllowUnconditionalUpdate(context.Context) bool {
	return !s.kind.RequireResourceVersion
}

func (s strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	if s.kind.HasStatus && !s.kind.KeepStatusOnCreate {
		if f := fieldOf(obj, "Status"); f.IsValid() {
			f.Set(reflect.Zero(f.Type()))
		}
	}
	if !s.kind.NoGeneration && fieldOf(obj, "Spec").IsValid() {
		if m, ok := obj.(metav1.Object); ok {
			m.SetGeneration(1)
		}
	}
	if s.kind.PrepareForCreate != nil {
		s.kind.PrepareForCreate(ctx, obj)
	}
}

func (s strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	m, mOld := obj.(metav1.Object), old.(metav1.Object)
	m.SetGeneration(mOld.GetGeneration())
	if s.status {
		copyField(obj, old, "Spec")
		// A status write changes neither deletion state nor owners.
		m.SetDeletionTimestamp(mOld.GetDeletionTimestamp())
		m.SetOwnerReferences(mOld.GetOwnerReferences())
		if s.kind.PrepareForStatusUpdate != nil {
			s.kind.PrepareForStatusUpdate(ctx, obj, old)
		}
		return
	}
	if s.kind.HasStatus {
		copyField(obj, old, "Status")
	}
	if s.kind.PrepareForUpdate != nil {
		s.kind.PrepareForUpdate(ctx, obj, old)
	}
	a, b := fieldOf(obj, "Spec"), fieldOf(old, "Spec")
	if a.IsValid() && !s.kind.NoGeneration && !SemanticEqual(a.Interface(), b.Interface()) {
		m.SetGeneration(mOld.GetGeneration() + 1)
	}
}

func (s strategy) nameFn() apivalidation.ValidateNameFunc {
	if s.kind.ValidateName != nil {
		return s.kind.ValidateName
	}
	return apivalidation.NameIsDNSSubdomain
}

func (s strategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	m := obj.(metav1.Object)
	errs := apivalidation.ValidateObjectMetaAccessor(m, !s.kind.ClusterScoped, s.nameFn(), field.NewPath("metadata"))
	if s.kind.Validate != nil {
		errs = append(errs, s.kind.Validate(ctx, obj)...)
	}
	return errs
}

func (s strategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	errs := apivalidation.ValidateObjectMetaAccessorUpdate(obj.(metav1.Object), old.(metav1.Object), field.NewPath("metadata"))
	hook := s.kind.ValidateUpdate
	if s.status {
		hook = s.kind.ValidateStatusUpdate
	}
	if hook != nil {
		errs = append(errs, hook(ctx, obj, old)...)
	}
	return errs
}

func (s strategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	if s.kind.Warnings == nil {
		return nil
	}
	return s.kind.Warnings(ctx, obj)
}

func (s strategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	if s.status {
		return nil
	}
	if s.kind.WarningsOnUpdate != nil {
		return s.kind.WarningsOnUpdate(ctx, obj, old)
	}
	return s.WarningsOnCreate(ctx, obj)
}

func (s strategy) Canonicalize(obj runtime.Object) {
	if s.kind.Canonicalize != nil {
		s.kind.Canonicalize(obj)
	}
}

func (s strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	set := fieldpath.NewSet()
	if s.kind.ResetFields != nil && !s.status {
		set = set.Union(s.kind.ResetFields)
	}
	switch {
	case s.status:
		set.Insert(fieldpath.MakePathOrDie("spec"))
	case s.kind.HasStatus:
		set.Insert(fieldpath.MakePathOrDie("status"))
	}
	if set.Empty() {
		return nil
	}
	v := fieldpath.APIVersion(s.kind.Resource.GroupVersion().String())
	return map[fieldpath.APIVersion]*fieldpath.Set{v: set}
}

// deleteStrategy adds the optional interfaces only where the kind has them:
// the library tests for their presence.
func (k Kind) deleteStrategy(s strategy) rest.RESTDeleteStrategy {
	gc := gcStrategy{s}
	switch {
	case k.CheckGracefulDelete != nil:
		return gracefulStrategy{gc}
	default:
		return gc
	}
}

type gcStrategy struct{ strategy }

func (s gcStrategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	if s.kind.DefaultGC == "" {
		return rest.DeleteDependents
	}
	return s.kind.DefaultGC
}

type gracefulStrategy struct{ gcStrategy }

func (s gracefulStrategy) CheckGracefulDelete(ctx context.Context, obj runtime.Object, o *metav1.DeleteOptions) bool {
	return s.kind.CheckGracefulDelete(ctx, obj, o)
}

func fieldOf(obj runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

func copyField(dst, src runtime.Object, name string) {
	if d, s := fieldOf(dst, name), fieldOf(src, name); d.IsValid() && s.IsValid() {
		d.Set(s)
	}
}
