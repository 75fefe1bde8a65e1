package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-sh/skiff/cluster/registry"
)

var serviceAccountKind = registry.Kind{
	Resource: gvr("serviceaccounts"), Singular: "serviceaccount",
	Object: &corev1.ServiceAccount{}, List: &corev1.ServiceAccountList{},
	ShortNames:   []string{"sa"},
	ValidateName: apivalidation.ValidateServiceAccountName,
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		dropSecretFields(obj.(*corev1.ServiceAccount))
	},
	PrepareForUpdate: func(_ context.Context, obj, _ runtime.Object) {
		dropSecretFields(obj.(*corev1.ServiceAccount))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the ServiceAccount"),
		registry.Column("Secrets", "How many secrets its pods may mount"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		s := obj.(*corev1.ServiceAccount)
		return []any{s.Name, int64(len(s.Secrets)), registry.Age(s.CreationTimestamp)}
	},
}

// dropSecretFields keeps only the names of referenced secrets: the other fields
// of the reference never had a meaning.
func dropSecretFields(s *corev1.ServiceAccount) {
	for i := range s.Secrets {
		s.Secrets[i] = corev1.ObjectReference{Name: s.Secrets[i].Name}
	}
}
