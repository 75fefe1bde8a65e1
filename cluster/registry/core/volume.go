package core

import (
	"context"
	"fmt"
	"path"
	"reflect"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

var volumeKind = registry.Kind{
	Resource: gvr("persistentvolumes"), Singular: "persistentvolume",
	Object: &corev1.PersistentVolume{}, List: &corev1.PersistentVolumeList{},
	ClusterScoped: true, HasStatus: true, ShortNames: []string{"pv"}, NoGeneration: true,
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		now := metav1.Now()
		obj.(*corev1.PersistentVolume).Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &now}
	},
	PrepareForStatusUpdate: func(_ context.Context, obj, old runtime.Object) {
		v, was := obj.(*corev1.PersistentVolume), old.(*corev1.PersistentVolume)
		if v.Status.Phase != was.Status.Phase && ptr.Equal(v.Status.LastPhaseTransitionTime, was.Status.LastPhaseTransitionTime) {
			now := metav1.Now()
			v.Status.LastPhaseTransitionTime = &now
		}
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateVolume(obj.(*corev1.PersistentVolume))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateVolumeUpdate(obj.(*corev1.PersistentVolume), old.(*corev1.PersistentVolume))
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		return volumeWarnings(obj.(*corev1.PersistentVolume))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the volume"),
		registry.Column("Capacity", "Size of the volume"),
		registry.Column("Access Modes", "How it may be mounted"),
		registry.Column("Reclaim Policy", "What becomes of it when it is released"),
		registry.Column("Status", "Phase of the volume"),
		registry.Column("Claim", "The claim it is bound to"),
		registry.Column("StorageClass", "Its class"),
		registry.Column("VolumeAttributesClass", "Class of changeable attributes"),
		registry.Column("Reason", "Why it is in its phase"),
		registry.Column("Age", "Time since creation"),
		registry.WideColumn("VolumeMode", "Filesystem or Block"),
	},
	Row: func(obj runtime.Object) []any {
		v := obj.(*corev1.PersistentVolume)
		claim := ""
		if r := v.Spec.ClaimRef; r != nil {
			claim = r.Namespace + "/" + r.Name
		}
		phase := string(v.Status.Phase)
		if v.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		class := v.Spec.StorageClassName
		if c, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
			class = c
		}
		size := v.Spec.Capacity[corev1.ResourceStorage]
		return []any{v.Name, size.String(), accessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim, class,
			unset(v.Spec.VolumeAttributesClassName), v.Status.Reason, registry.Age(v.CreationTimestamp), volumeMode(v.Spec.VolumeMode)}
	},
}

func setVolumeDefaults(v *corev1.PersistentVolume) {
	if v.Status.Phase == "" {
		v.Status.Phase = corev1.VolumePending
	}
	if v.Spec.PersistentVolumeReclaimPolicy == "" {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	if v.Spec.VolumeMode == nil {
		v.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeFilesystem)
	}
	if h := v.Spec.HostPath; h != nil && h.Type == nil {
		h.Type = ptr.To(corev1.HostPathUnset)
	}
}

// source gives the field name and value of the one volume source that is set,
// and the names of all that are.
func source(v *corev1.PersistentVolumeSource) []string {
	var names []string
	r := reflect.ValueOf(v).Elem()
	for i := range r.NumField() {
		if !r.Field(i).IsNil() {
			name, _, _ := strings.Cut(r.Type().Field(i).Tag.Get("json"), ",")
			names = append(names, name)
		}
	}
	return names
}

