package admission

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// enforceMountable is the annotation of an account whose pods may use only those
// secrets that the account lists. It is deprecated. As on Kubernetes it says
// nothing of secrets in projected volumes and in volumes of other kinds.
const enforceMountable = "kubernetes.io/enforce-mountable-secrets"

// limitSecrets refuses a pod with secrets that its account does not list, if the
// account asks for that. Of one that gets ephemeral containers it looks at those.
func (s *serviceAccount) limitSecrets(ctx context.Context, a admission.Attributes, pod *corev1.Pod, ephemeral bool) error {
	if pod.Spec.ServiceAccountName == "" {
		return nil // it shows what a node runs from a file
	}
	sa, err := s.account(ctx, a.GetNamespace(), pod.Spec.ServiceAccountName)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if on, err := strconv.ParseBool(sa.Annotations[enforceMountable]); err != nil || !on {
		return nil
	}
	if ephemeral {
		for i := range pod.Spec.EphemeralContainers {
			c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			if err := limitContainer(sa, "ephemeral container", &c); err != nil {
				return admission.NewForbidden(a, err)
			}
		}
		return nil
	}
	if err := limitPod(sa, &pod.Spec); err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

func limitPod(sa *corev1.ServiceAccount, spec *corev1.PodSpec) error {
	for i := range spec.Volumes {
		if v := spec.Volumes[i].Secret; v != nil && !lists(sa, v.SecretName) {
			return fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", v.SecretName, sa.Name)
		}
	}
	for i := range spec.InitContainers {
		if err := limitContainer(sa, "init container", &spec.InitContainers[i]); err != nil {
			return err
		}
	}
	for i := range spec.Containers {
		if err := limitContainer(sa, "container", &spec.Containers[i]); err != nil {
			return err
		}
	}
	for i, ref := range spec.ImagePullSecrets {
		if !slices.Contains(sa.ImagePullSecrets, ref) {
			return fmt.Errorf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, ref.Name, sa.Name)
		}
	}
	return nil
}

func limitContainer(sa *corev1.ServiceAccount, kind string, c *corev1.Container) error {
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !lists(sa, e.ValueFrom.SecretKeyRef.Name) {
			return fmt.Errorf("%s %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				kind, c.Name, e.Name, e.ValueFrom.SecretKeyRef.Name, sa.Name)
		}
	}
	for _, e := range c.EnvFrom {
		if e.SecretRef != nil && !lists(sa, e.SecretRef.Name) {
			return fmt.Errorf("%s %s with envFrom referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				kind, c.Name, e.SecretRef.Name, sa.Name)
		}
	}
	return nil
}

// lists tells whether an account lists a secret for its pods.
func lists(sa *corev1.ServiceAccount, secret string) bool {
	return slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == secret })
}
