package admission

import (
	"context"
	"errors"
	"fmt"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/component-base/metrics/legacyregistry"
	psa "k8s.io/pod-security-admission/admission"
	psaconfig "k8s.io/pod-security-admission/admission/api"
	psaapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
	"k8s.io/pod-security-admission/policy"
)

// podSecurity enforces the Pod Security Standards that namespaces ask for with
// their pod-security.kubernetes.io labels. Without labels everything is
// allowed.
type podSecurity struct {
	*admission.Handler
	delegate *psa.Admission
}

type namespaces struct{ Objects }

func (n namespaces) GetNamespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	return n.Namespace(ctx, name)
}

func (n namespaces) ListPods(ctx context.Context, namespace string) ([]*corev1.Pod, error) {
	pods, err := n.Pods(ctx, namespace)
	if err != nil {
		return nil, err
	}
	out := make([]*corev1.Pod, len(pods))
	for i := range pods {
		out[i] = &pods[i]
	}
	return out, nil
}

// recorder counts decisions under upstream's names (pod_security_evaluations_total
// and the like) for /metrics; all servers of a process share it.
var recorder = sync.OnceValue(func() metrics.Recorder {
	r := metrics.NewPrometheusRecorder(psaapi.GetAPIVersion())
	r.MustRegister(legacyregistry.MustRegister)
	return r
})

func newPodSecurity(objects Objects) (*podSecurity, error) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	open, latest := string(psaapi.LevelPrivileged), psaapi.VersionLatest
	config := &psaconfig.PodSecurityConfiguration{Defaults: psaconfig.PodSecurityDefaults{
		Enforce: open, EnforceVersion: latest, Audit: open, AuditVersion: latest, Warn: open, WarnVersion: latest}}
	d := &psa.Admission{Configuration: config, Evaluator: evaluator, Metrics: recorder(),
		PodSpecExtractor: psa.DefaultPodSpecExtractor{}, NamespaceGetter: namespaces{objects}, PodLister: namespaces{objects}}
	if err := d.CompleteConfiguration(); err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	if err := d.ValidateConfiguration(); err != nil {
		return nil, fmt.Errorf("pod security: %w", err)
	}
	return &podSecurity{admission.NewHandler(admission.Create, admission.Update), d}, nil
}

// Validate implements admission.ValidationInterface.
func (p *podSecurity) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	gr := a.GetResource().GroupResource()
	if gr != namespacesResource && !p.delegate.PodSpecExtractor.HasPodSpec(gr) {
		return nil
	}
	result := p.delegate.Validate(ctx, attributes{a})
	for _, w := range result.Warnings {
		warning.AddWarning(ctx, "", w)
	}
	for k, v := range result.AuditAnnotations {
		if err := a.AddAnnotation(psaapi.AuditAnnotationPrefix+k, v); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("record audit annotation %s: %w", k, err))
		}
	}
	if result.Allowed {
		return nil
	}
	if result.Result == nil {
		return admission.NewForbidden(a, errors.New("rejected by pod security"))
	}
	return &apierrors.StatusError{ErrStatus: *result.Result}
}

// attributes adapts a request to what the pod security library asks.
type attributes struct{ admission.Attributes }

func (a attributes) GetObject() (runtime.Object, error)    { return a.Attributes.GetObject(), nil }
func (a attributes) GetOldObject() (runtime.Object, error) { return a.Attributes.GetOldObject(), nil }
func (a attributes) GetUserName() string                   { return a.GetUserInfo().GetName() }
func (a attributes) GetOperation() admissionv1.Operation {
	return admissionv1.Operation(a.Attributes.GetOperation())
}
