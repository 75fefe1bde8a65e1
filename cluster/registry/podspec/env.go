package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const oneFieldOnly = "may not have more than one field specified at a time"

func (v *validator) env(vars []corev1.EnvVar, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range vars {
		e, p := &vars[i], fld.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else {
			errs = append(errs, eachMessage(validation.IsRelaxedEnvVarName(e.Name), e.Name, p.Child("name"))...)
		}
		if e.ValueFrom != nil {
			errs = append(errs, v.envSource(e, p.Child("valueFrom"))...)
		}
	}
	return errs
}

func (v *validator) envSource(e *corev1.EnvVar, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, sources := e.ValueFrom, 0
	if r := from.FieldRef; r != nil {
		sources++
		errs = append(errs, validateFieldRef(r, envFields, fld.Child("fieldRef"))...)
	}
	if r := from.ResourceFieldRef; r != nil {
		sources++
		errs = append(errs, validateResourceRef(r, false, fld.Child("resourceFieldRef"))...)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		sources++
		errs = append(errs, validateKeyRef(r.Name, r.Key, fld.Child("configMapKeyRef"))...)
	}
	if r := from.SecretKeyRef; r != nil {
		sources++
		errs = append(errs, validateKeyRef(r.Name, r.Key, fld.Child("secretKeyRef"))...)
	}
	if r := from.FileKeyRef; r != nil {
		sources++
		errs = append(errs, v.fileKey(r, fld.Child("fileKeyRef"))...)
	}
	switch {
	case sources == 0:
		errs = append(errs, field.Invalid(fld, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(fld, "", "may not be specified when `value` is not empty"))
	case sources > 1:
		errs = append(errs, field.Invalid(fld, "", oneFieldOnly))
	}
	return errs
}

// fileKey checks a variable that is read from a file, which only an emptyDir may
// hold.
func (v *validator) fileKey(r *corev1.FileKeySelector, fld *field.Path) field.ErrorList {
	errs := required(fld, "key", r.Key)
	if r.Key != "" {
		errs = append(errs, eachMessage(validation.IsRelaxedEnvVarName(r.Key), r.Key, fld.Child("key"))...)
	}
	name := fld.Child("volumeName")
	errs = append(errs, required(fld, "volumeName", r.VolumeName)...)
	if r.VolumeName != "" {
		errs = append(errs, eachMessage(validation.IsDNS1123Label(r.VolumeName), r.VolumeName, name)...)
	}
	errs = append(errs, required(fld, "path", r.Path)...)
	errs = append(errs, descending(r.Path, fld.Child("path"))...)
	if source, known := v.volumes[r.VolumeName]; !known {
		errs = append(errs, field.NotFound(name, r.VolumeName))
	} else if source == nil || source.EmptyDir == nil {
		errs = append(errs, field.Invalid(name, r.VolumeName, "referenced volume must be of type emptyDir"))
	}
	return errs
}

func validateKeyRef(name, key string, fld *field.Path) field.ErrorList {
	errs := eachMessage(apivalidation.NameIsDNSSubdomain(name, false), name, fld.Child("name"))
	if key == "" {
		return append(errs, field.Required(fld.Child("key"), ""))
	}
	return append(errs, eachMessage(validation.IsConfigMapKey(key), key, fld.Child("key"))...)
}

func validateEnvFrom(from []corev1.EnvFromSource, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, f := range from {
		p, sources := fld.Index(i), 0
		if f.Prefix != "" {
			errs = append(errs, eachMessage(validation.IsRelaxedEnvVarName(f.Prefix), f.Prefix, p.Child("prefix"))...)
		}
		ref := func(name string, fld *field.Path) {
			sources++
			if name == "" {
				errs = append(errs, field.Required(fld.Child("name"), ""))
				return
			}
			errs = append(errs, eachMessage(apivalidation.NameIsDNSSubdomain(name, true), name, fld.Child("name"))...)
		}
		if f.ConfigMapRef != nil {
			ref(f.ConfigMapRef.Name, p.Child("configMapRef"))
		}
		if f.SecretRef != nil {
			ref(f.SecretRef.Name, p.Child("secretRef"))
		}
		switch {
		case sources == 0:
			errs = append(errs, field.Invalid(fld, "", "must specify one of: `configMapRef` or `secretRef`"))
		case sources > 1:
			errs = append(errs, field.Invalid(fld, "", oneFieldOnly))
		}
	}
	return errs
}

var (
	// envFields and volumeFields are what a container may learn of its pod
	// through the environment and through files.
	envFields = sets.New("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs")
	volumeFields = sets.New("metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid")
	// podFields are all paths the API knows; others are no paths at all.
	podFields = envFields.Union(volumeFields).Insert("spec.restartPolicy", "spec.schedulerName", "status.phase", "spec.host")
)

func validateFieldRef(r *corev1.ObjectFieldSelector, allowed sets.Set[string], fld *field.Path) field.ErrorList {
	p := fld.Child("fieldPath")
	switch {
	case r.APIVersion == "":
		return field.ErrorList{field.Required(fld.Child("apiVersion"), "")}
	case r.FieldPath == "":
		return field.ErrorList{field.Required(p, "")}
	}
	path, subscript, subscripted := splitSubscript(r.FieldPath)
	if r.APIVersion != "v1" {
		return field.ErrorList{field.Invalid(p, r.FieldPath, "error converting fieldPath: unsupported pod version: "+r.APIVersion)}
	}
	if !podFields.Has(path) {
		return field.ErrorList{field.Invalid(p, r.FieldPath, "error converting fieldPath: field label not supported: "+path)}
	}
	if path == "spec.host" { // what spec.nodeName was called once
		path = "spec.nodeName"
	}
	switch {
	case !subscripted && !allowed.Has(path):
		return field.ErrorList{field.NotSupported(p, path, sets.List(allowed))}
	case !subscripted:
		return nil
	case path == "metadata.annotations":
		return eachMessage(validation.IsQualifiedName(strings.ToLower(subscript)), subscript, fld)
	case path == "metadata.labels":
		return eachMessage(validation.IsQualifiedName(subscript), subscript, fld)
	default:
		return field.ErrorList{field.Invalid(fld, path, "does not support subscript")}
	}
}

// splitSubscript takes path['key'] apart.
func splitSubscript(s string) (path, subscript string, ok bool) {
	body, closed := strings.CutSuffix(s, "']")
	path, subscript, found := strings.Cut(body, "['")
	if !closed || !found || path == "" {
		return s, "", false
	}
	return path, subscript, true
}

var containerResources = sets.New("limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage")

func validateResourceRef(r *corev1.ResourceFieldSelector, volume bool, fld *field.Path) field.ErrorList {
	if volume && r.ContainerName == "" {
		return field.ErrorList{field.Required(fld.Child("containerName"), "")}
	}
	hugePages := strings.HasPrefix(r.Resource, "requests.hugepages-") || strings.HasPrefix(r.Resource, "limits.hugepages-")
	switch {
	case r.Resource == "":
		return field.ErrorList{field.Required(fld.Child("resource"), "")}
	case !hugePages && !containerResources.Has(r.Resource):
		return field.ErrorList{field.NotSupported(fld.Child("resource"), r.Resource, sets.List(containerResources))}
	}
	return validateDivisor(r, hugePages, fld)
}

const sizeDivisors = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"

func validateDivisor(r *corev1.ResourceFieldSelector, hugePages bool, fld *field.Path) field.ErrorList {
	if r.Divisor.Cmp(resource.Quantity{}) == 0 {
		return nil
	}
	_, name, _ := strings.Cut(r.Resource, ".")
	allowed, what := sizeDivisors, name
	switch {
	case name == "cpu":
		allowed = "1m, 1"
	case name == "ephemeral-storage":
		what = "local ephemeral storage"
	case hugePages:
		what = "hugepages"
	}
	for d := range strings.SplitSeq(allowed, ", ") {
		if d == r.Divisor.String() {
			return nil
		}
	}
	if name == "cpu" {
		allowed = "1m and 1"
	}
	return field.ErrorList{field.Invalid(fld.Child("divisor"), r.Resource, fmt.Sprintf("only divisor's values %s are supported with the %s resource", allowed, what))}
}
