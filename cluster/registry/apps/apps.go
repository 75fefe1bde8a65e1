// Package apps serves the kinds of apps/v1: defaults, validation, printed
// columns and the scale subresources.
//
// Limits: only apps/v1; the beta versions that upstream dropped are unknown.
package apps

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// Config is what the group needs beyond registry.Options: nothing so far.
type Config struct{}

func gvr(resource string) schema.GroupVersionResource {
	return appsv1.SchemeGroupVersion.WithResource(resource)
}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	addDefaults(s)
	return nil
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	for _, add := range []func(registry.Options, map[string]rest.Storage) error{
		deploymentStorage, replicaSetStorage, daemonSetStorage, statefulSetStorage, controllerRevisionStorage,
	} {
		if err := add(o, m); err != nil {
			return nil, err
		}
	}
	return m, nil
}
