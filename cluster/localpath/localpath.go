// Package localpath has what the parts that deal with local-path volumes agree
// on: folders of nodes that are made for claims. The node's side has the same
// names in package node/volume.
package localpath

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

const (
	// Provisioner is the provisioner of storage classes whose volumes are folders
	// on the node of the first pod that uses them.
	Provisioner = "skiff.sh/local-path"
	// RootAnnotation tells on a Node where its volumes are, CapacityAnnotation
	// how many bytes its disk has.
	RootAnnotation     = "skiff.sh/local-path"
	CapacityAnnotation = "skiff.sh/local-path-capacity"
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
