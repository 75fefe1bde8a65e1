package static

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// refused names the fields that refer to objects of the API. A node runs its
// static pods without asking anybody, so it must not hand out what only the
// API's users may have; and what can't be read without a server would keep the
// pod from starting.
func refused(p *v1.Pod) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	no := func(bad bool, path *field.Path, what string) {
		if bad {
			errs = append(errs, field.Forbidden(path, "static pods may not reference "+what))
		}
	}
	s := &p.Spec
	no(s.ServiceAccountName != "", spec.Child("serviceAccountName"), "serviceaccounts")
	no(s.DeprecatedServiceAccount != "" && s.ServiceAccountName == "", spec.Child("serviceAccount"), "serviceaccounts")
	no(len(s.ImagePullSecrets) > 0, spec.Child("imagePullSecrets"), "secrets")
	no(len(s.ResourceClaims) > 0, spec.Child("resourceClaims"), "resourceclaims")
	if len(s.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("ephemeralContainers"), "static pods do not support ephemeral containers"))
	}
	if len(s.SchedulingGates) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("schedulingGates"), "static pods are not scheduled"))
	}
	for i := range s.InitContainers {
		errs = append(errs, refusedEnv(&s.InitContainers[i], spec.Child("initContainers").Index(i))...)
	}
	for i := range s.Containers {
		errs = append(errs, refusedEnv(&s.Containers[i], spec.Child("containers").Index(i))...)
	}
	for i := range s.Volumes {
		v, path := &s.Volumes[i], spec.Child("volumes").Index(i)
		no(v.Secret != nil, path.Child("secret"), "secrets")
		no(v.ConfigMap != nil, path.Child("configMap"), "configmaps")
		no(v.PersistentVolumeClaim != nil, path.Child("persistentVolumeClaim"), "persistentvolumeclaims")
		no(v.Ephemeral != nil, path.Child("ephemeral"), "persistentvolumeclaims")
		no(v.CSI != nil && v.CSI.NodePublishSecretRef != nil, path.Child("csi", "nodePublishSecretRef"), "secrets")
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			src, path := &v.Projected.Sources[j], path.Child("projected", "sources").Index(j)
			no(src.Secret != nil, path.Child("secret"), "secrets")
			no(src.ConfigMap != nil, path.Child("configMap"), "configmaps")
			no(src.ServiceAccountToken != nil, path.Child("serviceAccountToken"), "serviceaccounts")
			no(src.ClusterTrustBundle != nil, path.Child("clusterTrustBundle"), "clustertrustbundles")
			no(src.PodCertificate != nil, path.Child("podCertificate"), "podcertificates")
		}
	}
	return errs
}

func refusedEnv(c *v1.Container, path *field.Path) (errs field.ErrorList) {
	no := func(bad bool, path *field.Path, what string) {
		if bad {
			errs = append(errs, field.Forbidden(path, "static pods may not reference "+what))
		}
	}
	for i, e := range c.EnvFrom {
		no(e.SecretRef != nil, path.Child("envFrom").Index(i).Child("secretRef"), "secrets")
		no(e.ConfigMapRef != nil, path.Child("envFrom").Index(i).Child("configMapRef"), "configmaps")
	}
	for i, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		from := path.Child("env").Index(i).Child("valueFrom")
		no(e.ValueFrom.SecretKeyRef != nil, from.Child("secretKeyRef"), "secrets")
		no(e.ValueFrom.ConfigMapKeyRef != nil, from.Child("configMapKeyRef"), "configmaps")
	}
	return errs
}
