package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *validator) volumeList(volumes []corev1.Volume, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range volumes {
		vol, p := &volumes[i], fld.Index(i)
		bad := v.volumeSource(vol, p)
		if vol.Name == "" {
			bad = append(bad, field.Required(p.Child("name"), ""))
		} else {
			bad = append(bad, eachMessage(validation.IsDNS1123Label(vol.Name), vol.Name, p.Child("name"))...)
		}
		if _, dup := v.volumes[vol.Name]; dup {
			bad = append(bad, field.Duplicate(p.Child("name"), vol.Name))
		}
		// A broken volume is known all the same: mounts of it are not wrong too.
		v.volumes[vol.Name] = &vol.VolumeSource
		errs = append(errs, bad...)
	}
	for _, claim := range v.options.ClaimedVolumes {
		v.volumes[claim.Name] = nil
	}
	return errs
}

// source is one member of the VolumeSource union.
type source struct {
	name  string
	set   bool
	check func(fld *field.Path) field.ErrorList
}

func (v *validator) volumeSource(vol *corev1.Volume, fld *field.Path) field.ErrorList {
	s := &vol.VolumeSource
	sources := append([]source{
		{"emptyDir", s.EmptyDir != nil, func(fld *field.Path) field.ErrorList { return validateEmptyDir(s.EmptyDir, fld) }},
		{"hostPath", s.HostPath != nil, func(fld *field.Path) field.ErrorList { return validateHostPath(s.HostPath, fld) }},
		{"gitRepo", s.GitRepo != nil, func(fld *field.Path) field.ErrorList {
			errs := required(fld, "repository", s.GitRepo.Repository)
			return append(errs, descending(s.GitRepo.Directory, fld.Child("directory"))...)
		}},
		{"secret", s.Secret != nil, func(fld *field.Path) field.ErrorList { return validateSecretVolume(s.Secret, fld) }},
		{"persistentVolumeClaim", s.PersistentVolumeClaim != nil, func(fld *field.Path) field.ErrorList {
			return required(fld, "claimName", s.PersistentVolumeClaim.ClaimName)
		}},
		{"downwardAPI", s.DownwardAPI != nil, func(fld *field.Path) field.ErrorList { return validateDownward(s.DownwardAPI, fld) }},
		{"configMap", s.ConfigMap != nil, func(fld *field.Path) field.ErrorList { return validateConfigMapVolume(s.ConfigMap, fld) }},
		{"projected", s.Projected != nil, func(fld *field.Path) field.ErrorList { return validateProjected(s.Projected, fld) }},
		{"ephemeral", s.Ephemeral != nil, func(fld *field.Path) field.ErrorList { return v.ephemeralVolume(vol.Name, s.Ephemeral, fld) }},
		{"image", s.Image != nil, func(fld *field.Path) field.ErrorList { return v.imageVolume(s.Image, fld) }},
	}, networkSources(s)...)
	var errs field.ErrorList
	found := false
	for _, src := range sources {
		switch {
		case !src.set:
		case found:
			errs = append(errs, field.Forbidden(fld.Child(src.name), "may not specify more than 1 volume type"))
		default:
			found = true
			errs = append(errs, src.check(fld.Child(src.name))...)
		}
	}
	if !found {
		errs = append(errs, field.Required(fld, "must specify a volume type"))
	}
	return errs
}

func required(fld *field.Path, name, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(fld.Child(name), "")}
	}
	return nil
}

func validateEmptyDir(s *corev1.EmptyDirVolumeSource, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
		errs = append(errs, field.Forbidden(fld.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	if s.Mode != nil {
		errs = append(errs, field.Forbidden(fld.Child("mode"), unsupported))
	}
	return errs
}

func validateHostPath(s *corev1.HostPathVolumeSource, fld *field.Path) field.ErrorList {
	if s.Path == "" {
		return required(fld, "path", s.Path)
	}
	errs := noBacksteps(s.Path, fld.Child("path"))
	if s.Type != nil {
		known := []corev1.HostPathType{
			corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
			corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev,
		}
		if !sets.New(known...).Has(*s.Type) {
			errs = append(errs, field.NotSupported(fld.Child("type"), *s.Type, known))
		}
	}
	return errs
}

func validateMode(mode *int32, fld *field.Path) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(fld, *mode, "must be a number between 0 and 0777 (octal), both inclusive")}
	}
	return nil
}

