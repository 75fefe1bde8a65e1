package admission

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
)

// unsupported refuses new objects of kinds that nothing acts on yet (a quota
// that limits nothing is worse than none).
type unsupported struct{ *admission.Handler }

var unsupportedKinds = map[schema.GroupResource]string{
	{Resource: "resourcequotas"}: "resource quotas are not enforced by this version of skiff",
}

// Validate implements admission.ValidationInterface.
func (u *unsupported) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if reason, ok := unsupportedKinds[a.GetResource().GroupResource()]; ok && a.GetSubresource() == "" {
		return admission.NewForbidden(a, errors.New(reason))
	}
	return nil
}
