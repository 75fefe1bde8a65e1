package netproxy

import (
	"testing"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func generation(t *testing.T) uint32 {
	t.Helper()
	g, err := ruleset.Generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func peerNode(name, ip, cidr string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.NodeSpec{PodCIDR: cidr},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: ip}}}}
}
