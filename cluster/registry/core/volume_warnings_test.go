package core

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestStorageWarnings(t *testing.T) {
	beta := metav1.ObjectMeta{Annotations: map[string]string{corev1.BetaStorageClassAnnotation: "x"}}
	size := func(s string) corev1.ResourceList { return corev1.ResourceList{"storage": resource.MustParse(s)} }
	for _, tc := range []struct {
		name string
		got  []string
		want []string // begins of them
	}{
		{"local", volumeWarnings(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{}}}}), nil},
		{"hostPath", volumeWarnings(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{}}}}), nil},
		{"nfs", volumeWarnings(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}}}),
			[]string{"spec.nfs: nodes of skiff cannot mount"}},
		{"recycled", volumeWarnings(&corev1.PersistentVolume{ObjectMeta: beta, Spec: corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRecycle}}),
			[]string{"metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated", "spec.persistentVolumeReclaimPolicy: The Recycle"}},
		{"claim", claimWarnings(&corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: size("1Gi")}}}), nil},
		{"fractions", claimWarnings(&corev1.PersistentVolumeClaim{ObjectMeta: beta, Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: size("1500m")}}}),
			[]string{"metadata.annotations", `spec.resources.requests[storage]: fractional byte value "1500m"`}},
	} {
		if len(tc.got) != len(tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, tc.got, tc.want)
			continue
		}
		for i := range tc.want {
			if !strings.HasPrefix(tc.got[i], tc.want[i]) {
				t.Errorf("%s: %q, want %q", tc.name, tc.got[i], tc.want[i])
			}
		}
	}
}
