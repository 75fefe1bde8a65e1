package core

import (
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// podPart serves a subresource by which a few fields of a pod change. It owns
// nothing but those, so that a manifest which is applied to it takes over no other
// field. The generic subresource says what it resets, this one what it keeps: it
// may not be both.
type podPart struct {
	rest.Patcher
	rest.TableConvertor
	keeps []*fieldpath.SetMatcher
}

var _ rest.ResetFieldsFilterStrategy = podPart{}

func newPodPart(pods *genericregistry.Store, keeps ...*fieldpath.SetMatcher) podPart {
	s := registry.NewSubresource(pods)
	return podPart{s, s, keeps}
}

// Destroy implements rest.Storage; the main resource owns the store.
func (podPart) Destroy() {}

// GetResetFieldsFilter implements rest.ResetFieldsFilterStrategy.
func (p podPart) GetResetFieldsFilter() map[fieldpath.APIVersion]fieldpath.Filter {
	return map[fieldpath.APIVersion]fieldpath.Filter{"v1": fieldpath.NewIncludeMatcherFilter(p.keeps...)}
}
