package podspec

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Options says in which setting a PodSpec is validated.
type Options struct {
	// ClaimedVolumes are volumes that the pods will have besides those of the
	// spec: the claim templates of a StatefulSet.
	ClaimedVolumes []*corev1.PersistentVolumeClaim
}

// ValidateTemplate checks a pod template. With old, what was tolerated there is
// tolerated again.
func ValidateTemplate(t, old *corev1.PodTemplateSpec, fld *field.Path, o Options) field.ErrorList {
	errs := metavalidation.ValidateLabels(t.Labels, fld.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, fld.Child("annotations"))...)
	return errs
}
