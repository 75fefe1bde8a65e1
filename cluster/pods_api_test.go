package cluster

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func plainPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{SchedulerName: "nobody", AutomountServiceAccountToken: ptr.To(false),
			Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
}

// A binding that was decided for a pod does not meet the next one of its name.
func TestBindingIsForOnePod(t *testing.T) {
	s := newServer(t)
	pods := s.client.CoreV1().Pods(s.newNamespace(t))
	first, err := pods.Create(t.Context(), plainPod("p"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second, err := pods.Create(t.Context(), plainPod("p"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bind := func(uid types.UID, version string) error {
		return pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: uid, ResourceVersion: version},
			Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{})
	}
	if err := bind(first.UID, ""); !apierrors.IsConflict(err) {
		t.Errorf("binding of the pod before: %v", err)
	}
	if err := bind(second.UID, first.ResourceVersion); !apierrors.IsConflict(err) {
		t.Errorf("binding of an old version: %v", err)
	}
	if err := bind(second.UID, second.ResourceVersion); err != nil {
		t.Error(err)
	}
}

// Who applies an ephemeral container owns that, and not the rest of the pod.
func TestEphemeralContainersOwnNothingElse(t *testing.T) {
	s := newServer(t)
	pods := s.client.CoreV1().Pods(s.newNamespace(t))
	if _, err := pods.Create(t.Context(), plainPod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	manifest := `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
		"spec": {"containers": [{"name": "c", "image": "none"}], "ephemeralContainers": [{"name": "e", "image": "none"}]}}`
	pod, err := pods.Patch(t.Context(), "p", types.ApplyPatchType, []byte(manifest), metav1.PatchOptions{FieldManager: "me"}, "ephemeralcontainers")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pod.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == "me" })
	if i < 0 || len(pod.Spec.EphemeralContainers) != 1 {
		t.Fatalf("%+v", pod)
	}
	owned := string(pod.ManagedFields[i].FieldsV1.Raw)
	if !strings.Contains(owned, `"f:ephemeralContainers"`) || strings.Contains(owned, `"f:containers"`) || strings.Contains(owned, `"f:labels"`) {
		t.Errorf("owns %s", owned)
	}
}
