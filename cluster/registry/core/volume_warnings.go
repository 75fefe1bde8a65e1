package core

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const betaClassMessage = `deprecated since v1.8; use "storageClassName" attribute instead`

// volumeWarnings tells what will not work of a volume that is accepted all the
// same: another cluster may have it.
func volumeWarnings(v *corev1.PersistentVolume) []string {
	out := betaClass(v.Annotations)
	p := field.NewPath("spec")
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		out = append(out, fmt.Sprintf("%s: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.", p.Child("persistentVolumeReclaimPolicy")))
	}
	for _, name := range source(&v.Spec.PersistentVolumeSource) {
		if name != "hostPath" && name != "local" {
			out = append(out, fmt.Sprintf("%s: nodes of skiff cannot mount volumes of this type, only hostPath and local", p.Child(name)))
		}
	}
	return out
}

func claimWarnings(c *corev1.PersistentVolumeClaim) []string {
	out := betaClass(c.Annotations)
	p := field.NewPath("spec", "resources")
	for name, list := range map[string]corev1.ResourceList{"requests": c.Spec.Resources.Requests, "limits": c.Spec.Resources.Limits} {
		if q, ok := list[corev1.ResourceStorage]; ok && q.MilliValue()%1000 != 0 {
			out = append(out, fmt.Sprintf("%s: fractional byte value %q is invalid, must be an integer", p.Child(name).Key("storage"), q.String()))
		}
	}
	return out
}

func betaClass(annotations map[string]string) []string {
	if _, ok := annotations[corev1.BetaStorageClassAnnotation]; !ok {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s", field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation), betaClassMessage)}
}
