package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

const immutableSet = "field is immutable when `immutable` is set"

var configMapKind = registry.Kind{
	Resource: gvr("configmaps"), Singular: "configmap",
	Object: &corev1.ConfigMap{}, List: &corev1.ConfigMapList{},
	ShortNames: []string{"cm"},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateConfigMap(obj.(*corev1.ConfigMap))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		c, was := obj.(*corev1.ConfigMap), old.(*corev1.ConfigMap)
		var errs field.ErrorList
		if ptr.Deref(was.Immutable, false) {
			if !ptr.Deref(c.Immutable, false) {
				errs = append(errs, field.Forbidden(field.NewPath("immutable"), immutableSet))
			}
			if !registry.SemanticEqual(c.Data, was.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), immutableSet))
			}
			if !registry.SemanticEqual(c.BinaryData, was.BinaryData) {
				errs = append(errs, field.Forbidden(field.NewPath("binaryData"), immutableSet))
			}
		}
		return append(errs, validateConfigMap(c)...)
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the ConfigMap"),
		registry.IntColumn("Data", "How many keys it has"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		c := obj.(*corev1.ConfigMap)
		return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), registry.Age(c.CreationTimestamp)}
	},
}

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	size := 0
	for k, v := range c.Data {
		p := field.NewPath("data").Key(k)
		errs = append(errs, check.Messages(p, k, validation.IsConfigMapKey(k))...)
		if _, twice := c.BinaryData[k]; twice {
			errs = append(errs, field.Invalid(p, k, "duplicate of key present in binaryData"))
		}
		size += len(v)
	}
	for k, v := range c.BinaryData {
		errs = append(errs, check.Messages(field.NewPath("binaryData").Key(k), k, validation.IsConfigMapKey(k))...)
		size += len(v)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "" /*unused*/, corev1.MaxSecretSize))
	}
	return errs
}
