package pod

import (
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/node/volume"
)

// selinux tells whether the kernel labels processes. Where it does not, the
// labels that a pod asks for mean nothing, as on every other container runtime.
var selinux = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
})

// Refused names each field of a pod that this node can't honour. A pod that
// has one is not started: no field is ignored in silence, but windowsOptions,
// which mean nothing on Linux anywhere.
func Refused(p *v1.Pod) field.ErrorList { return refused(p, selinux()) }

func refused(p *v1.Pod, selinux bool) field.ErrorList {
	errs := volume.Refused(p)
	spec := field.NewPath("spec")
	no := func(bad bool, path *field.Path, why string) {
		if bad {
			errs = append(errs, field.Forbidden(path, why))
		}
	}
	const unsupported = "is not supported"
	for _, key := range slices.Sorted(maps.Keys(p.Annotations)) {
		no(strings.HasPrefix(key, v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) && confinedBy(p.Annotations[key]),
			field.NewPath("metadata", "annotations").Key(key), noAppArmor)
	}
	s := &p.Spec
	no(s.HostUsers != nil && !*s.HostUsers, spec.Child("hostUsers"), "user namespaces are not supported")
	no(len(s.ResourceClaims) > 0, spec.Child("resourceClaims"), unsupported)
	if sc := s.SecurityContext; sc != nil {
		path := spec.Child("securityContext")
		no(selinux && sc.SELinuxOptions != nil && *sc.SELinuxOptions != v1.SELinuxOptions{}, path.Child("seLinuxOptions"), unsupported)
		no(selinux && sc.SELinuxChangePolicy != nil, path.Child("seLinuxChangePolicy"), unsupported)
		no(confined(sc.AppArmorProfile), path.Child("appArmorProfile"), noAppArmor)
	}
	for i := range s.InitContainers {
		errs = append(errs, refusedContainer(&s.InitContainers[i], selinux, spec.Child("initContainers").Index(i))...)
	}
	for i := range s.Containers {
		errs = append(errs, refusedContainer(&s.Containers[i], selinux, spec.Child("containers").Index(i))...)
	}
	return errs
}

const noAppArmor = "AppArmor is not supported"

// confinedBy is confined for the annotation that was there before the field.
func confinedBy(annotation string) bool {
	return annotation != "" && annotation != v1.DeprecatedAppArmorBetaProfileNameUnconfined
}

func confined(p *v1.AppArmorProfile) bool {
	return p != nil && p.Type != v1.AppArmorProfileTypeUnconfined
}

func refusedContainer(c *v1.Container, selinux bool, path *field.Path) (errs field.ErrorList) {
	no := func(bad bool, path *field.Path, why string) {
		if bad {
			errs = append(errs, field.Forbidden(path, why))
		}
	}
	const unsupported = "is not supported"
	no(len(c.VolumeDevices) > 0, path.Child("volumeDevices"), unsupported)
	no(len(c.Resources.Claims) > 0, path.Child("resources", "claims"), unsupported)
	if lc := c.Lifecycle; lc != nil {
		for name, h := range map[string]*v1.LifecycleHandler{"postStart": lc.PostStart, "preStop": lc.PreStop} {
			no(h != nil && h.TCPSocket != nil, path.Child("lifecycle", name, "tcpSocket"), unsupported)
		}
	}
	if sc := c.SecurityContext; sc != nil {
		path := path.Child("securityContext")
		no(selinux && sc.SELinuxOptions != nil && *sc.SELinuxOptions != v1.SELinuxOptions{}, path.Child("seLinuxOptions"), unsupported)
		no(confined(sc.AppArmorProfile), path.Child("appArmorProfile"), noAppArmor)
	}
	slices.SortFunc(errs, func(a, b *field.Error) int { return strings.Compare(a.Field, b.Field) })
	return errs
}
