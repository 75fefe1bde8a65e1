package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateProjected(s *corev1.ProjectedVolumeSource, fld *field.Path) field.ErrorList {
	errs := validateMode(s.DefaultMode, fld.Child("defaultMode"))
	errs = append(errs, noUser(s.DefaultUser, fld.Child("defaultUser"))...)
	paths := sets.New[string]()
	for i := range s.Sources {
		errs = append(errs, validateProjection(&s.Sources[i], paths, fld, fld.Child("sources").Index(i))...)
	}
	return errs
}

// validateProjection checks one source of a projected volume; paths are the
// files that the sources before it make.
func validateProjection(s *corev1.VolumeProjection, paths sets.Set[string], volume, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	claim := func(path string) {
		if path == "" {
			return
		}
		if paths.Has(path) {
			errs = append(errs, field.Invalid(volume, path, "conflicting duplicate paths"))
		}
		paths.Insert(path)
	}
	found := false
	one := func(name string, set bool, check func(fld *field.Path)) {
		switch {
		case !set:
		case found:
			errs = append(errs, field.Forbidden(fld.Child(name), "may not specify more than 1 volume type"))
		default:
			found = true
			check(fld.Child(name))
		}
	}
	one("secret", s.Secret != nil, func(fld *field.Path) {
		errs = append(errs, required(fld, "name", s.Secret.Name)...)
		errs = append(errs, validateItems(s.Secret.Items, fld.Child("items"))...)
		for _, item := range s.Secret.Items {
			claim(item.Path)
		}
	})
	one("configMap", s.ConfigMap != nil, func(fld *field.Path) {
		errs = append(errs, required(fld, "name", s.ConfigMap.Name)...)
		errs = append(errs, validateItems(s.ConfigMap.Items, fld.Child("items"))...)
		for _, item := range s.ConfigMap.Items {
			claim(item.Path)
		}
	})
	one("downwardAPI", s.DownwardAPI != nil, func(fld *field.Path) {
		for i := range s.DownwardAPI.Items {
			errs = append(errs, validateDownwardFile(&s.DownwardAPI.Items[i], fld)...)
			claim(s.DownwardAPI.Items[i].Path)
		}
	})
	one("serviceAccountToken", s.ServiceAccountToken != nil, func(fld *field.Path) {
		errs = append(errs, validateToken(s.ServiceAccountToken, fld)...)
		claim(s.ServiceAccountToken.Path)
	})
	one("clusterTrustBundle", s.ClusterTrustBundle != nil, func(fld *field.Path) {
		errs = append(errs, field.Forbidden(fld, unsupported))
	})
	one("podCertificate", s.PodCertificate != nil, func(fld *field.Path) {
		errs = append(errs, field.Forbidden(fld, unsupported))
	})
	return errs
}

func validateToken(t *corev1.ServiceAccountTokenProjection, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s := t.ExpirationSeconds; s != nil {
		if *s < 10*60 {
			errs = append(errs, field.Invalid(fld.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes"))
		}
		if *s > 1<<32 {
			errs = append(errs, field.Invalid(fld.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	if t.Path == "" {
		errs = append(errs, field.Required(fld.Child("path"), ""))
	} else {
		errs = append(errs, fileInVolume(t.Path, fld.Child("path"))...)
	}
	return append(errs, noUser(t.User, fld.Child("user"))...)
}
