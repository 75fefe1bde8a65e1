package podspec

import (
	corev1 "k8s.io/api/core/v1"
)

// defaultMode is the mode of files in a volume that names none.
const defaultMode int32 = 0o644

func setVolumeDefaults(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if s := v.HostPath; s != nil {
		orElse(&s.Type, corev1.HostPathUnset)
	}
	if s := v.Secret; s != nil {
		orElse(&s.DefaultMode, defaultMode)
	}
	if s := v.ConfigMap; s != nil {
		orElse(&s.DefaultMode, defaultMode)
	}
	if s := v.DownwardAPI; s != nil {
		orElse(&s.DefaultMode, defaultMode)
		setDownwardDefaults(s.Items)
	}
	if s := v.Projected; s != nil {
		orElse(&s.DefaultMode, defaultMode)
		for i := range s.Sources {
			setProjectionDefaults(&s.Sources[i])
		}
	}
	if s := v.Image; s != nil && s.PullPolicy == "" {
		s.PullPolicy = pullPolicy(s.Reference)
	}
	if s := v.Ephemeral; s != nil && s.VolumeClaimTemplate != nil {
		SetClaimDefaults(&s.VolumeClaimTemplate.Spec)
	}
	setStorageDefaults(v)
}

func setDownwardDefaults(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		setFieldRefDefaults(items[i].FieldRef)
	}
}

func setProjectionDefaults(p *corev1.VolumeProjection) {
	if p.ServiceAccountToken != nil {
		orElse(&p.ServiceAccountToken.ExpirationSeconds, int64(60*60))
	}
	if p.DownwardAPI != nil {
		setDownwardDefaults(p.DownwardAPI.Items)
	}
	if p.PodCertificate != nil {
		orElse(&p.PodCertificate.MaxExpirationSeconds, int32(24*60*60))
	}
}

// setStorageDefaults completes the sources that name network storage.
func setStorageDefaults(v *corev1.Volume) {
	str := func(p *string, value string) {
		if *p == "" {
			*p = value
		}
	}
	if s := v.ISCSI; s != nil {
		str(&s.ISCSIInterface, "default")
	}
	if s := v.RBD; s != nil {
		str(&s.RBDPool, "rbd")
		str(&s.RadosUser, "admin")
		str(&s.Keyring, "/etc/ceph/keyring")
	}
	if s := v.ScaleIO; s != nil {
		str(&s.StorageMode, "ThinProvisioned")
		str(&s.FSType, "xfs")
	}
	if s := v.AzureDisk; s != nil {
		orElse(&s.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		orElse(&s.Kind, corev1.AzureSharedBlobDisk)
		orElse(&s.FSType, "ext4")
		orElse(&s.ReadOnly, false)
	}
}

// SetClaimDefaults fills what a PersistentVolumeClaim, or a template of one,
// leaves open.
func SetClaimDefaults(c *corev1.PersistentVolumeClaimSpec) {
	orElse(&c.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundQuantities(c.Resources.Limits)
	roundQuantities(c.Resources.Requests)
}
