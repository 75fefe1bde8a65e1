package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

// podEphemeral serves pods/ephemeralcontainers.
func podEphemeral(pods *registry.Store, typer runtime.ObjectTyper) podPart {
	update := ephemeralUpdate{typer}
	return newPodPart(pods.With(update, update), fieldpath.MakePrefixMatcherOrDie("spec", "ephemeralContainers"))
}

// ephemeralUpdate is the update strategy of pods/ephemeralcontainers: of what
// is sent, only the ephemeral containers count.
type ephemeralUpdate struct{ runtime.ObjectTyper }

func (ephemeralUpdate) NamespaceScoped() bool                         { return true }
func (ephemeralUpdate) AllowCreateOnUpdate(context.Context) bool      { return false }
func (ephemeralUpdate) AllowUnconditionalUpdate(context.Context) bool { return true }
func (ephemeralUpdate) Canonicalize(runtime.Object)                   {}
func (ephemeralUpdate) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

func (ephemeralUpdate) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, before := obj.(*corev1.Pod), old.(*corev1.Pod)
	added, version, owners := pod.Spec.EphemeralContainers, pod.ResourceVersion, pod.ManagedFields
	before.DeepCopyInto(pod)
	pod.Spec.EphemeralContainers, pod.ResourceVersion, pod.ManagedFields = added, version, owners
	if !registry.SemanticEqual(pod.Spec, before.Spec) {
		pod.Generation++
	}
}

func (ephemeralUpdate) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod := obj.(*corev1.Pod)
	if _, static := pod.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	return podspec.ValidateEphemeralContainersUpdate(pod, old.(*corev1.Pod))
}

// GetResetFields has nothing to say; see podPart.
func (ephemeralUpdate) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set { return nil }
