// Package events serves the events.k8s.io group: Events, from the same data as
// the core group's. Both are one stored object; package scheme converts.
package events

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/core"
)

// Config is what the group needs beyond registry.Options.
type Config struct{}

// AddDefaults registers the defaulting functions of the group's kinds: Events
// have none.
func AddDefaults(*runtime.Scheme) error { return nil }

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	if _, err := core.EventKind.AddTo(m, o); err != nil {
		return nil, fmt.Errorf("storage of events.k8s.io: %w", err)
	}
	return m, nil
}
