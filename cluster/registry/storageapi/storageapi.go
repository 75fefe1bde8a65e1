// Package storageapi serves the storage.k8s.io group: classes of volumes, and
// what CSI drivers tell of themselves.
//
// Limits: the kinds of CSI are kept for those who read them. No driver can be
// installed on a node, and nothing attaches, modifies or expands volumes.
package storageapi

import (
	"fmt"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// Config is what the group needs beyond registry.Options.
type Config struct{}

func gvr(resource string) schema.GroupVersionResource {
	return storagev1.SchemeGroupVersion.WithResource(resource)
}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	s.AddTypeDefaultingFunc(&storagev1.StorageClass{}, func(obj any) { setClassDefaults(obj.(*storagev1.StorageClass)) })
	s.AddTypeDefaultingFunc(&storagev1.CSIDriver{}, func(obj any) { setDriverDefaults(&obj.(*storagev1.CSIDriver).Spec) })
	return nil
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, _ Config) (map[string]rest.Storage, error) {
	m := map[string]rest.Storage{}
	for _, k := range []registry.Kind{classKind, driverKind, nodeKind, capacityKind, attachmentKind, attributesKind} {
		if _, err := k.AddTo(m, o); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func boolColumn(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "boolean", Description: description}
}

const (
	maxParameters     = 512
	maxParameterBytes = 256 << 10
)

// validateParameters checks what is handed to a provisioner.
func validateParameters(params map[string]string, needed bool, p *field.Path) field.ErrorList {
	if len(params) > maxParameters {
		return field.ErrorList{field.TooLong(p, "", maxParameters)}
	}
	var errs field.ErrorList
	size := 0
	for k, v := range params {
		if k == "" {
			errs = append(errs, field.Invalid(p, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParameterBytes {
		errs = append(errs, field.TooLong(p, "", maxParameterBytes))
	}
	if needed && len(params) == 0 {
		errs = append(errs, field.Required(p, "must contain at least one key/value pair"))
	}
	return errs
}

func validateProvisioner(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return check.QualifiedName(p, strings.ToLower(name))
}

const maxDriverName = 63

// validateDriverName checks the name of a CSI driver.
func validateDriverName(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	var errs field.ErrorList
	if len(name) > maxDriverName {
		errs = append(errs, field.TooLong(p, "", maxDriverName))
	}
	return append(errs, check.Messages(p, name, lowerSubdomain(name))...)
}

func tooLong(p *field.Path, value string, limit int) field.ErrorList {
	if len(value) > limit {
		return field.ErrorList{field.Invalid(p, value, fmt.Sprintf("must be %d characters or less", limit))}
	}
	return nil
}
