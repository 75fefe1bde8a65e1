// Package node serves the node.k8s.io group: RuntimeClasses. None is there by
// itself; pods that name none run with runc, as do those of a class with that
// handler.
package node

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

// Config is what the group needs beyond registry.Options.
type Config struct{}

// AddDefaults registers the defaulting functions of the group's kinds: runtime
// classes have none.
func AddDefaults(*runtime.Scheme) error { return nil }

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	if _, err := classKind.AddTo(m, o); err != nil {
		return nil, err
	}
	return m, nil
}

var classKind = registry.Kind{
	Resource: nodev1.SchemeGroupVersion.WithResource("runtimeclasses"), Singular: "runtimeclass",
	Object: &nodev1.RuntimeClass{}, List: &nodev1.RuntimeClassList{},
	ClusterScoped: true, NoGeneration: true, AllowCreateOnUpdate: true, RequireResourceVersion: true,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateClass(obj.(*nodev1.RuntimeClass))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		c := obj.(*nodev1.RuntimeClass)
		return append(validateClass(c), check.Unchanged(field.NewPath("handler"), c.Handler, old.(*nodev1.RuntimeClass).Handler)...)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the class"),
		registry.Column("Handler", "What runs pods of this class on a node"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*nodev1.RuntimeClass)
		return []any{c.Name, c.Handler, registry.Age(c.CreationTimestamp)}
	},
}

func validateClass(c *nodev1.RuntimeClass) field.ErrorList {
	var errs field.ErrorList
	if p := field.NewPath("handler"); c.Handler == "" {
		errs = append(errs, field.Required(p, ""))
	} else {
		errs = append(errs, check.Label(p, c.Handler)...)
	}
	if c.Overhead != nil {
		errs = append(errs, podspec.ValidateOverhead(c.Overhead.PodFixed, field.NewPath("overhead"))...)
	}
	if s := c.Scheduling; s != nil {
		p := field.NewPath("scheduling")
		errs = append(errs, metav1validation.ValidateLabels(s.NodeSelector, p.Child("nodeSelector"))...)
		p = p.Child("tolerations")
		errs = append(errs, podspec.ValidateTolerations(s.Tolerations, p)...)
		seen := map[corev1.Toleration]bool{}
		for i, t := range s.Tolerations {
			key := t
			key.TolerationSeconds = nil
			if seen[key] {
				errs = append(errs, field.Duplicate(p.Index(i), t))
			}
			seen[key] = true
		}
	}
	return errs
}
