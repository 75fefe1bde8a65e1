package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TemplateWarnings tells what in a template is legal and still a bad idea. A
// template that did not change gives none.
func TemplateWarnings(t, old *corev1.PodTemplateSpec, fld *field.Path) []string {
	if old != nil && apiEqual(t, old) {
		return nil
	}
	return warnings(fld, &t.ObjectMeta, &t.Spec)
}

// PodWarnings is TemplateWarnings for a pod.
func PodWarnings(pod, old *corev1.Pod) []string {
	if old != nil && apiEqual(pod.Spec, old.Spec) {
		return nil
	}
	var out []string
	if msgs := validation.IsDNS1123Label(pod.Name); old == nil && len(msgs) > 0 {
		out = append(out, fmt.Sprintf("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
	}
	return append(out, warnings(nil, &pod.ObjectMeta, &pod.Spec)...)
}

// renamedLabels are node labels with a newer name.
var renamedLabels = map[string]string{
	"beta.kubernetes.io/arch":           `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":             `deprecated since v1.14; use "kubernetes.io/os" instead`,
	corev1.LabelFailureDomainBetaRegion: `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	corev1.LabelFailureDomainBetaZone:   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	corev1.LabelInstanceType:            `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
}

// deadAnnotations mean nothing any more.
var deadAnnotations = map[string]string{
	"scheduler.alpha.kubernetes.io/critical-pod":  `non-functional in v1.16+; use the "priorityClassName" field instead`,
	"security.alpha.kubernetes.io/sysctls":        `non-functional in v1.11+; use the "sysctls" field instead`,
	"security.alpha.kubernetes.io/unsafe-sysctls": `non-functional in v1.11+; use the "sysctls" field instead`,
	corev1.SeccompPodAnnotationKey:                `non-functional in v1.27+; use the "seccompProfile" field instead`,
}

func warnings(fld *field.Path, meta *metav1.ObjectMeta, spec *corev1.PodSpec) []string {
	var out []string
	warn := func(p *field.Path, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s: ", p)+fmt.Sprintf(format, args...))
	}
	specPath := fld.Child("spec")
	for _, key := range slices.Sorted(maps.Keys(spec.NodeSelector)) {
		if msg := renamedLabels[key]; msg != "" {
			warn(specPath.Child("nodeSelector").Key(key), "%s", msg)
		}
	}
	for i, c := range spec.TopologySpreadConstraints {
		if msg := renamedLabels[c.TopologyKey]; msg != "" {
			warn(specPath.Child("topologySpreadConstraints").Index(i).Child("topologyKey"), "%s is %s", c.TopologyKey, msg)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(meta.Annotations)) {
		p := fld.Child("metadata", "annotations").Key(key)
		switch {
		case deadAnnotations[key] != "":
			warn(p, "%s", deadAnnotations[key])
		case strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix):
			warn(p, `non-functional in v1.27+; use the "seccompProfile" field instead`)
		case strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix):
			warn(p, `deprecated since v1.30; use the "appArmorProfile" field instead`)
		}
	}
	for i := range spec.Volumes {
		volumeWarnings(&spec.Volumes[i], specPath.Child("volumes").Index(i), warn)
	}
	aliases := map[string]bool{}
	for i, a := range spec.HostAliases {
		if aliases[a.IP] {
			warn(specPath.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
		}
		aliases[a.IP] = true
	}
	for i, s := range spec.ImagePullSecrets {
		if s.Name == "" {
			warn(specPath.Child("imagePullSecrets").Index(i).Child("name"), "invalid empty name %q", s.Name)
		}
	}
	if g := spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		warn(specPath.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	ports := portsSeen{}
	for i := range spec.InitContainers {
		containerWarnings(&spec.InitContainers[i], specPath.Child("initContainers").Index(i), nil, warn)
	}
	for i := range spec.Containers {
		containerWarnings(&spec.Containers[i], specPath.Child("containers").Index(i), ports, warn)
	}
	listWarnings(spec.Overhead, specPath.Child("overhead"), warn)
	return out
}

type warnFunc func(p *field.Path, format string, args ...any)

func volumeWarnings(v *corev1.Volume, fld *field.Path, warn warnFunc) {
	for _, w := range []struct {
		set        bool
		name, text string
	}{
		{v.GitRepo != nil, "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"},
		{v.PhotonPersistentDisk != nil, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"},
		{v.ScaleIO != nil, "scaleIO", "deprecated in v1.16, non-functional in v1.22+"},
		{v.StorageOS != nil, "storageos", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Glusterfs != nil, "glusterfs", "deprecated in v1.25, non-functional in v1.26+"},
		{v.Flocker != nil, "flocker", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Quobyte != nil, "quobyte", "deprecated in v1.22, non-functional in v1.25+"},
		{v.CephFS != nil, "cephfs", "deprecated in v1.28, non-functional in v1.31+"},
		{v.RBD != nil, "rbd", "deprecated in v1.28, non-functional in v1.31+"},
	} {
		if w.set {
			warn(fld.Child(w.name), "%s", w.text)
		}
	}
}

// portsSeen maps a port definition to where it was met first.
type portsSeen map[corev1.ContainerPort]*field.Path

func containerWarnings(c *corev1.Container, fld *field.Path, ports portsSeen, warn warnFunc) {
	listWarnings(c.Resources.Limits, fld.Child("resources", "limits"), warn)
	listWarnings(c.Resources.Requests, fld.Child("resources", "requests"), warn)
	names := map[string]bool{}
	for i, e := range c.Env {
		if names[e.Name] {
			warn(fld.Child("env").Index(i), "hides previous definition of %q, which may be dropped when using apply", e.Name)
		}
		names[e.Name] = true
	}
	for i, port := range c.Ports {
		if ports == nil {
			break
		}
		p := fld.Child("ports").Index(i)
		port.Name = "" // the same port under two names is still the same
		if first, ok := ports[port]; ok {
			warn(p, "duplicate port definition with %s", first)
			continue
		}
		ports[port] = p
	}
}

func listWarnings(list corev1.ResourceList, fld *field.Path, warn warnFunc) {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := list[name]; ok && q.MilliValue()%1000 != 0 {
			warn(fld.Key(string(name)), "fractional byte value %q is invalid, must be an integer", q.String())
		}
	}
}
