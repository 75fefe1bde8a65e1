package admission

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/utils/ptr"
)

// DefaultPodEvictionTimeout is how long a pod stays on a node that is not ready or
// cannot be reached, if neither it nor the cluster's settings say otherwise.
const DefaultPodEvictionTimeout = 5 * time.Minute

// tolerations adds the two default NoExecute tolerations where a pod does not
// say otherwise, also when it is updated: a client may replace the whole list
// with its own, while validation lets tolerations only be added.
type tolerations struct {
	*admission.Handler
	seconds int64
}

// Admit implements admission.MutationInterface.
func (t *tolerations) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, err := podSpec(a)
	if pod == nil || err != nil {
		return err
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		covered := slices.ContainsFunc(pod.Spec.Tolerations, func(x corev1.Toleration) bool {
			return (x.Key == key || x.Key == "") && (x.Effect == corev1.TaintEffectNoExecute || x.Effect == "")
		})
		if !covered {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(t.seconds)})
		}
	}
	return nil
}
