// Package coordination serves the coordination.k8s.io group: Leases. Those of
// kube-node-lease are what gossip knows of nodes, and can only be read.
package coordination

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// Config is what the group needs beyond registry.Options.
type Config struct {
	// Gossip answers for the leases of nodes. Nil: those are stored as all
	// others, and nobody writes them.
	Gossip nodehealth.Gossip
}

// AddDefaults registers the defaulting functions of the group's kinds: Leases
// have none.
func AddDefaults(*runtime.Scheme) error { return nil }

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, c Config) (map[string]rest.Storage, error) {
	s, err := LeaseKind.NewStore(o)
	if err != nil {
		return nil, err
	}
	if c.Gossip == nil {
		return map[string]rest.Storage{"leases": s}, nil
	}
	return map[string]rest.Storage{"leases": &leases{Store: s, gossip: c.Gossip, now: time.Now}}, nil
}

// LeaseKind is Leases. A client may PUT a Lease that does not exist.
var LeaseKind = registry.Kind{
	Resource: coordinationv1.SchemeGroupVersion.WithResource("leases"), Singular: "lease",
	Object: &coordinationv1.Lease{}, List: &coordinationv1.LeaseList{},
	AllowCreateOnUpdate: true, RequireResourceVersion: true, NoGeneration: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateLease(&obj.(*coordinationv1.Lease).Spec)
	},
	ValidateUpdate: func(_ context.Context, obj, _ runtime.Object) field.ErrorList {
		return validateLease(&obj.(*coordinationv1.Lease).Spec)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the Lease"),
		registry.Column("Holder", "Who holds it"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		l := obj.(*coordinationv1.Lease)
		return []any{l.Name, ptr.Deref(l.Spec.HolderIdentity, ""), registry.Age(l.CreationTimestamp)}
	},
}

func validateLease(s *coordinationv1.LeaseSpec) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(p.Child("leaseDurationSeconds"), *d, check.NotPositive))
	}
	if n := s.LeaseTransitions; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(p.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
	}
	if s.Strategy != nil {
		errs = append(errs, field.Forbidden(p.Child("strategy"), "coordinated leader election is not supported"))
	}
	if s.PreferredHolder != nil && *s.PreferredHolder != "" {
		errs = append(errs, field.Forbidden(p.Child("preferredHolder"), "coordinated leader election is not supported"))
	}
	return errs
}
