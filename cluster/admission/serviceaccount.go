package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/utils/ptr"
)

const (
	tokenMountPath     = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenVolumePrefix  = "kube-api-access-"
	tokenVolumeSeconds = 3607 // upstream's value: an odd one, so that it is recognised
	rootCAConfigMap    = "kube-root-ca.crt"

	// A new namespace gets its default account a moment after it appears;
	// pods created in between wait this long for it.
	accountWait = time.Second
)

// serviceAccount gives every pod an account, the account's pull secrets and,
// unless refused, a volume with its token.
type serviceAccount struct {
	*admission.Handler
	objects Objects
}

// Admit implements admission.MutationInterface.
func (s *serviceAccount) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, err := newPod(a)
	if pod == nil || err != nil || mirrorPod(pod) {
		return err
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	sa, err := s.account(ctx, a.GetNamespace(), pod.Spec.ServiceAccountName)
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("serviceaccount %q not found", pod.Spec.ServiceAccountName)
	}
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if wantsToken(sa, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = slices.Clone(sa.ImagePullSecrets)
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (s *serviceAccount) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() == podsResource && a.GetSubresource() == "ephemeralcontainers" {
		pod, err := as[*corev1.Pod](a.GetObject())
		if err != nil {
			return err
		}
		return s.limitSecrets(ctx, a, pod, true)
	}
	pod, err := newPod(a)
	switch {
	case pod == nil || err != nil:
		return err
	case !mirrorPod(pod):
		return s.limitSecrets(ctx, a, pod, false)
	case pod.Spec.ServiceAccountName != "":
		return admission.NewForbidden(a, errors.New("a mirror pod may not reference service accounts"))
	}
	return nil
}

func (s *serviceAccount) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	sa, err := s.objects.ServiceAccount(ctx, namespace, name)
	if !apierrors.IsNotFound(err) || name != "default" {
		return sa, err
	}
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for apierrors.IsNotFound(err) {
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
			sa, err = s.objects.ServiceAccount(context.WithoutCancel(ctx), namespace, name)
		}
	}
	return sa, err
}

func wantsToken(sa *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if v := pod.Spec.AutomountServiceAccountToken; v != nil {
		return *v
	}
	return sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken
}

// mountToken adds the projected volume once and mounts it in each container
// that has nothing at that path.
func mountToken(pod *corev1.Pod) {
	volume := ""
	for _, v := range pod.Spec.Volumes {
		if len(v.Name) > len(tokenVolumePrefix) && v.Name[:len(tokenVolumePrefix)] == tokenVolumePrefix {
			volume = v.Name
		}
	}
	add := volume == ""
	if add {
		volume = names.SimpleNameGenerator.GenerateName(tokenVolumePrefix)
	}
	mounted := false
	mount := func(list []corev1.Container) {
		for i := range list {
			c := &list[i]
			if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenMountPath }) {
				continue
			}
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: tokenMountPath})
			mounted = true
		}
	}
	mount(pod.Spec.InitContainers)
	mount(pod.Spec.Containers)
	if !add || !mounted {
		return
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: ptr.To(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](tokenVolumeSeconds)}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
				Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
		}}}})
}
