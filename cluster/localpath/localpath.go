// Package localpath has what the parts that deal with local-path volumes agree
// on: folders of nodes that are made for claims. The node's side has the same
// names in package node/volume.
package localpath

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"
)

const (
	// Provisioner is the provisioner of storage classes whose volumes are folders
	// on the node of the first pod that uses them.
	Provisioner = "skiff.sh/local-path"
	// RootAnnotation tells on a Node where its volumes are, CapacityAnnotation
	// how many bytes its disk has.
	RootAnnotation     = "skiff.sh/local-path"
	CapacityAnnotation = "skiff.sh/local-path-capacity"
	// NodeAnnotation tells on a PersistentVolume the node that has its folder.
	NodeAnnotation = "skiff.sh/node"
	// ClassName is the storage class that every cluster starts with.
	ClassName = "local-path"
	// Finalizer keeps a volume that is deleted until its folder is, too.
	Finalizer = "skiff.sh/local-path"
)

// Offer is what a node has for local-path volumes: the folder that they are
// made in, "" if it has none, and the bytes of the disk, 0 if unknown.
func Offer(node *corev1.Node) (root string, capacity int64) {
	capacity, err := strconv.ParseInt(node.Annotations[CapacityAnnotation], 10, 64)
	if err != nil || capacity < 0 {
		capacity = 0
	}
	return node.Annotations[RootAnnotation], capacity
}

// Hostname is the label by which volumes are kept to their node.
func Hostname(node *corev1.Node) string {
	if h := node.Labels[corev1.LabelHostname]; h != "" {
		return h
	}
	return node.Name
}

// Unfit tells why a node cannot have the volume of a claim; "" if it can.
func Unfit(node *corev1.Node, claim *corev1.PersistentVolumeClaim) string {
	root, capacity := Offer(node)
	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case root == "":
		return fmt.Sprintf("the node offers no folder for local-path volumes (annotation %s)", RootAnnotation)
	case capacity > 0 && want.CmpInt64(capacity) > 0:
		return fmt.Sprintf("the disk has %d bytes, the claim asks for %d", capacity, want.Value())
	}
	return ""
}

// Refuse tells what of a claim and its class no node can do; "" for nothing.
func Refuse(class *storagev1.StorageClass, claim *corev1.PersistentVolumeClaim) string {
	s := &claim.Spec
	for _, c := range []struct {
		bad  bool
		text string
	}{
		{ptr.Deref(class.VolumeBindingMode, "") != storagev1.VolumeBindingWaitForFirstConsumer,
			"volumeBindingMode of the class must be WaitForFirstConsumer"},
		{len(class.Parameters) > 0, "parameters of the class: there are none"},
		{len(class.MountOptions) > 0, "mountOptions of the class: the volume is a folder and cannot have any"},
		{ptr.Deref(s.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem, "spec.volumeMode must be Filesystem"},
		{slices.ContainsFunc(s.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
			return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
		}), "spec.accessModes: a volume on one node can only be ReadWriteOnce or ReadWriteOncePod"},
		{s.Selector != nil, "spec.selector: volumes that are made for a claim cannot be selected"},
		{s.DataSource != nil || s.DataSourceRef != nil, "spec.dataSource: new volumes are empty"},
		{ptr.Deref(s.VolumeAttributesClassName, "") != "", "spec.volumeAttributesClassName: there are no attributes"},
	} {
		if c.bad {
			return c.text
		}
	}
	return ""
}
