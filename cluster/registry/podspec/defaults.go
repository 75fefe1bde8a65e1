package podspec

import (
	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/utils/ptr"
)

// SetPodDefaults fills what a Pod leaves open. Some of it is for pods alone and
// not for templates, so that a template stays as it was written: requests that
// follow limits, host ports on the host network, service links.
func SetPodDefaults(pod *corev1.Pod) {
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1) // the shortest that sends a signal
	}
	SetDefaults(&pod.Spec)
	spec := &pod.Spec
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			requestsFromLimits(&list[i].Resources)
			if spec.HostNetwork {
				hostPortsFromPorts(list[i].Ports)
			}
		}
	}
	podRequests(pod)
	orElse(&spec.EnableServiceLinks, true)
}

// SetTemplateDefaults fills what a pod template leaves open.
func SetTemplateDefaults(t *corev1.PodTemplateSpec) { SetDefaults(&t.Spec) }

// SetDefaults fills what pods and templates leave open alike.
func SetDefaults(spec *corev1.PodSpec) {
	if spec.DNSPolicy == "" {
		spec.DNSPolicy = corev1.DNSClusterFirst
	}
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if spec.SchedulerName == "" {
		spec.SchedulerName = corev1.DefaultSchedulerName
	}
	orElse(&spec.SecurityContext, corev1.PodSecurityContext{})
	orElse(&spec.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	MirrorServiceAccount(spec)
	roundQuantities(spec.Overhead)
	if spec.Resources != nil {
		roundQuantities(spec.Resources.Limits)
		roundQuantities(spec.Resources.Requests)
	}
	for i := range spec.Volumes {
		setVolumeDefaults(&spec.Volumes[i])
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			setContainerDefaults(&list[i])
		}
	}
	for i := range spec.EphemeralContainers {
		// The two types have the same fields on purpose; only the target differs.
		c := corev1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		setContainerDefaults(&c)
		spec.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
}

// MirrorServiceAccount keeps spec.serviceAccount, the deprecated name, equal to
// spec.serviceAccountName, which wins. Called again after admission, which may
// have chosen an account.
func MirrorServiceAccount(spec *corev1.PodSpec) {
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = spec.DeprecatedServiceAccount
	}
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
}

func setContainerDefaults(c *corev1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = pullPolicy(c.Image)
	}
	if c.TerminationMessagePath == "" {
		c.TerminationMessagePath = corev1.TerminationMessagePathDefault
	}
	if c.TerminationMessagePolicy == "" {
		c.TerminationMessagePolicy = corev1.TerminationMessageReadFile
	}
	for i := range c.Ports {
		if c.Ports[i].Protocol == "" {
			c.Ports[i].Protocol = corev1.ProtocolTCP
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			setFieldRefDefaults(from.FieldRef)
			if from.FileKeyRef != nil {
				orElse(&from.FileKeyRef.Optional, false)
			}
		}
	}
	roundQuantities(c.Resources.Limits)
	roundQuantities(c.Resources.Requests)
	setProbeDefaults(c.LivenessProbe)
	setProbeDefaults(c.ReadinessProbe)
	setProbeDefaults(c.StartupProbe)
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				setHTTPGetDefaults(h.HTTPGet)
			}
		}
	}
}

// pullPolicy follows the tag: what may change under its name is looked up anew.
func pullPolicy(image string) corev1.PullPolicy {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return corev1.PullIfNotPresent
	}
	if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok && tagged.Tag() == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func setProbeDefaults(p *corev1.Probe) {
	if p == nil {
		return
	}
	for _, f := range []struct {
		field *int32
		value int32
	}{{&p.TimeoutSeconds, 1}, {&p.PeriodSeconds, 10}, {&p.SuccessThreshold, 1}, {&p.FailureThreshold, 3}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	setHTTPGetDefaults(p.HTTPGet)
	if p.GRPC != nil {
		orElse(&p.GRPC.Service, "")
	}
}

func setHTTPGetDefaults(a *corev1.HTTPGetAction) {
	if a == nil {
		return
	}
	if a.Path == "" {
		a.Path = "/"
	}
	if a.Scheme == "" {
		a.Scheme = corev1.URISchemeHTTP
	}
}

func setFieldRefDefaults(f *corev1.ObjectFieldSelector) {
	if f != nil && f.APIVersion == "" {
		f.APIVersion = "v1"
	}
}

func requestsFromLimits(r *corev1.ResourceRequirements) {
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; ok {
			continue
		}
		if r.Requests == nil {
			r.Requests = corev1.ResourceList{}
		}
		r.Requests[name] = limit.DeepCopy()
	}
}

func hostPortsFromPorts(ports []corev1.ContainerPort) {
	for i := range ports {
		if ports[i].HostPort == 0 {
			ports[i].HostPort = ports[i].ContainerPort
		}
	}
}

// podRequests completes requests of the pod as a whole where it has limits as a
// whole: from what its containers ask for together, else from the limit.
func podRequests(pod *corev1.Pod) {
	r := pod.Spec.Resources
	if r == nil || len(r.Limits) == 0 {
		return
	}
	requests := r.Requests.DeepCopy()
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	fill := func(from corev1.ResourceList, hugePages bool) {
		for name, q := range from {
			if _, set := requests[name]; set || !resourcehelper.IsSupportedPodLevelResource(name) || (!hugePages && isHugePages(name)) {
				continue
			}
			requests[name] = q.DeepCopy()
		}
	}
	fill(resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{}), false)
	fill(r.Limits, true)
	if len(requests) > 0 {
		r.Requests = requests
	}
}

// roundQuantities rounds up to thousandths, the finest step the API keeps.
func roundQuantities(list corev1.ResourceList) {
	for name, q := range list {
		if q.RoundUp(resource.Milli) {
			continue
		}
		list[name] = q
	}
}

// orElse makes *p point to a copy of value where it points nowhere.
func orElse[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}
