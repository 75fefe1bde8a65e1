package core

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
)

// podBinding serves pods/binding: it is how a scheduler puts a pod on a node.
type podBinding struct {
	store *genericregistry.Store
}

var (
	_ rest.NamedCreater                   = (*podBinding)(nil)
	_ rest.SubresourceObjectMetaPreserver = (*podBinding)(nil)
	_ rest.Creater                        = (*legacyBinding)(nil)
)

// New implements rest.Storage.
func (b *podBinding) New() runtime.Object { return &corev1.Binding{} }

// Destroy implements rest.Storage; the pods own the store.
func (b *podBinding) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (b *podBinding) NamespaceScoped() bool { return b.store.NamespaceScoped() }

// PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate keeps the UID and the
// version by which a binding says which pod it means: another of the same name may
// have come in the meantime.
func (b *podBinding) PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate() bool { return true }

// Create binds the pod called name.
func (b *podBinding) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %#v", obj))
	}
	if name != binding.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := validateBinding(binding); len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), name, errs)
	}
	if validate != nil {
		if err := validate(ctx, binding.DeepCopy()); err != nil {
			return nil, err
		}
	}
	if err := b.bind(ctx, binding, dryrun.IsDryRun(o.DryRun)); err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

func validateBinding(b *corev1.Binding) field.ErrorList {
	var errs field.ErrorList
	target := field.NewPath("target")
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(target.Child("kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(target.Child("name"), ""))
	}
	return errs
}

func (b *podBinding) bind(ctx context.Context, binding *corev1.Binding, dryRun bool) error {
	key, err := b.store.KeyFunc(ctx, binding.Name)
	if err != nil {
		return err
	}
	var only *storage.Preconditions
	if binding.UID != "" || binding.ResourceVersion != "" {
		only = &storage.Preconditions{}
		if binding.UID != "" {
			only.UID = &binding.UID
		}
		if binding.ResourceVersion != "" {
			only.ResourceVersion = &binding.ResourceVersion
		}
	}
	resource := schema.GroupResource{Resource: "pods"}
	err = b.store.Storage.GuaranteedUpdate(ctx, key, &corev1.Pod{}, false, only, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("bind pod %s: unexpected object: %T", binding.Name, obj)
		}
		if err := assign(pod, binding); err != nil {
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, binding.Name, err)
		}
		return pod, nil
	}), dryRun, nil)
	return storeerr.InterpretUpdateError(storeerr.InterpretGetError(err, resource, binding.Name), resource, binding.Name)
}

func assign(pod *corev1.Pod, binding *corev1.Binding) error {
	switch {
	case pod.DeletionTimestamp != nil:
		return fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	pod.Spec.NodeName = binding.Target.Name
	if len(binding.Annotations) > 0 && pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	maps.Copy(pod.Annotations, binding.Annotations)
	if len(binding.Labels) > 0 && pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	maps.Copy(pod.Labels, binding.Labels)
	pod.Status.NominatedNodeName = ""
	setPodCondition(pod, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
	return nil
}

// setPodCondition replaces the condition of the same type and dates it when its
// status changes.
func setPodCondition(pod *corev1.Pod, c corev1.PodCondition) {
	c.LastTransitionTime, c.ObservedGeneration = metav1.Now(), pod.Generation
	for i := range pod.Status.Conditions {
		old := &pod.Status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}

// legacyBinding serves bindings, where the pod is named in the object only.
type legacyBinding struct{ binding *podBinding }

// New implements rest.Storage.
func (b *legacyBinding) New() runtime.Object { return b.binding.New() }

// Destroy implements rest.Storage.
func (b *legacyBinding) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (b *legacyBinding) NamespaceScoped() bool { return true }

// GetSingularName implements rest.SingularNameProvider.
func (b *legacyBinding) GetSingularName() string { return "binding" }

// Create implements rest.Creater.
func (b *legacyBinding) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %T", obj))
	}
	return b.binding.Create(ctx, binding.Name, obj, validate, o)
}
