package podnet

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// PortMapping publishes one port of a pod on the node (containers[].ports with
// a hostPort).
type PortMapping struct {
	HostIP        netip.Addr  `json:"hostIP"` // zero or 0.0.0.0: every address of the node
	HostPort      uint16      `json:"hostPort"`
	ContainerPort uint16      `json:"containerPort"`
	Protocol      v1.Protocol `json:"protocol"` // default TCP
}

// HostPorter is what a pod network offers beside attaching, when it can
// publish host ports. HostPorts replaces the set of a pod that is attached;
// Detach removes it. A port that another pod holds is an error.
type HostPorter interface {
	HostPorts(ctx context.Context, podUID string, ports []PortMapping) error
}

var _ HostPorter = (*Network)(nil)

func (p PortMapping) protocol() v1.Protocol { return cmp.Or(p.Protocol, v1.ProtocolTCP) }

func (p PortMapping) validate() error {
	switch {
	case p.HostPort == 0 || p.ContainerPort == 0:
		return fmt.Errorf("hostPort %d to containerPort %d: must not be 0", p.HostPort, p.ContainerPort)
	case p.HostIP.IsValid() && !p.HostIP.Is4():
		return fmt.Errorf("hostIP %s: not IPv4", p.HostIP)
	}
	switch p.protocol() {
	case v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP:
		return nil
	}
	return fmt.Errorf("hostPort %d: protocol %s", p.HostPort, p.Protocol)
}

func (p PortMapping) key() ruleset.Key {
	proto := uint8(unix.IPPROTO_TCP)
	switch p.protocol() {
	case v1.ProtocolUDP:
		proto = unix.IPPROTO_UDP
	case v1.ProtocolSCTP:
		proto = unix.IPPROTO_SCTP
	}
	return ruleset.NewKey(p.HostIP, proto, p.HostPort) // 0.0.0.0 is the zero address
}
