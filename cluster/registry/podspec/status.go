package podspec

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// ValidatePodStatusUpdate checks a status as the node or a controller reports
// it: names and addresses are well formed, and a container that ended for good
// does not come back.
func ValidatePodStatusUpdate(pod, old *corev1.Pod) field.ErrorList {
	fld := field.NewPath("status")
	errs := named(apivalidation.NameIsDNSSubdomain, pod.Status.NominatedNodeName, fld.Child("nominatedNodeName"))
	for i, c := range pod.Status.Conditions {
		errs = append(errs, qualified(string(c.Type), fld.Child("conditions").Index(i).Child("type"))...)
	}
	spec := &old.Spec
	// A container comes back as its policy says, and as a new attempt when all of
	// the pod starts again: by a rule, or in a new sandbox.
	comesBack := func(list []corev1.Container, init bool) func(was, now *corev1.ContainerStatus) bool {
		return func(was, now *corev1.ContainerStatus) bool {
			i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == was.Name })
			if restartsAll(spec) || i >= 0 && restartsAfter(&list[i], spec.RestartPolicy, was.State.Terminated.ExitCode) {
				return true
			}
			return init && now.RestartCount > was.RestartCount
		}
	}
	never := func(_, _ *corev1.ContainerStatus) bool { return false }
	errs = append(errs, statesOnlyEnd(pod.Status.ContainerStatuses, old.Status.ContainerStatuses, fld.Child("containerStatuses"), comesBack(spec.Containers, false))...)
	errs = append(errs, statesOnlyEnd(pod.Status.InitContainerStatuses, old.Status.InitContainerStatuses, fld.Child("initContainerStatuses"), comesBack(spec.InitContainers, true))...)
	errs = append(errs, statesOnlyEnd(pod.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, fld.Child("ephemeralContainerStatuses"), never)...)
	errs = append(errs, podIPs(pod, fld)...)
	errs = append(errs, hostIPs(pod, fld)...)
	if old.Status.QOSClass != "" && pod.Status.QOSClass != old.Status.QOSClass {
		errs = append(errs, field.Invalid(fld.Child("qosClass"), pod.Status.QOSClass, "Pod QOS Class may not change"))
	}
	return errs
}

// statesOnlyEnd forbids leaving the terminated state, but for containers that
// come back.
func statesOnlyEnd(now, before []corev1.ContainerStatus, fld *field.Path, comesBack func(was, now *corev1.ContainerStatus) bool) field.ErrorList {
	var errs field.ErrorList
	for j := range before {
		was := &before[j]
		if was.State.Terminated == nil {
			continue
		}
		i := slices.IndexFunc(now, func(s corev1.ContainerStatus) bool { return s.Name == was.Name })
		if i >= 0 && now[i].State.Terminated == nil && !comesBack(was, &now[i]) {
			errs = append(errs, field.Forbidden(fld.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
		}
	}
	return errs
}

func podIPs(pod *corev1.Pod, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	list := fld.Child("podIPs")
	families := map[bool]int{}
	seen := map[string]bool{}
	for i, ip := range pod.Status.PodIPs {
		errs = append(errs, validation.IsValidIPForLegacyField(list.Index(i), ip.IP, false, nil)...)
		if seen[ip.IP] {
			errs = append(errs, field.Duplicate(list.Index(i), ip))
		}
		seen[ip.IP] = true
		families[netutils.IsIPv6String(ip.IP)]++
	}
	if families[true] > 1 || families[false] > 1 {
		errs = append(errs, field.Invalid(list, pod.Status.PodIPs, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func hostIPs(pod *corev1.Pod, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	list := fld.Child("hostIPs")
	if ips := pod.Status.HostIPs; len(ips) > 0 && ips[0].IP != pod.Status.HostIP {
		errs = append(errs, field.Invalid(list.Index(0).Child("ip"), ips[0].IP, "must be equal to `hostIP`"))
	}
	for i, ip := range pod.Status.HostIPs {
		errs = append(errs, validation.IsValidIPForLegacyField(list.Index(i), ip.IP, false, nil)...)
	}
	return errs
}
