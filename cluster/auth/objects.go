package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Objects reads what decisions depend on from this server's own copy of the
// state. Objects that it returns are shared and must not be changed.
type Objects interface {
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	Node(ctx context.Context, name string) (*corev1.Node, error)
	Namespace(ctx context.Context, name string) (*corev1.Namespace, error)
	Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	// Pods lists one namespace, or all with "".
	Pods(ctx context.Context, namespace string) ([]corev1.Pod, error)
}

// StorageObjects is Objects on the REST storage of kinds. Authentication is
// configured before that storage exists, so it is bound later; until then
// every read fails.
//
// The own copy may be behind: what is not in it is looked for again after Fresh.
type StorageObjects struct {
	// Fresh returns when the copy has all that was written before the call; nil:
	// it always has.
	Fresh func(ctx context.Context) error

	storage atomic.Pointer[map[string]rest.Storage]
}

// freshWait is how long a decision waits for a copy that may be behind.
const freshWait = 2 * time.Second

// Refresh brings the copy up to date, and tells whether that may have changed
// anything.
func (o *StorageObjects) Refresh(ctx context.Context) bool {
	if o.Fresh == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, freshWait)
	defer cancel()
	return o.Fresh(ctx) == nil
}

var errNotBound = errors.New("the API is still starting")

// Bind adds the storage of a group, by resource; core/v1 has to be the first: where
// two groups have a resource of one name, it is the earlier one's. One call at a time.
func (o *StorageObjects) Bind(m map[string]rest.Storage) {
	all := maps.Clone(m)
	if before := o.storage.Load(); before != nil {
		maps.Copy(all, *before)
	}
	o.storage.Store(&all)
}

func (o *StorageObjects) get(ctx context.Context, resource, namespace, name string) (runtime.Object, error) {
	m := o.storage.Load()
	if m == nil {
		return nil, errNotBound
	}
	g, ok := (*m)[resource].(rest.Getter)
	if !ok {
		return nil, fmt.Errorf("%s cannot be read", resource)
	}
	return g.Get(request.WithNamespace(ctx, namespace), name, &metav1.GetOptions{ResourceVersion: "0"})
}

func get[T runtime.Object](ctx context.Context, o *StorageObjects, resource, namespace, name string) (T, error) {
	obj, err := o.get(ctx, resource, namespace, name)
	if apierrors.IsNotFound(err) && o.Refresh(ctx) {
		obj, err = o.get(ctx, resource, namespace, name)
	}
	if err != nil {
		var zero T
		return zero, err
	}
	t, ok := obj.(T)
	if !ok {
		return t, fmt.Errorf("%s %q is a %T", resource, name, obj)
	}
	return t, nil
}

// ServiceAccount implements Objects.
func (o *StorageObjects) ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return get[*corev1.ServiceAccount](ctx, o, "serviceaccounts", namespace, name)
}

// Pod implements Objects.
func (o *StorageObjects) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return get[*corev1.Pod](ctx, o, "pods", namespace, name)
}

// Secret implements Objects.
func (o *StorageObjects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return get[*corev1.Secret](ctx, o, "secrets", namespace, name)
}

// Node implements Objects.
func (o *StorageObjects) Node(ctx context.Context, name string) (*corev1.Node, error) {
	return get[*corev1.Node](ctx, o, "nodes", "", name)
}

// Namespace implements Objects.
func (o *StorageObjects) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	return get[*corev1.Namespace](ctx, o, "namespaces", "", name)
}

// Volume implements Objects.
func (o *StorageObjects) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return get[*corev1.PersistentVolume](ctx, o, "persistentvolumes", "", name)
}

// StorageClass reads a class by its name.
func (o *StorageObjects) StorageClass(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	return get[*storagev1.StorageClass](ctx, o, "storageclasses", "", name)
}

// StorageClasses lists all classes.
func (o *StorageObjects) StorageClasses(ctx context.Context) ([]storagev1.StorageClass, error) {
	l, err := list[*storagev1.StorageClassList](ctx, o, "storageclasses", "")
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// RuntimeClass reads a class by its name.
func (o *StorageObjects) RuntimeClass(ctx context.Context, name string) (*nodev1.RuntimeClass, error) {
	return get[*nodev1.RuntimeClass](ctx, o, "runtimeclasses", "", name)
}

// Pods implements Objects.
func (o *StorageObjects) Pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	l, err := list[*corev1.PodList](ctx, o, "pods", namespace)
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// LimitRanges lists one namespace.
func (o *StorageObjects) LimitRanges(ctx context.Context, namespace string) ([]corev1.LimitRange, error) {
	l, err := list[*corev1.LimitRangeList](ctx, o, "limitranges", namespace)
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

func list[T runtime.Object](ctx context.Context, o *StorageObjects, resource, namespace string) (T, error) {
	var zero T
	m := o.storage.Load()
	if m == nil {
		return zero, errNotBound
	}
	l, ok := (*m)[resource].(rest.Lister)
	if !ok {
		return zero, fmt.Errorf("%s cannot be listed", resource)
	}
	obj, err := l.List(request.WithNamespace(ctx, namespace), &metainternalversion.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return zero, err
	}
	t, ok := obj.(T)
	if !ok {
		return zero, fmt.Errorf("list of %s is a %T", resource, obj)
	}
	return t, nil
}
