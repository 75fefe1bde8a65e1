package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *validator) probes(c *corev1.Container, fld *field.Path) field.ErrorList {
	errs := v.probe(c.LivenessProbe, fld.Child("livenessProbe"))
	errs = append(errs, onceIsEnough(c.LivenessProbe, fld.Child("livenessProbe"))...)
	errs = append(errs, v.probe(c.ReadinessProbe, fld.Child("readinessProbe"))...)
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(fld.Child("readinessProbe", "terminationGracePeriodSeconds"), p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	errs = append(errs, v.probe(c.StartupProbe, fld.Child("startupProbe"))...)
	return append(errs, onceIsEnough(c.StartupProbe, fld.Child("startupProbe"))...)
}

// onceIsEnough holds for probes whose success is an end, not a state.
func onceIsEnough(p *corev1.Probe, fld *field.Path) field.ErrorList {
	if p != nil && p.SuccessThreshold != 1 {
		return field.ErrorList{field.Invalid(fld.Child("successThreshold"), p.SuccessThreshold, "must be 1")}
	}
	return nil
}

func (v *validator) probe(p *corev1.Probe, fld *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := v.handler(handler{exec: p.Exec, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC}, fld)
	for _, f := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold}, {"failureThreshold", p.FailureThreshold},
	} {
		errs = append(errs, nonNegative(int64(f.value), fld.Child(f.name))...)
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		errs = append(errs, field.Invalid(fld.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
	}
	return errs
}

func (v *validator) lifecycle(l *corev1.Lifecycle, fld *field.Path) field.ErrorList {
	if l == nil {
		return nil
	}
	var errs field.ErrorList
	if h := l.PostStart; h != nil {
		errs = append(errs, v.handler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, fld.Child("postStart"))...)
	}
	if h := l.PreStop; h != nil {
		errs = append(errs, v.handler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, fld.Child("preStop"))...)
	}
	if l.StopSignal != nil {
		if v.spec.OS == nil || v.spec.OS.Name == "" {
			errs = append(errs, field.Forbidden(fld.Child("stopSignal"), "may not be set for containers with empty `spec.os.name`"))
		} else if !isSignal(*l.StopSignal) {
			errs = append(errs, field.Invalid(fld.Child("stopSignal"), *l.StopSignal, "must be the name of a Linux signal, such as SIGTERM"))
		}
	}
	return errs
}

// handler is what a probe or a lifecycle hook may do.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (v *validator) handler(h handler, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	found := false
	one := func(name string, set bool, check func(fld *field.Path) field.ErrorList) {
		switch {
		case !set:
		case found:
			errs = append(errs, field.Forbidden(fld.Child(name), "may not specify more than 1 handler type"))
		default:
			found = true
			errs = append(errs, check(fld.Child(name))...)
		}
	}
	one("exec", h.exec != nil, func(fld *field.Path) field.ErrorList {
		if len(h.exec.Command) == 0 {
			return field.ErrorList{field.Required(fld.Child("command"), "")}
		}
		return nil
	})
	one("httpGet", h.http != nil, func(fld *field.Path) field.ErrorList { return validateHTTPGet(h.http, fld) })
	one("tcpSocket", h.tcp != nil, func(fld *field.Path) field.ErrorList { return portOrName(h.tcp.Port, fld.Child("port")) })
	one("grpc", h.grpc != nil, func(fld *field.Path) field.ErrorList {
		errs := eachMessage(validation.IsValidPortNum(int(h.grpc.Port)), h.grpc.Port, fld.Child("port"))
		if h.grpc.Mode != nil {
			errs = append(errs, field.Forbidden(fld.Child("mode"), unsupported))
		}
		return errs
	})
	one("sleep", h.sleep != nil, func(fld *field.Path) field.ErrorList {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		if g := v.spec.TerminationGracePeriodSeconds; g != nil {
			grace = *g
		}
		if s := h.sleep.Seconds; s < 0 || s > grace {
			return field.ErrorList{field.Invalid(fld, s, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", grace))}
		}
		return nil
	})
	if !found {
		errs = append(errs, field.Required(fld, "must specify a handler type"))
	}
	return errs
}

func validateHTTPGet(a *corev1.HTTPGetAction, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	if a.Path == "" {
		errs = append(errs, field.Required(fld.Child("path"), ""))
	}
	errs = append(errs, portOrName(a.Port, fld.Child("port"))...)
	if a.Scheme != corev1.URISchemeHTTP && a.Scheme != corev1.URISchemeHTTPS {
		errs = append(errs, field.NotSupported(fld.Child("scheme"), a.Scheme, []corev1.URIScheme{corev1.URISchemeHTTP, corev1.URISchemeHTTPS}))
	}
	for _, h := range a.HTTPHeaders {
		errs = append(errs, eachMessage(validation.IsHTTPHeaderName(h.Name), h.Name, fld.Child("httpHeaders"))...)
	}
	if a.Protocol != nil {
		errs = append(errs, field.Forbidden(fld.Child("protocol"), unsupported))
	}
	return errs
}

func portOrName(port intstr.IntOrString, fld *field.Path) field.ErrorList {
	switch port.Type {
	case intstr.Int:
		return eachMessage(validation.IsValidPortNum(port.IntValue()), port.IntValue(), fld)
	case intstr.String:
		return eachMessage(validation.IsValidPortName(port.StrVal), port.StrVal, fld)
	default:
		return field.ErrorList{field.InternalError(fld, fmt.Errorf("unknown type: %v", port.Type))}
	}
}
