package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

// podResize serves pods/resize: what containers ask for changes while they run.
// The node decides when, and tells by the conditions PodResizePending and
// PodResizeInProgress.
func podResize(pods *registry.Store, typer runtime.ObjectTyper) podPart {
	of := func(list, name string) *fieldpath.SetMatcher {
		return fieldpath.MakePrefixMatcherOrDie("spec", list, fieldpath.MatchAnyPathElement(), name)
	}
	update := resizeUpdate{typer}
	return newPodPart(pods.With(update, update), fieldpath.MakePrefixMatcherOrDie("spec", "resources"),
		of("containers", "resources"), of("containers", "resizePolicy"), of("initContainers", "resources"), of("initContainers", "resizePolicy"))
}

// resizeUpdate is the update strategy of pods/resize: of what is sent, only
// resources count.
type resizeUpdate struct{ runtime.ObjectTyper }

func (resizeUpdate) NamespaceScoped() bool                         { return true }
func (resizeUpdate) AllowCreateOnUpdate(context.Context) bool      { return false }
func (resizeUpdate) AllowUnconditionalUpdate(context.Context) bool { return true }
func (resizeUpdate) Canonicalize(runtime.Object)                   {}
func (resizeUpdate) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
func (resizeUpdate) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set { return nil } // see podPart

func (resizeUpdate) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, before := obj.(*corev1.Pod), old.(*corev1.Pod)
	containers, ok := resized(pod.Spec.Containers, before.Spec.Containers)
	inits, also := resized(pod.Spec.InitContainers, before.Spec.InitContainers)
	if ok && also { // else validation says what is wrong
		all := pod.Spec.Resources
		before.Spec.DeepCopyInto(&pod.Spec)
		before.Status.DeepCopyInto(&pod.Status)
		metav1.ResetObjectMetaForStatus(&pod.ObjectMeta, &before.ObjectMeta)
		pod.Spec.Resources, pod.Spec.Containers, pod.Spec.InitContainers = all, containers, inits
	}
	pod.Generation = before.Generation
	if !registry.SemanticEqual(pod.Spec, before.Spec) {
		pod.Generation++
	}
}

// resized gives before with the resources of now; false if they are not the same
// containers.
func resized(now, before []corev1.Container) ([]corev1.Container, bool) {
	if len(now) != len(before) {
		return nil, false
	}
	var out []corev1.Container
	for i := range before {
		if now[i].Name != before[i].Name {
			return nil, false
		}
		c := before[i].DeepCopy()
		c.Resources, c.ResizePolicy = now[i].Resources, now[i].ResizePolicy
		out = append(out, *c)
	}
	return out, true
}

func (resizeUpdate) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return podspec.ValidatePodResize(obj.(*corev1.Pod), old.(*corev1.Pod))
}
