package podspec

import (
	"path"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// networkSources are the volume sources that need a driver. They are checked
// for what each cannot do without; a node without the driver says so in an
// event.
func networkSources(s *corev1.VolumeSource) []source {
	// needs makes a source whose named fields must not be empty.
	needs := func(name string, set bool, fields func() [][2]string) source {
		return source{name, set, func(fld *field.Path) field.ErrorList {
			var errs field.ErrorList
			for _, f := range fields() {
				errs = append(errs, required(fld, f[0], f[1])...)
			}
			return errs
		}}
	}
	list := func(values []string) string { // only whether there is one matters
		if len(values) == 0 {
			return ""
		}
		return values[0]
	}
	return []source{
		needs("gcePersistentDisk", s.GCEPersistentDisk != nil, func() [][2]string { return [][2]string{{"pdName", s.GCEPersistentDisk.PDName}} }),
		needs("awsElasticBlockStore", s.AWSElasticBlockStore != nil, func() [][2]string { return [][2]string{{"volumeID", s.AWSElasticBlockStore.VolumeID}} }),
		{"nfs", s.NFS != nil, func(fld *field.Path) field.ErrorList { return validateNFS(s.NFS, fld) }},
		needs("iscsi", s.ISCSI != nil, func() [][2]string {
			return [][2]string{{"targetPortal", s.ISCSI.TargetPortal}, {"iqn", s.ISCSI.IQN}}
		}),
		needs("glusterfs", s.Glusterfs != nil, func() [][2]string {
			return [][2]string{{"endpoints", s.Glusterfs.EndpointsName}, {"path", s.Glusterfs.Path}}
		}),
		needs("flocker", s.Flocker != nil, func() [][2]string {
			return [][2]string{{"datasetName", s.Flocker.DatasetName + s.Flocker.DatasetUUID}}
		}),
		needs("rbd", s.RBD != nil, func() [][2]string {
			return [][2]string{{"monitors", list(s.RBD.CephMonitors)}, {"image", s.RBD.RBDImage}}
		}),
		needs("cinder", s.Cinder != nil, func() [][2]string { return [][2]string{{"volumeID", s.Cinder.VolumeID}} }),
		needs("cephfs", s.CephFS != nil, func() [][2]string { return [][2]string{{"monitors", list(s.CephFS.Monitors)}} }),
		needs("quobyte", s.Quobyte != nil, func() [][2]string {
			return [][2]string{{"registry", s.Quobyte.Registry}, {"volume", s.Quobyte.Volume}}
		}),
		needs("fc", s.FC != nil, func() [][2]string { return [][2]string{{"targetWWNs", list(append(s.FC.TargetWWNs, s.FC.WWIDs...))}} }),
		needs("flexVolume", s.FlexVolume != nil, func() [][2]string { return [][2]string{{"driver", s.FlexVolume.Driver}} }),
		needs("azureFile", s.AzureFile != nil, func() [][2]string {
			return [][2]string{{"secretName", s.AzureFile.SecretName}, {"shareName", s.AzureFile.ShareName}}
		}),
		needs("vsphereVolume", s.VsphereVolume != nil, func() [][2]string { return [][2]string{{"volumePath", s.VsphereVolume.VolumePath}} }),
		needs("photonPersistentDisk", s.PhotonPersistentDisk != nil, func() [][2]string { return [][2]string{{"pdID", s.PhotonPersistentDisk.PdID}} }),
		needs("portworxVolume", s.PortworxVolume != nil, func() [][2]string { return [][2]string{{"volumeID", s.PortworxVolume.VolumeID}} }),
		needs("azureDisk", s.AzureDisk != nil, func() [][2]string {
			return [][2]string{{"diskName", s.AzureDisk.DiskName}, {"diskURI", s.AzureDisk.DataDiskURI}}
		}),
		needs("storageos", s.StorageOS != nil, func() [][2]string { return [][2]string{{"volumeName", s.StorageOS.VolumeName}} }),
		needs("scaleIO", s.ScaleIO != nil, func() [][2]string {
			return [][2]string{{"gateway", s.ScaleIO.Gateway}, {"system", s.ScaleIO.System}, {"volumeName", s.ScaleIO.VolumeName}}
		}),
		{"csi", s.CSI != nil, func(fld *field.Path) field.ErrorList {
			if s.CSI.Driver == "" {
				return field.ErrorList{field.Required(fld.Child("driver"), "")}
			}
			return eachMessage(validation.IsDNS1123Subdomain(s.CSI.Driver), s.CSI.Driver, fld.Child("driver"))
		}},
	}
}

func validateNFS(s *corev1.NFSVolumeSource, fld *field.Path) field.ErrorList {
	errs := required(fld, "server", s.Server)
	errs = append(errs, required(fld, "path", s.Path)...)
	if !path.IsAbs(s.Path) {
		errs = append(errs, field.Invalid(fld.Child("path"), s.Path, "must be an absolute path"))
	}
	return errs
}

// ValidateClaimSpec checks the spec of a PersistentVolumeClaim or of a template
// of one.
func ValidateClaimSpec(c *corev1.PersistentVolumeClaimSpec, fld *field.Path) field.ErrorList {
	var errs field.ErrorList
	modes := fld.Child("accessModes")
	if len(c.AccessModes) == 0 {
		errs = append(errs, field.Required(modes, "at least 1 access mode is required"))
	}
	known := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	seen := sets.New(c.AccessModes...)
	for _, mode := range c.AccessModes {
		if !sets.New(known...).Has(mode) {
			errs = append(errs, field.NotSupported(modes, mode, known))
		}
	}
	if seen.Has(corev1.ReadWriteOncePod) && seen.Len() > 1 {
		errs = append(errs, field.Forbidden(modes, "may not use ReadWriteOncePod with other access modes"))
	}
	size := fld.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := c.Resources.Requests[corev1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(size, ""))
	} else {
		errs = append(errs, validateQuantity(corev1.ResourceStorage, q, size)...)
		if q.Sign() <= 0 {
			errs = append(errs, field.Invalid(size, q.String(), positive))
		}
	}
	if name := c.StorageClassName; name != nil && *name != "" {
		errs = append(errs, eachMessage(apivalidation.NameIsDNSSubdomain(*name, false), *name, fld.Child("storageClassName"))...)
	}
	if m := c.VolumeMode; m != nil {
		errs = append(errs, oneOf(*m, fld.Child("volumeMode"), corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	return errs
}
