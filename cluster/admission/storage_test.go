package admission

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

func storageClasses() []storagev1.StorageClass {
	class := func(name, provisioner string, expands bool) storagev1.StorageClass {
		return storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, AllowVolumeExpansion: &expands}
	}
	list := []storagev1.StorageClass{class("local-path", localpath.Provisioner, false), class("grows", "example.com/disk", true), class("says-so", localpath.Provisioner, true)}
	list[0].Annotations = map[string]string{storageapi.DefaultAnnotation: "true"}
	return list
}

func claim(class *string, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: class, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}}}
}

func TestClaimGetsDefaultClassAndProtection(t *testing.T) {
	beta := claim(nil, "1Gi")
	beta.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: "old"}
	for _, tc := range []struct {
		name    string
		classes []storagev1.StorageClass
		claim   *corev1.PersistentVolumeClaim
		want    *string
	}{
		{"named", storageClasses(), claim(ptr.To("grows"), "1Gi"), ptr.To("grows")},
		{"none wanted", storageClasses(), claim(ptr.To(""), "1Gi"), ptr.To("")},
		{"not said", storageClasses(), claim(nil, "1Gi"), ptr.To("local-path")},
		{"said by annotation", storageClasses(), beta, nil},
		{"no default", nil, claim(nil, "1Gi"), nil},
	} {
		o := usual()
		o.storage = tc.classes
		for range 2 { // what came out may be sent again
			if err := run(t, o, admin, admission.Create, "persistentvolumeclaims", "", "ns", "c", tc.claim, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !ptr.Equal(tc.claim.Spec.StorageClassName, tc.want) || !slices.Equal(tc.claim.Finalizers, []string{"kubernetes.io/pvc-protection"}) {
			t.Errorf("%s: class %v, finalizers %v", tc.name, tc.claim.Spec.StorageClassName, tc.claim.Finalizers)
		}
	}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", Finalizers: []string{"a/b"}}}
	if err := run(t, usual(), admin, admission.Create, "persistentvolumes", "", "", "v", v, nil); err != nil || !slices.Equal(v.Finalizers, []string{"a/b", "kubernetes.io/pv-protection"}) {
		t.Errorf("%v, finalizers %v", err, v.Finalizers)
	}
}

func TestExpansion(t *testing.T) {
	for _, tc := range []struct {
		name      string
		class     *string
		phase     corev1.PersistentVolumeClaimPhase
		old, size string
		want      string
	}{
		{"same size", ptr.To("local-path"), corev1.ClaimBound, "1Gi", "1024Mi", ""},
		{"smaller is for validation", ptr.To("local-path"), corev1.ClaimBound, "2Gi", "1Gi", ""},
		{"not bound", ptr.To("grows"), corev1.ClaimPending, "1Gi", "2Gi", "Only bound persistent volume claims can be expanded"},
		{"class does not expand", ptr.To("local-path"), corev1.ClaimBound, "1Gi", "2Gi", "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"},
		{"no class", nil, corev1.ClaimBound, "1Gi", "2Gi", "only dynamically provisioned pvc can be resized"},
		{"class is gone", ptr.To("gone"), corev1.ClaimBound, "1Gi", "2Gi", "only dynamically provisioned pvc can be resized"},
		{"class cannot, though it says so", ptr.To("says-so"), corev1.ClaimBound, "1Gi", "2Gi", "volumes of provisioner skiff.sh/local-path cannot be expanded"},
		{"class expands", ptr.To("grows"), corev1.ClaimBound, "1Gi", "2Gi", ""},
	} {
		o := usual()
		o.storage = storageClasses()
		old, cur := claim(tc.class, tc.old), claim(tc.class, tc.size)
		old.Status.Phase = tc.phase
		err := run(t, o, admin, admission.Update, "persistentvolumeclaims", "", "ns", "c", cur, old)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
}
