// Package apiregistration serves apiregistration.k8s.io: an APIService for
// every group and version that this server has, as tools look for them to see
// whether an API is there. They are not stored; they follow from what is served.
//
// Limits: there is no aggregation of other API servers, so nothing can be
// created, and there is nothing to change. Each server counts its own resource
// versions.
package apiregistration

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-sh/skiff/cluster/registry"
)

const (
	// managedLabel is upstream's: how an APIService came about.
	managedLabel = "kube-aggregator.kubernetes.io/automanaged"

	builtinPriority, builtinVersion = 17000, 15
	corePriority, coreVersion       = 18000, 1
	customPriority, customVersion   = 1000, 100
)

// APIServices is the storage of the resource.
type APIServices struct {
	rest.TableConvertor
	began time.Time

	mu       sync.Mutex
	version  int64 // of the newest change
	byName   map[string]*apiregistrationv1.APIService
	watchers map[*watcher]bool
}

var (
	_ rest.Scoper               = (*APIServices)(nil)
	_ rest.Getter               = (*APIServices)(nil)
	_ rest.Lister               = (*APIServices)(nil)
	_ rest.Watcher              = (*APIServices)(nil)
	_ rest.Creater              = (*APIServices)(nil)
	_ rest.SingularNameProvider = (*APIServices)(nil)
	_ rest.CategoriesProvider   = (*APIServices)(nil)
)

// New has no group yet.
func New() *APIServices {
	now := time.Now()
	return &APIServices{
		TableConvertor: registry.NewTable([]metav1.TableColumnDefinition{
			registry.Column("Name", "Version and group"),
			registry.Column("Service", "Who serves it"),
			registry.Column("Available", "Whether it is served now"),
			registry.Column("Age", "Time since this server began to serve it"),
		}, func(obj runtime.Object) []any {
			s := obj.(*apiregistrationv1.APIService)
			return []any{s.Name, "Local", string(s.Status.Conditions[0].Status), registry.Age(s.CreationTimestamp)}
		}),
		// Servers that start at different times have different versions, so a client
		// that goes on at another one is told to list again.
		began: now, version: now.UnixMilli(),
		byName:   map[string]*apiregistrationv1.APIService{},
		watchers: map[*watcher]bool{},
	}
}

// NewStorage gives the group's resources by discovery name.
func (a *APIServices) NewStorage() map[string]rest.Storage {
	return map[string]rest.Storage{"apiservices": a}
}

// Builtin adds a group version that is served from the start.
func (a *APIServices) Builtin(gv schema.GroupVersion) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := service(gv, "onstart", builtinPriority, builtinVersion, a.began)
	if gv.Group == "" {
		s.Spec.GroupPriorityMinimum, s.Spec.VersionPriority = corePriority, coreVersion
	}
	a.put(s)
}

// Custom tells which versions of a group of custom resources are served now.
func (a *APIServices) Custom(group string, versions []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, s := range a.byName {
		if s.Spec.Group == group && s.Labels[managedLabel] == "true" && !slices.Contains(versions, s.Spec.Version) {
			delete(a.byName, name)
			a.version++
			gone := s.DeepCopy()
			gone.ResourceVersion = a.now()
			a.tell(watch.Event{Type: watch.Deleted, Object: gone})
		}
	}
	for _, v := range versions {
		gv := schema.GroupVersion{Group: group, Version: v}
		if a.byName[nameOf(gv)] == nil {
			a.put(service(gv, "true", customPriority, customVersion, time.Now()))
		}
	}
}

// put adds a new one; a.mu is held.
func (a *APIServices) put(s *apiregistrationv1.APIService) {
	a.version++
	s.ResourceVersion = a.now()
	a.byName[s.Name] = s
	a.tell(watch.Event{Type: watch.Added, Object: s})
}

// now is the newest version; a.mu is held.
func (a *APIServices) now() string { return strconv.FormatInt(a.version, 10) }

func nameOf(gv schema.GroupVersion) string { return gv.Version + "." + gv.Group }

func service(gv schema.GroupVersion, managed string, group, version int32, at time.Time) *apiregistrationv1.APIService {
	name, created := nameOf(gv), metav1.NewTime(at).Rfc3339Copy()
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uuid.NewSHA1(uuid.NameSpaceURL, []byte("apiservice/"+name)).String()),
			CreationTimestamp: created, Labels: map[string]string{managedLabel: managed}},
		Spec: apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: group, VersionPriority: version},
		Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{
			Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, LastTransitionTime: created,
			Reason: "Local", Message: "Served by the API server itself"}}},
	}
}

// New implements rest.Storage.
func (*APIServices) New() runtime.Object { return &apiregistrationv1.APIService{} }

// NewList implements rest.Lister.
func (*APIServices) NewList() runtime.Object { return &apiregistrationv1.APIServiceList{} }

// Destroy implements rest.Storage.
func (*APIServices) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (*APIServices) NamespaceScoped() bool { return false }

// GetSingularName implements rest.SingularNameProvider.
func (*APIServices) GetSingularName() string { return "apiservice" }

// Categories implements rest.CategoriesProvider.
func (*APIServices) Categories() []string { return []string{"api-extensions"} }

// Get implements rest.Getter.
func (a *APIServices) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byName[name]; s != nil {
		return s.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(apiregistrationv1.Resource("apiservices"), name)
}

// List implements rest.Lister.
func (a *APIServices) List(_ context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := &apiregistrationv1.APIServiceList{Items: []apiregistrationv1.APIService{}}
	list.ResourceVersion = a.now()
	for _, s := range a.byName {
		if matches(o, s) {
			list.Items = append(list.Items, *s.DeepCopy())
		}
	}
	slices.SortFunc(list.Items, func(x, y apiregistrationv1.APIService) int { return strings.Compare(x.Name, y.Name) })
	return list, nil
}

// Create says that there is no aggregation.
func (a *APIServices) Create(ctx context.Context, obj runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	s, ok := obj.(*apiregistrationv1.APIService)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not an APIService: %T", obj))
	}
	if _, err := a.Get(ctx, s.Name, nil); err == nil {
		return nil, apierrors.NewAlreadyExists(apiregistrationv1.Resource("apiservices"), s.Name)
	}
	why := "skiff serves no APIs of other API servers (API aggregation is not supported)"
	if s.Spec.Group == "metrics.k8s.io" || s.Spec.Group == "custom.metrics.k8s.io" {
		why += "; metrics.k8s.io/v1beta1 is served by skiff itself, without metrics-server"
	}
	return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
		Message: fmt.Sprintf("APIService %q: %s", s.Name, why)}}
}
