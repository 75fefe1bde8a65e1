package podspec

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *validator) mounts(c *corev1.Container, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	paths := sets.New[string]()
	for i := range c.VolumeMounts {
		m, p := &c.VolumeMounts[i], fld.Index(i)
		source, known := v.volumes[m.Name]
		if m.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		}
		if !known {
			errs = append(errs, field.NotFound(p.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(p.Child("mountPath"), ""))
		}
		if paths.Has(m.MountPath) {
			errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must be unique"))
		}
		paths.Insert(m.MountPath)
		for _, d := range c.VolumeDevices {
			if d.Name == m.Name {
				errs = append(errs, field.Invalid(p.Child("name"), m.Name, "must not already exist in volumeDevices"))
			}
			if d.DevicePath == m.MountPath {
				errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
			}
		}
		// The API leaves the index out of the paths of these.
		if m.SubPath != "" {
			errs = append(errs, descending(m.SubPath, fld.Child("subPath"))...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(p.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, descending(m.SubPathExpr, fld.Child("subPathExpr"))...)
			if source != nil && source.Image != nil {
				errs = append(errs, field.Invalid(p.Child("subPathExpr"), m.SubPathExpr, "not allowed in image volume sources"))
			}
		}
		errs = append(errs, propagation(m.MountPropagation, c, fld.Child("mountPropagation"))...)
		errs = append(errs, recursiveReadOnly(m, fld.Child("recursiveReadOnly"))...)
		if len(m.BindMountOptions) > 0 {
			errs = append(errs, field.Forbidden(p.Child("bindMountOptions"), unsupported))
		}
	}
	return errs
}

func propagation(mode *corev1.MountPropagationMode, c *corev1.Container, fld *field.Path) field.ErrorList {
	if mode == nil {
		return nil
	}
	known := []corev1.MountPropagationMode{corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone}
	if !slices.Contains(known, *mode) {
		return field.ErrorList{field.NotSupported(fld, *mode, known)}
	}
	s := c.SecurityContext
	if *mode == corev1.MountPropagationBidirectional && (s == nil || s.Privileged == nil || !*s.Privileged) {
		return field.ErrorList{field.Forbidden(fld, "Bidirectional mount propagation is available only to privileged containers")}
	}
	return nil
}

func recursiveReadOnly(m *corev1.VolumeMount, fld *field.Path) field.ErrorList {
	if m.RecursiveReadOnly == nil {
		return nil
	}
	var errs field.ErrorList
	switch mode := *m.RecursiveReadOnly; mode {
	case corev1.RecursiveReadOnlyDisabled:
	case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			errs = append(errs, field.Forbidden(fld, "may only be specified when readOnly is true"))
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			errs = append(errs, field.Forbidden(fld, "may only be specified when mountPropagation is None or not specified"))
		}
	default:
		errs = append(errs, field.NotSupported(fld, mode, []corev1.RecursiveReadOnlyMode{
			corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled,
		}))
	}
	return errs
}

func (v *validator) devices(c *corev1.Container, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	paths, names := sets.New[string](), sets.New[string]()
	for i, d := range c.VolumeDevices {
		p := fld.Index(i)
		source, known := v.volumes[d.Name]
		if d.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		}
		if names.Has(d.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), d.Name, "must be unique"))
		}
		if known && source != nil && source.PersistentVolumeClaim == nil && source.Ephemeral == nil {
			errs = append(errs, field.Invalid(p.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if !known {
			errs = append(errs, field.NotFound(p.Child("name"), d.Name))
		}
		switch {
		case d.DevicePath == "":
			errs = append(errs, field.Required(p.Child("devicePath"), ""))
		case paths.Has(d.DevicePath):
			errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "must be unique"))
		case stepsBack(d.DevicePath):
			errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')"))
		}
		paths.Insert(d.DevicePath)
		names.Insert(d.Name)
		for _, m := range c.VolumeMounts {
			if m.Name == d.Name {
				errs = append(errs, field.Invalid(p.Child("name"), d.Name, "must not already exist in volumeMounts"))
			}
			if m.MountPath == d.DevicePath {
				errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts"))
			}
		}
	}
	return errs
}

// descending checks a path that must not leave the directory it starts from.
func descending(target string, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if path.IsAbs(target) {
		errs = append(errs, field.Invalid(fld, target, "must be a relative path"))
	}
	return append(errs, noBacksteps(target, fld)...)
}

// fileInVolume checks the path of a file that is written into a volume, where
// names with two leading dots are the volume's own.
func fileInVolume(target string, fld *field.Path) field.ErrorList {
	errs := descending(target, fld)
	if strings.HasPrefix(target, "..") && !strings.HasPrefix(target, "../") {
		errs = append(errs, field.Invalid(fld, target, "must not start with '..'"))
	}
	return errs
}

func noBacksteps(target string, fld *field.Path) field.ErrorList {
	if stepsBack(target) {
		return field.ErrorList{field.Invalid(fld, target, "must not contain '..'")}
	}
	return nil
}

func stepsBack(target string) bool {
	return slices.Contains(strings.Split(target, "/"), "..")
}