func validateVolume(v *corev1.PersistentVolume) field.ErrorList {
	s, p := &v.Spec, field.NewPath("spec")
	var errs field.ErrorList
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), ""))
	}
	errs = append(errs, validateAccessModes(s.AccessModes, p.Child("accessModes"))...)
	if len(s.Capacity) == 0 {
		errs = append(errs, field.Required(p.Child("capacity"), ""))
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		errs = append(errs, field.NotSupported(p.Child("capacity"), s.Capacity, []string{string(corev1.ResourceStorage)}))
	}
	for name, q := range s.Capacity {
		at := p.Child("capacity").Key(string(name))
		errs = append(errs, validateQuantity(string(name), q, at)...)
		errs = append(errs, check.PositiveQuantity(at, q)...)
	}
	errs = append(errs, check.OptionalOneOf(p.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	if a := s.NodeAffinity; a != nil {
		at := p.Child("nodeAffinity").Child("required")
		if a.Required == nil {
			errs = append(errs, field.Required(at, "must specify required node constraints"))
		} else {
			errs = append(errs, podspec.ValidateNodeSelector(a.Required, at)...)
		}
	}
	names := source(&s.PersistentVolumeSource)
	switch {
	case len(names) == 0:
		errs = append(errs, field.Required(p, "must specify a volume type"))
	case len(names) > 1:
		for _, n := range names[1:] {
			errs = append(errs, field.Forbidden(p.Child(n), "may not specify more than 1 volume type"))
		}
	}
	errs = append(errs, validateVolumeSource(s, p)...)
	if c := s.StorageClassName; c != "" {
		errs = append(errs, check.Messages(p.Child("storageClassName"), c, apivalidation.NameIsDNSSubdomain(c, false))...)
	}
	if m := s.VolumeMode; m != nil {
		errs = append(errs, check.OptionalOneOf(p.Child("volumeMode"), *m, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	if c := s.VolumeAttributesClassName; c != nil {
		at := p.Child("volumeAttributesClassName")
		if *c == "" {
			errs = append(errs, field.Required(at, "an empty string is disallowed"))
		} else {
			errs = append(errs, check.Messages(at, *c, apivalidation.NameIsDNSSubdomain(*c, false))...)
		}
		if s.CSI == nil {
			errs = append(errs, field.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName"))
		}
	}
	return errs
}

// validateVolumeSource checks the sources whose fields a server can judge.
func validateVolumeSource(s *corev1.PersistentVolumeSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	need := func(at *field.Path, v string) {
		if v == "" {
			errs = append(errs, field.Required(at, ""))
		}
	}
	noSteps := func(at *field.Path, v string) {
		for _, part := range strings.Split(v, "/") {
			if part == ".." {
				errs = append(errs, field.Invalid(at, v, "must not contain '..'"))
				return
			}
		}
	}
	if h := s.HostPath; h != nil {
		at := p.Child("hostPath")
		need(at.Child("path"), h.Path)
		noSteps(at.Child("path"), h.Path)
		if t := ptr.Deref(h.Type, ""); t != "" {
			errs = append(errs, check.OneOf(at.Child("type"), t, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
				corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)...)
		}
		if path.Clean(h.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
			errs = append(errs, field.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
		}
	}
	if l := s.Local; l != nil {
		at := p.Child("local").Child("path")
		need(at, l.Path)
		noSteps(at, l.Path)
		if s.NodeAffinity == nil {
			errs = append(errs, field.Required(p.Child("nodeAffinity"), "Local volume requires node affinity"))
		}
	}
	if n := s.NFS; n != nil {
		need(p.Child("nfs").Child("server"), n.Server)
		need(p.Child("nfs").Child("path"), n.Path)
		if n.Path != "" && !path.IsAbs(n.Path) {
			errs = append(errs, field.Invalid(p.Child("nfs").Child("path"), n.Path, "must be an absolute path"))
		}
	}
	if c := s.CSI; c != nil {
		need(p.Child("csi").Child("driver"), c.Driver)
		need(p.Child("csi").Child("volumeHandle"), c.VolumeHandle)
	}
	return errs
}

func validateVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	errs := validateVolume(v)
	p := field.NewPath("spec")
	if !registry.SemanticEqual(v.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(p.Child("persistentvolumesource"), fmt.Sprintf(
			"spec.persistentvolumesource is immutable after creation\n%v", cmp.Diff(old.Spec.PersistentVolumeSource, v.Spec.PersistentVolumeSource))))
	}
	errs = append(errs, check.Unchanged(p.Child("volumeMode"), v.Spec.VolumeMode, old.Spec.VolumeMode)...)
	if old.Spec.NodeAffinity != nil && !registry.SemanticEqual(v.Spec.NodeAffinity, old.Spec.NodeAffinity) {
		errs = append(errs, field.Invalid(p.Child("nodeAffinity"), v.Spec.NodeAffinity, check.Immutable+", except for updating from beta label to GA"))
	}
	return errs
}

// ValidateInlineVolume checks the volume that a VolumeAttachment has in itself:
// one of a CSI driver, without what only a PersistentVolume has.
func ValidateInlineVolume(s *corev1.PersistentVolumeSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, set := range map[string]bool{
		"claimRef": s.ClaimRef != nil, "capacity": len(s.Capacity) > 0, "persistentVolumeReclaimPolicy": s.PersistentVolumeReclaimPolicy != "",
		"storageClassName": s.StorageClassName != "", "nodeAffinity": s.NodeAffinity != nil,
	} {
		if set {
			errs = append(errs, field.Forbidden(p.Child(name), "may not be specified in the context of inline volumes"))
		}
	}
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), ""))
	}
	errs = append(errs, validateAccessModes(s.AccessModes, p.Child("accessModes"))...)
	for _, name := range source(&s.PersistentVolumeSource) {
		if name != "csi" {
			errs = append(errs, field.Forbidden(p.Child(name), "only csi is allowed in the context of inline volumes"))
		}
	}
	c := s.CSI
	if c == nil {
		return append(errs, field.Required(p.Child("csi"), ""))
	}
	if c.Driver == "" {
		errs = append(errs, field.Required(p.Child("csi", "driver"), ""))
	}
	if c.VolumeHandle == "" {
		errs = append(errs, field.Required(p.Child("csi", "volumeHandle"), ""))
	}
	return errs
}
