package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// nodeInfo is a node with the sum of what runs on it. state's lock guards it.
type nodeInfo struct {
	name        string
	node        *corev1.Node // nil while only its pods are known
	at          int          // position in state.nodes; -1 without node
	allocatable amount
	maxPods     int

	pods                      map[types.UID]*podInfo
	used                      amount
	typicalCPU, typicalMemory int64
	ports                     map[hostPort]int
	perOwner                  map[types.UID]int
}

func newNodeInfo(name string) *nodeInfo {
	return &nodeInfo{name: name, at: -1, pods: map[types.UID]*podInfo{}}
}

func (n *nodeInfo) setNode(node *corev1.Node) {
	n.node = node
	n.allocatable = amountOf(node.Status.Allocatable)
	n.maxPods = int(node.Status.Allocatable.Pods().Value())
}

func (n *nodeInfo) add(p *podInfo) {
	n.pods[p.pod.UID] = p
	n.count(p, 1)
}

func (n *nodeInfo) remove(uid types.UID) {
	if p, ok := n.pods[uid]; ok {
		delete(n.pods, uid)
		n.count(p, -1)
	}
}

func (n *nodeInfo) count(p *podInfo, sign int) {
	n.used.add(p.requests, int64(sign))
	n.typicalCPU += int64(sign) * p.typicalCPU
	n.typicalMemory += int64(sign) * p.typicalMemory
	for _, port := range p.ports {
		if n.ports == nil {
			n.ports = map[hostPort]int{}
		}
		if n.ports[port] += sign; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	if p.owner != "" {
		if n.perOwner == nil {
			n.perOwner = map[types.UID]int{}
		}
		if n.perOwner[p.owner] += sign; n.perOwner[p.owner] == 0 {
			delete(n.perOwner, p.owner)
		}
	}
}

// portTaken reports whether want collides with a port in use: same protocol and
// number, and an address in common.
func (n *nodeInfo) portTaken(want hostPort) bool {
	if len(n.ports) == 0 {
		return false
	}
	if want.ip != anyIP {
		return n.ports[want] > 0 || n.ports[hostPort{anyIP, want.protocol, want.port}] > 0
	}
	for have := range n.ports {
		if have.protocol == want.protocol && have.port == want.port {
			return true
		}
	}
	return false
}
