package netproxy

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/skiff-sh/skiff/netproxy/podnet"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// nodeView is what the Node objects say.
type nodeView struct {
	podCIDR netip.Prefix // of this node; not valid while unknown
	zone    string
	peers   []podnet.Peer
}

// viewNodes reads the Node objects. Nodes without a range or an IPv4 address
// are no peers yet.
func viewNodes(nodes []*v1.Node, self string) (v nodeView) {
	for _, n := range nodes {
		cidr, err := netip.ParsePrefix(n.Spec.PodCIDR)
		known := err == nil && cidr.Addr().Is4()
		if n.Name == self {
			v.zone = n.Labels[v1.LabelTopologyZone]
			if known {
				v.podCIDR = cidr.Masked()
			}
			continue
		}
		if ip, ok := internalIP(n); ok && known {
			v.peers = append(v.peers, podnet.Peer{Name: n.Name, NodeIP: ip, PodCIDR: cidr.Masked()})
		}
	}
	slices.SortFunc(v.peers, func(a, b podnet.Peer) int { return cmp.Compare(a.Name, b.Name) })
	return v
}

func internalIP(n *v1.Node) (netip.Addr, bool) {
	for _, a := range n.Status.Addresses {
		if a.Type == v1.NodeInternalIP {
			if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Is4() {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

// runNodes applies what the Node objects say, each time they change.
func (p *Proxy) runNodes(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	poke := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	reg, err := p.caches.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke})
	if err != nil {
		return err
	}
	defer func() { _ = p.caches.nodes.RemoveEventHandler(reg) }()
	if !cache.WaitForCacheSync(ctx.Done(), p.caches.nodes.HasSynced) {
		return ctx.Err()
	}
	for delay := time.Second; ; {
		var retry <-chan time.Time
		if err := p.applyNodes(); err != nil {
			p.cfg.Logger.Error("routes to other nodes are not complete", "error", err, "retryAfter", delay)
			retry = time.After(delay)
			delay = min(2*delay, time.Minute)
		} else {
			delay = time.Second
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry:
		case <-wake:
		}
	}
}

func (p *Proxy) applyNodes() error {
	objs := p.caches.nodes.GetStore().List()
	nodes := make([]*v1.Node, len(objs))
	for i, o := range objs {
		nodes[i] = o.(*v1.Node)
	}
	v := viewNodes(nodes, p.cfg.NodeName)
	p.services.SetZone(v.zone)
	if v.podCIDR.IsValid() {
		if err := p.network.SetPodCIDR(v.podCIDR); err != nil {
			return err
		}
	}
	return p.network.SetPeers(v.peers)
}
