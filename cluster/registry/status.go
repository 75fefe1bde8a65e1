package registry

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Subresource serves get, update and patch of a view on a Store, such as
// NAME/status, with an update strategy of its own.
type Subresource struct {
	store *genericregistry.Store
}

var (
	_ rest.Patcher             = (*Subresource)(nil)
	_ rest.ResetFieldsStrategy = (*Subresource)(nil)
	_ rest.TableConvertor      = (*Subresource)(nil)
)

// NewSubresource serves store, which comes from Store.With.
func NewSubresource(store *genericregistry.Store) *Subresource { return &Subresource{store} }

// Status serves the status subresource of s.
func (s *Store) Status() *Subresource {
	st := s.Store.UpdateStrategy.(strategy)
	st.status = true
	return NewSubresource(s.With(st, st))
}

// New implements rest.Storage.
func (r *Subresource) New() runtime.Object { return r.store.New() }

// Destroy implements rest.Storage; the main resource owns the store.
func (r *Subresource) Destroy() {}

// Get implements rest.Getter.
func (r *Subresource) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.store.Get(ctx, name, o)
}

// Update implements rest.Updater; it never creates.
func (r *Subresource) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, info, create, update, false, o)
}

// GetResetFields implements rest.ResetFieldsStrategy.
func (r *Subresource) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return r.store.GetResetFields()
}

// ConvertToTable implements rest.TableConvertor.
func (r *Subresource) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return r.store.ConvertToTable(ctx, obj, options)
}
