package podspec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *validator) containers(fld *field.Path) field.ErrorList {
	if len(v.spec.Containers) == 0 {
		return field.ErrorList{field.Required(fld, "")}
	}
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range v.spec.Containers {
		c, p := &v.spec.Containers[i], fld.Index(i)
		errs = append(errs, v.container(c, p)...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		errs = append(errs, v.lifecycle(c.Lifecycle, p.Child("lifecycle"))...)
		errs = append(errs, v.probes(c, p)...)
		errs = append(errs, v.restartRules(c, p)...)
	}
	return append(errs, hostPortConflicts(v.spec.Containers, fld)...)
}

func (v *validator) initContainers(fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range v.spec.Containers {
		names.Insert(v.spec.Containers[i].Name)
	}
	for i := range v.spec.InitContainers {
		c, p := &v.spec.InitContainers[i], fld.Index(i)
		errs = append(errs, v.container(c, p)...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		} else if c.Name != "" {
			names.Insert(c.Name)
		}
		// Init containers run one after the other and may share a host port.
		errs = append(errs, hostPortConflicts(v.spec.InitContainers[i:i+1], p)...)
		errs = append(errs, v.restartRules(c, p)...)
		if isSidecar(c) {
			errs = append(errs, v.lifecycle(c.Lifecycle, p.Child("lifecycle"))...)
			errs = append(errs, v.probes(c, p)...)
			continue
		}
		for _, f := range []struct {
			name string
			set  bool
		}{{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil}} {
			if f.set {
				errs = append(errs, field.Forbidden(p.Child(f.name), "may not be set for init containers without restartPolicy=Always"))
			}
		}
	}
	return errs
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

const (
	maxRestartRules = 20
	maxExitCodes    = 255 // of one rule
)

// restartRules checks the restart policy and rules that a container has of its
// own.
func (v *validator) restartRules(c *corev1.Container, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case c.RestartPolicy != nil:
		if !slices.Contains(restartPolicies, *c.RestartPolicy) {
			errs = append(errs, field.NotSupported(fld.Child("restartPolicy"), *c.RestartPolicy, restartPolicies))
		}
	case len(c.RestartPolicyRules) > 0:
		errs = append(errs, field.Required(fld.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	if n := len(c.RestartPolicyRules); n > maxRestartRules {
		errs = append(errs, field.TooMany(fld.Child("restartPolicyRules"), n, maxRestartRules))
	}
	for i, r := range c.RestartPolicyRules {
		p := fld.Child("restartPolicyRules").Index(i)
		errs = append(errs, oneOf(r.Action, p.Child("action"), corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)...)
		codes := p.Child("exitCodes")
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(codes, "must be specified"))
			continue
		}
		errs = append(errs, oneOf(r.ExitCodes.Operator, codes.Child("operator"), corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			errs = append(errs, field.TooMany(codes.Child("values"), n, maxExitCodes))
		}
	}
	return errs
}

var restartPolicies = []corev1.ContainerRestartPolicy{corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure}

// restartsAfter says whether a container that ended with code starts again: by
// the first of its own rules that is met, its own policy, or the pod's.
func restartsAfter(c *corev1.Container, policy corev1.RestartPolicy, code int32) bool {
	if c.RestartPolicy != nil {
		for _, r := range c.RestartPolicyRules {
			if r.ExitCodes != nil && slices.Contains(r.ExitCodes.Values, code) == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
				return true
			}
		}
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0
}

// restartsAll says whether a container of the pod can start all of it again.
func restartsAll(spec *corev1.PodSpec) bool {
	has := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	}
	return slices.ContainsFunc(spec.InitContainers, has) || slices.ContainsFunc(spec.Containers, has)
}

// container checks what all three kinds of containers have in common.
func (v *validator) container(c *corev1.Container, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(fld.Child("name"), ""))
	} else {
		errs = append(errs, eachMessage(validation.IsDNS1123Label(c.Name), c.Name, fld.Child("name"))...)
	}
	if c.Image == "" {
		errs = append(errs, field.Required(fld.Child("image"), ""))
	} else if c.Image != strings.TrimSpace(c.Image) {
		errs = append(errs, field.Invalid(fld.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(c.TerminationMessagePolicy, fld.Child("terminationMessagePolicy"),
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, validatePorts(c.Ports, fld.Child("ports"))...)
	errs = append(errs, v.env(c.Env, fld.Child("env"))...)
	errs = append(errs, validateEnvFrom(c.EnvFrom, fld.Child("envFrom"))...)
	errs = append(errs, v.mounts(c, fld.Child("volumeMounts"))...)
	errs = append(errs, v.devices(c, fld.Child("volumeDevices"))...)
	errs = append(errs, oneOf(c.ImagePullPolicy, fld.Child("imagePullPolicy"), corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, validateResources(&c.Resources, fld.Child("resources"))...)
	errs = append(errs, v.resizePolicy(c.ResizePolicy, fld.Child("resizePolicy"))...)
	return append(errs, v.containerSecurity(c.SecurityContext, fld.Child("securityContext"))...)
}

func validatePorts(ports []corev1.ContainerPort, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, port := range ports {
		p := fld.Index(i)
		if port.Name != "" {
			if msgs := validation.IsValidPortName(port.Name); len(msgs) > 0 {
				errs = append(errs, eachMessage(msgs, port.Name, p.Child("name"))...)
			} else if names.Has(port.Name) {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			} else {
				names.Insert(port.Name)
			}
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(p.Child("containerPort"), ""))
		} else {
			errs = append(errs, eachMessage(validation.IsValidPortNum(int(port.ContainerPort)), port.ContainerPort, p.Child("containerPort"))...)
		}
		if port.HostPort != 0 {
			errs = append(errs, eachMessage(validation.IsValidPortNum(int(port.HostPort)), port.HostPort, p.Child("hostPort"))...)
		}
		errs = append(errs, oneOf(port.Protocol, p.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	return errs
}

func hostPortConflicts(containers []corev1.Container, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	used := sets.New[string]()
	for i := range containers {
		for j, port := range containers[i].Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if used.Has(key) {
				errs = append(errs, field.Duplicate(fld.Index(i).Child("ports").Index(j).Child("hostPort"), key))
			}
			used.Insert(key)
		}
	}
	return errs
}

// ephemeralAllowed are the fields that a container added to a running pod may
// have: nothing that would change what the pod was scheduled with.
var ephemeralAllowed = sets.New("Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env", "VolumeMounts", "VolumeDevices",
	"TerminationMessagePath", "TerminationMessagePolicy", "ImagePullPolicy", "SecurityContext", "Stdin", "StdinOnce", "TTY")

func (v *validator) ephemeralContainers(fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	targets, names := sets.New[string](), sets.New[string]()
	for _, c := range v.spec.Containers {
		targets.Insert(c.Name)
		names.Insert(c.Name)
	}
	for _, c := range v.spec.InitContainers {
		names.Insert(c.Name)
	}
	for i := range v.spec.EphemeralContainers {
		e, p := &v.spec.EphemeralContainers[i], fld.Index(i)
		c := corev1.Container(e.EphemeralContainerCommon)
		errs = append(errs, v.container(&c, p)...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		if e.TargetContainerName != "" && !targets.Has(e.TargetContainerName) {
			errs = append(errs, field.NotFound(p.Child("targetContainerName"), e.TargetContainerName))
		}
		errs = append(errs, ephemeralFields(&c, p)...)
	}
	return errs
}

func ephemeralFields(c *corev1.Container, fld *field.Path) field.ErrorList {
	const detail = "cannot be set for an Ephemeral Container"
	var errs field.ErrorList
	value := reflect.ValueOf(c).Elem()
	for i := range value.NumField() {
		if f := value.Type().Field(i); !ephemeralAllowed.Has(f.Name) && !value.Field(i).IsZero() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			errs = append(errs, field.Forbidden(fld.Child(name), detail))
		}
	}
	for i, m := range c.VolumeMounts {
		if m.SubPath != "" {
			errs = append(errs, field.Forbidden(fld.Child("volumeMounts").Index(i).Child("subPath"), detail))
		}
		if m.SubPathExpr != "" {
			errs = append(errs, field.Forbidden(fld.Child("volumeMounts").Index(i).Child("subPathExpr"), detail))
		}
	}
	return errs
}

func (v *validator) resizePolicy(policies []corev1.ContainerResizePolicy, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[corev1.ResourceName]()
	for i, p := range policies {
		if seen.Has(p.ResourceName) {
			errs = append(errs, field.Duplicate(fld.Index(i), p.ResourceName))
		}
		seen.Insert(p.ResourceName)
		errs = append(errs, oneOf(p.ResourceName, fld, corev1.ResourceCPU, corev1.ResourceMemory)...)
		errs = append(errs, oneOf(p.RestartPolicy, fld, corev1.NotRequired, corev1.RestartContainer)...)
		if v.spec.RestartPolicy == corev1.RestartPolicyNever && p.RestartPolicy == corev1.RestartContainer {
			errs = append(errs, field.Invalid(fld, p.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
	return errs
}
