package podnet

import (
	"context"
	"net/netip"

	v1 "k8s.io/api/core/v1"
)

// PortMapping publishes one port of a pod on the node (containers[].ports with
// a hostPort).
type PortMapping struct {
	HostIP        netip.Addr // zero or 0.0.0.0: every address of the node
	HostPort      uint16
	ContainerPort uint16
	Protocol      v1.Protocol // default TCP
}

// HostPorter is what a pod network offers beside attaching, when it can
// publish host ports. HostPorts replaces the set of a pod that is attached;
// Detach removes it. A port that another pod holds is an error.
type HostPorter interface {
	HostPorts(ctx context.Context, podUID string, ports []PortMapping) error
}