func validateItems(items []corev1.KeyToPath, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range items {
		p := fld.Index(i)
		errs = append(errs, required(p, "key", item.Key)...)
		errs = append(errs, required(p, "path", item.Path)...)
		errs = append(errs, fileInVolume(item.Path, p.Child("path"))...)
		errs = append(errs, validateMode(item.Mode, p.Child("mode"))...)
		errs = append(errs, noUser(item.User, p.Child("user"))...)
	}
	return errs
}

func noUser(user *int64, fld *field.Path) field.ErrorList {
	if user != nil {
		return field.ErrorList{field.Forbidden(fld, unsupported)}
	}
	return nil
}

func validateSecretVolume(s *corev1.SecretVolumeSource, fld *field.Path) field.ErrorList {
	errs := required(fld, "secretName", s.SecretName)
	errs = append(errs, validateMode(s.DefaultMode, fld.Child("defaultMode"))...)
	errs = append(errs, noUser(s.DefaultUser, fld.Child("defaultUser"))...)
	return append(errs, validateItems(s.Items, fld.Child("items"))...)
}

func validateConfigMapVolume(s *corev1.ConfigMapVolumeSource, fld *field.Path) field.ErrorList {
	errs := required(fld, "name", s.Name)
	errs = append(errs, validateMode(s.DefaultMode, fld.Child("defaultMode"))...)
	errs = append(errs, noUser(s.DefaultUser, fld.Child("defaultUser"))...)
	return append(errs, validateItems(s.Items, fld.Child("items"))...)
}

func validateDownward(s *corev1.DownwardAPIVolumeSource, fld *field.Path) field.ErrorList {
	errs := validateMode(s.DefaultMode, fld.Child("defaultMode"))
	errs = append(errs, noUser(s.DefaultUser, fld.Child("defaultUser"))...)
	for i := range s.Items {
		errs = append(errs, validateDownwardFile(&s.Items[i], fld)...)
	}
	return errs
}

// validateDownwardFile complains under the path of the whole source, as the API
// does.
func validateDownwardFile(f *corev1.DownwardAPIVolumeFile, fld *field.Path) field.ErrorList {
	errs := required(fld, "path", f.Path)
	errs = append(errs, fileInVolume(f.Path, fld.Child("path"))...)
	switch {
	case f.FieldRef != nil:
		errs = append(errs, validateFieldRef(f.FieldRef, volumeFields, fld.Child("fieldRef"))...)
		if f.ResourceFieldRef != nil {
			errs = append(errs, field.Invalid(fld, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
		}
	case f.ResourceFieldRef != nil:
		errs = append(errs, validateResourceRef(f.ResourceFieldRef, true, fld.Child("resourceFieldRef"))...)
	default:
		errs = append(errs, field.Required(fld, "one of fieldRef and resourceFieldRef is required"))
	}
	errs = append(errs, validateMode(f.Mode, fld.Child("mode"))...)
	return append(errs, noUser(f.User, fld.Child("user"))...)
}

func (v *validator) imageVolume(s *corev1.ImageVolumeSource, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if v.options.Pod {
		errs = append(errs, required(fld, "reference", s.Reference)...)
	}
	return append(errs, oneOf(s.PullPolicy, fld.Child("pullPolicy"), corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
}

func (v *validator) ephemeralVolume(name string, s *corev1.EphemeralVolumeSource, fld *field.Path) field.ErrorList {
	if s.VolumeClaimTemplate == nil {
		return field.ErrorList{field.Required(fld.Child("volumeClaimTemplate"), "")}
	}
	errs := ValidateClaimSpec(&s.VolumeClaimTemplate.Spec, fld.Child("volumeClaimTemplate", "spec"))
	if v.meta != nil && v.meta.Name != "" {
		claim := v.meta.Name + "-" + name
		for _, msg := range apivalidation.NameIsDNSSubdomain(claim, false) {
			errs = append(errs, field.Invalid(fld.Child("name"), name, fmt.Sprintf("PVC name %q: %v", claim, msg)))
		}
	}
	return errs
}
