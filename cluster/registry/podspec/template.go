package podspec

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Options says in which setting a PodSpec is validated.
type Options struct {
	// ClaimedVolumes are volumes that the pods will have besides those of the
	// spec: the claim templates of a StatefulSet.
	ClaimedVolumes []*corev1.PersistentVolumeClaim
	// Pod is set for pods, where a template may still leave something open.
	Pod bool
}

// ValidateTemplate checks a pod template. An unchanged template passes as it
// did when it was stored, so that a stricter release does not freeze objects.
func ValidateTemplate(t, old *corev1.PodTemplateSpec, fld *field.Path, o Options) field.ErrorList {
	if old != nil && apiEqual(t, old) {
		return nil
	}
	errs := metavalidation.ValidateLabels(t.Labels, fld.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, fld.Child("annotations"))...)
	errs = append(errs, validatePodAnnotations(t.Annotations, &t.Spec, fld.Child("annotations"))...)
	errs = append(errs, Validate(&t.Spec, nil, fld.Child("spec"), o)...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(fld.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

// ValidatePod checks spec and annotations of a pod; the library has checked the
// rest of its metadata.
func ValidatePod(pod *corev1.Pod) field.ErrorList {
	errs := validatePodAnnotations(pod.Annotations, &pod.Spec, field.NewPath("metadata", "annotations"))
	errs = append(errs, Validate(&pod.Spec, &pod.ObjectMeta, field.NewPath("spec"), Options{Pod: true})...)
	return append(errs, tokensWithoutAccount(&pod.Spec, field.NewPath("spec", "volumes"))...)
}

// tokensWithoutAccount refuses volumes that could never be filled: pods from a file
// have no account.
func tokensWithoutAccount(spec *corev1.PodSpec, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, v := range spec.Volumes {
		if v.Projected == nil || spec.ServiceAccountName != "" {
			continue
		}
		for j, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				errs = append(errs, field.Forbidden(fld.Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"), "must not be specified when serviceAccountName is not set"))
			}
		}
	}
	return errs
}

func validatePodAnnotations(a map[string]string, spec *corev1.PodSpec, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if v, ok := a[corev1.MirrorPodAnnotationKey]; ok && spec.NodeName == "" {
		errs = append(errs, field.Invalid(fld.Key(corev1.MirrorPodAnnotationKey), v, "must set spec.nodeName if mirror pod annotation is set"))
	}
	if v, ok := a[corev1.PodDeletionCost]; ok && !isInt32(v) {
		errs = append(errs, field.Invalid(fld.Key(corev1.PodDeletionCost), v, "must be a 32bit integer"))
	}
	return errs
}

// Validate checks a PodSpec. meta is nil for templates, whose pods get their
// names later.
func Validate(spec *corev1.PodSpec, meta *metav1.ObjectMeta, fld *field.Path, o Options) field.ErrorList {
	v := &validator{spec: spec, meta: meta, options: o, volumes: map[string]*corev1.VolumeSource{}}
	return v.podSpec(fld)
}
