package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

// ValidatePodResize checks an update through the resize subresource: cpu and
// memory of containers and of the pod as a whole may change within the pod's
// QoS class; what is asked for may not cease to be.
func ValidatePodResize(pod, old *corev1.Pod) field.ErrorList {
	if _, static := old.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "windows pods cannot be resized")}
	}
	spec := field.NewPath("spec")
	errs := ValidatePod(pod)
	class := old.Status.QOSClass
	if class == "" {
		class = QOS(old)
	}
	if class != QOS(pod) {
		errs = append(errs, field.Invalid(spec, pod.Status.QOSClass, "Pod QOS Class may not change as a result of resizing"))
	}
	if !nodeResizes(old) {
		errs = append(errs, field.Forbidden(spec, "Pod running on node without support for resize"))
	}
	rest := pod.Spec.DeepCopy()
	if resourcehelper.IsPodLevelResourcesSet(old) || resourcehelper.IsPodLevelResourcesSet(pod) {
		errs = append(errs, resizedPodLevel(rest, &old.Spec, spec)...)
	}
	order := append(sameNames(pod.Spec.Containers, old.Spec.Containers, "containers", spec), sameNames(pod.Spec.InitContainers, old.Spec.InitContainers, "initContainers", spec)...)
	if len(order) > 0 {
		return append(errs, order...)
	}
	for i := range rest.InitContainers {
		errs = append(errs, resizedContainer(&rest.InitContainers[i], &old.Spec.InitContainers[i], true, spec.Child("initContainers").Index(i))...)
	}
	for i := range rest.Containers {
		errs = append(errs, resizedContainer(&rest.Containers[i], &old.Spec.Containers[i], false, spec.Child("containers").Index(i))...)
	}
	if len(errs) == 0 && !apiEqual(rest, &old.Spec) {
		errs = append(errs, field.Forbidden(spec, "only cpu and memory resources are mutable"))
	}
	return errs
}

// nodeResizes tells whether the node of a pod that runs reports what its
// containers have, as nodes do that can change it.
func nodeResizes(pod *corev1.Pod) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running != nil {
			return s.Resources != nil
		}
	}
	return true
}

func sameNames(now, before []corev1.Container, list string, spec *field.Path) field.ErrorList {
	fld := spec.Child(list)
	if len(now) != len(before) {
		return field.ErrorList{field.Forbidden(fld, list+" may not be added or removed on resize")}
	}
	var errs field.ErrorList
	for i := range now {
		if now[i].Name != before[i].Name {
			errs = append(errs, field.Forbidden(fld.Index(i).Child("name"), list+" may not be renamed or reordered on resize"))
		}
	}
	return errs
}

// resizedContainer puts back in c what may have changed.
func resizedContainer(c, old *corev1.Container, init bool, fld *field.Path) field.ErrorList {
	errs := nothingRemoved(&c.Resources, &old.Resources, "resource", fld.Child("resources"))
	changed := !apiEqual(c, old)
	computingOf(&c.Resources, &old.Resources)
	if !apiEqual(c, old) {
		path, why := field.NewPath("spec"), "only cpu and memory resources are mutable"
		if init {
			path, why = fld, "only cpu and memory resources for init or sidecar containers are mutable"
		}
		errs = append(errs, field.Forbidden(path, why))
	}
	if init && changed && !isSidecar(c) {
		for _, p := range c.ResizePolicy {
			if p.RestartPolicy == corev1.RestartContainer {
				errs = append(errs, field.Forbidden(fld, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized"))
			}
		}
	}
	return errs
}

// resizedPodLevel does the same for what the pod has as a whole.
func resizedPodLevel(now, old *corev1.PodSpec, spec *field.Path) field.ErrorList {
	fld := spec.Child("resources")
	if now.Resources == nil {
		return field.ErrorList{field.Forbidden(fld, "pod-level resources cannot be removed")}
	}
	before := old.Resources
	if before == nil {
		before = &corev1.ResourceRequirements{}
	}
	errs := nothingRemoved(now.Resources, before, "pod-level resource", fld)
	computingOf(now.Resources, before)
	if !apiEqual(now.Resources, before) {
		errs = append(errs, field.Forbidden(spec, "only cpu and memory resources are mutable at pod-level"))
	}
	if old.Resources == nil {
		now.Resources = nil
	}
	return errs
}

func nothingRemoved(now, before *corev1.ResourceRequirements, what string, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, part := range []struct {
		name        string
		now, before corev1.ResourceList
	}{{"requests", now.Requests, before.Requests}, {"limits", now.Limits, before.Limits}} {
		for name := range part.before {
			if _, ok := part.now[name]; !ok {
				errs = append(errs, field.Forbidden(fld.Child(part.name), fmt.Sprintf("%s %s cannot be removed", what, part.name)))
				break
			}
		}
	}
	return errs
}

// computingOf gives r the cpu and memory of other, and leaves the rest.
func computingOf(r, other *corev1.ResourceRequirements) {
	for _, part := range []struct{ list, from *corev1.ResourceList }{{&r.Requests, &other.Requests}, {&r.Limits, &other.Limits}} {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			q, ok := (*part.from)[name]
			if !ok {
				delete(*part.list, name)
				continue
			}
			if *part.list == nil {
				*part.list = corev1.ResourceList{}
			}
			(*part.list)[name] = q
		}
	}
}
