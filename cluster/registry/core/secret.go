package core

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

var secretKind = registry.Kind{
	Resource: gvr("secrets"), Singular: "secret",
	Object: &corev1.Secret{}, List: &corev1.SecretList{},
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		// Clients that do not know the type leave it out.
		if s := obj.(*corev1.Secret); s.Type == "" {
			s.Type = old.(*corev1.Secret).Type
		}
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateSecret(obj.(*corev1.Secret))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		s, was := obj.(*corev1.Secret), old.(*corev1.Secret)
		errs := check.Unchanged(field.NewPath("type"), s.Type, was.Type)
		if ptr.Deref(was.Immutable, false) {
			if !ptr.Deref(s.Immutable, false) {
				errs = append(errs, field.Forbidden(field.NewPath("immutable"), immutableSet))
			}
			if !registry.SemanticEqual(s.Data, was.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), immutableSet))
			}
		}
		return append(errs, validateSecret(s)...)
	},
	Fields: func(obj runtime.Object) fields.Set { return fields.Set{"type": string(obj.(*corev1.Secret).Type)} },
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the Secret"),
		registry.Column("Type", "What the data is for"),
		registry.IntColumn("Data", "How many keys it has"),
		registry.Column("Age", "Time since creation"),
	},
	Row: func(obj runtime.Object) []any {
		s := obj.(*corev1.Secret)
		return []any{s.Name, string(s.Type), int64(len(s.Data)), registry.Age(s.CreationTimestamp)}
	},
}

// setSecretDefaults also moves stringData, which is write-only, into data: it
// runs where an object is decoded, so nothing later sees stringData.
func setSecretDefaults(s *corev1.Secret) {
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
	if len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = make(map[string][]byte, len(s.StringData))
		}
		for k, v := range s.StringData {
			s.Data[k] = []byte(v)
		}
	}
	s.StringData = nil
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	size := 0
	for k, v := range s.Data {
		errs = append(errs, check.Messages(data.Key(k), k, validation.IsConfigMapKey(k))...)
		size += len(v)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(data, "" /*unused*/, corev1.MaxSecretSize))
	}
	require := func(key string) {
		if _, ok := s.Data[key]; !ok {
			errs = append(errs, field.Required(data.Key(key), ""))
		}
	}
	requireJSON := func(key string) {
		v, ok := s.Data[key]
		if !ok {
			errs = append(errs, field.Required(data.Key(key), ""))
		} else if err := json.Unmarshal(v, &map[string]any{}); err != nil {
			// The content is secret, so it is not repeated.
			errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", err.Error()))
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		// The account's name says whose token it is; the UID may come later.
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg:
		requireJSON(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		requireJSON(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password { // either will do
			require(corev1.BasicAuthUsernameKey)
			require(corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		require(corev1.TLSCertKey)
		require(corev1.TLSPrivateKeyKey)
	}
	return errs
}
