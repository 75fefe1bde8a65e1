// Package rbac serves the rbac.authorization.k8s.io group: Roles, ClusterRoles and their bindings.
package rbac

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// Config is what the group needs beyond registry.Options.
type Config struct{}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	return nil
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, cfg Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	return m, nil
}
