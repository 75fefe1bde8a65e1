// Package events serves the events.k8s.io group: Events, from the same data as the core group's.
package events

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
