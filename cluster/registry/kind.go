// Package registry is what every served kind has in common: one declaration,
// Kind, from which a genericregistry.Store, its status subresource and its
// kubectl columns are made. The groups live in the packages below it.
//
// Limits: the Go type of the served version is also the internal version (see
// package scheme), so a kind that is served in two versions needs conversions
// of its own.
package registry

import (
	"context"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Options is what a group needs to build its storage.
type Options struct {
	// Scheme has every served type, with defaults registered.
	Scheme *runtime.Scheme
	// RESTOptions gives each resource its storage.Interface.
	RESTOptions generic.RESTOptionsGetter
}

// Kind declares one resource. Only the fields up to List are required; a nil
// hook means that nothing is to be done there.
type Kind struct {
	Resource schema.GroupVersionResource
	Singular string
	// Object and List are empty values of the Go types; never stored.
	Object, List runtime.Object

	ClusterScoped bool
	// HasStatus serves NAME/status and keeps spec and status writes apart.
	HasStatus bool
	// KeepStatusOnCreate lets a create set the status (nodes).
	KeepStatusOnCreate bool
	// NoGeneration leaves metadata.generation unset, for kinds with a spec whose
	// generation Kubernetes does not count.
	NoGeneration bool

	ShortNames []string
	// Categories such as "all".
	Categories []string

	// PrepareForCreate and PrepareForUpdate normalise an object before it is
	// validated. Status and generation are already handled.
	PrepareForCreate       func(ctx context.Context, obj runtime.Object)
	PrepareForUpdate       func(ctx context.Context, obj, old runtime.Object)
	PrepareForStatusUpdate func(ctx context.Context, obj, old runtime.Object)

	// Validate sees a defaulted object whose metadata the library has checked
	// only in part: call validation.ValidateObjectMeta with NameFn semantics
	// here through ValidateName.
	Validate             func(ctx context.Context, obj runtime.Object) field.ErrorList
	ValidateUpdate       func(ctx context.Context, obj, old runtime.Object) field.ErrorList
	ValidateStatusUpdate func(ctx context.Context, obj, old runtime.Object) field.ErrorList
	// ValidateName checks metadata.name (and generateName with prefix set).
	// Nil accepts DNS-1123 subdomains.
	ValidateName func(name string, prefix bool) []string

	Warnings         func(ctx context.Context, obj runtime.Object) []string
	WarningsOnUpdate func(ctx context.Context, obj, old runtime.Object) []string
	Canonicalize     func(obj runtime.Object)

	// AllowCreateOnUpdate lets a PUT create the object (leases, events …).
	AllowCreateOnUpdate bool
	// RequireResourceVersion refuses updates without a resourceVersion.
	RequireResourceVersion bool

	// CheckGracefulDelete makes deletion graceful (pods); it fills
	// options.GracePeriodSeconds and returns true when there is one.
	CheckGracefulDelete func(ctx context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool
	// DefaultGC is what a DELETE without propagationPolicy does. Empty means
	// background.
	DefaultGC rest.GarbageCollectionPolicy

	// Fields gives field-selector attributes beyond metadata.name and
	// metadata.namespace. The labels have to be allowed in package scheme.
	Fields func(obj runtime.Object) fields.Set

	// Columns and Row make the kubectl table; Row gives one cell a column.
	// Without Columns the table has NAME and AGE.
	Columns []metav1.TableColumnDefinition
	Row     func(obj runtime.Object) []any

	// ResetFields are cleared from managedFields on main-resource writes in
	// addition to status.
	ResetFields *fieldpath.Set

	// Customize sees the store before it is completed, to set BeginCreate,
	// AfterDelete, TTLFunc, ShouldDeleteDuringUpdate and the like.
	Customize func(*genericregistry.Store)
}

// Store is the REST storage of a Kind.
type Store struct {
	*genericregistry.Store
	kind Kind
}

var (
	_ rest.ShortNamesProvider = (*Store)(nil)
	_ rest.CategoriesProvider = (*Store)(nil)
	_ rest.StandardStorage    = (*Store)(nil)
)

// ShortNames implements rest.ShortNamesProvider.
func (s *Store) ShortNames() []string { return s.kind.ShortNames }

// Categories implements rest.CategoriesProvider.
func (s *Store) Categories() []string { return s.kind.Categories }

// Kind returns the declaration the store was made from.
func (s *Store) Kind() Kind { return s.kind }

// NewStore builds the storage of the main resource.
func (k Kind) NewStore(o Options) (*Store, error) {
	st := strategy{kind: k, ObjectTyper: o.Scheme}
	objectType, listType := reflect.TypeOf(k.Object).Elem(), reflect.TypeOf(k.List).Elem()
	gr := k.Resource.GroupResource()
	s := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return reflect.New(objectType).Interface().(runtime.Object) },
		NewListFunc:               func() runtime.Object { return reflect.New(listType).Interface().(runtime.Object) },
		DefaultQualifiedResource:  gr,
		SingularQualifiedResource: schema.GroupResource{Group: gr.Group, Resource: k.Singular},
		CreateStrategy:            st,
		UpdateStrategy:            st,
		DeleteStrategy:            k.deleteStrategy(st),
		ResetFieldsStrategy:       st,
		TableConvertor:            k.table(),
	}
	s.PredicateFunc = func(l labels.Selector, f fields.Selector) storage.SelectionPredicate {
		return storage.SelectionPredicate{Label: l, Field: f, GetAttrs: k.attrs}
	}
	if k.Customize != nil {
		k.Customize(s)
	}
	if err := s.CompleteWithOptions(&generic.StoreOptions{RESTOptions: o.RESTOptions, AttrFunc: k.attrs}); err != nil {
		return nil, fmt.Errorf("storage of %s: %w", gr, err)
	}
	return &Store{Store: s, kind: k}, nil
}

// AddTo builds the storage of the main resource and, with HasStatus, of its
// status, and enters both into m under their discovery names.
func (k Kind) AddTo(m map[string]rest.Storage, o Options) (*Store, error) {
	s, err := k.NewStore(o)
	if err != nil {
		return nil, err
	}
	m[k.Resource.Resource] = s
	if k.HasStatus {
		m[k.Resource.Resource+"/status"] = s.Status()
	}
	return s, nil
}

func (k Kind) attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, err
	}
	set := fields.Set{}
	if k.Fields != nil {
		set = k.Fields(obj)
	}
	set["metadata.name"] = m.GetName()
	if !k.ClusterScoped {
		set["metadata.namespace"] = m.GetNamespace()
	}
	return m.GetLabels(), set, nil
}

// With returns a store over the same data with another update strategy, for
// subresources such as status, scale, binding or ephemeralcontainers.
func (s *Store) With(update rest.RESTUpdateStrategy, reset rest.ResetFieldsStrategy) *genericregistry.Store {
	c := *s.Store
	c.UpdateStrategy, c.ResetFieldsStrategy = update, reset
	return &c
}

// SemanticEqual compares API values as the API does: nil and empty are equal,
// quantities and times are compared by value.
func SemanticEqual(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
