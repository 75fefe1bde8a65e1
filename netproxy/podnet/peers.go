package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Peer is another node.
type Peer struct {
	Name    string
	NodeIP  netip.Addr
	PodCIDR netip.Prefix
}

// The tunnel. The port is the one that Linux used before the standard, which
// is what other Kubernetes networks use, too.
const (
	vxlanID       = 4243
	vxlanPort     = 8472
	vxlanOverhead = 50
)

func vtepMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x76, b[0], b[1], b[2], b[3]}
}

// hop is the way to one peer.
type hop struct {
	peer   Peer
	tunnel bool
	link   int // for direct routes
}

// SetPeers makes routes to the pods of the given nodes and removes routes to
// others. Nodes behind a router are reached through the tunnel.
func (n *Network) SetPeers(peers []Peer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known && slices.Equal(peers, n.peers) {
		return nil
	}
	return n.applyPeers(peers)
}

// Reapply does SetPeers again with the same peers, after something else may
// have changed routes or links. Before the first SetPeers it does nothing: the
// routes are those of the process before, and pods use them.
func (n *Network) Reapply() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	return n.applyPeers(n.peers)
}

func (n *Network) applyPeers(peers []Peer) error {
	var hops []hop
	var errs []error
	needTunnel := false
	for _, p := range peers {
		h, err := n.hopTo(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		needTunnel = needTunnel || h.tunnel
		hops = append(hops, h)
	}
	tunnel := 0
	if needTunnel {
		var err error
		if tunnel, err = n.ensureTunnel(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, n.setTunnelPeers(tunnel, hops))
	}
	errs = append(errs, n.setRoutes(tunnel, hops))
	if !needTunnel {
		errs = append(errs, n.removeLink(ruleset.TunnelLink))
	}
	err := errors.Join(errs...)
	if err == nil {
		n.peers, n.known = slices.Clone(peers), true
	}
	return err
}

// hopTo decides how a peer is reached: directly when the kernel's route to it
// has no gateway.
func (n *Network) hopTo(p Peer) (hop, error) {
	routes, err := n.host.RouteGet(p.NodeIP.AsSlice())
	if err != nil || len(routes) == 0 {
		return hop{}, fmt.Errorf("no route to node %s (%s): %w", p.Name, p.NodeIP, err)
	}
	r := routes[0]
	return hop{peer: p, tunnel: r.Gw != nil, link: r.LinkIndex}, nil
}

func (n *Network) ensureTunnel() (int, error) {
	up, err := n.uplink()
	if err != nil {
		return 0, fmt.Errorf("tunnel: %w", err)
	}
	vtep := n.leases.Range.Addr()
	if !n.leases.Range.IsValid() {
		return 0, errors.New("tunnel: this node has no pod range yet")
	}
	if l, err := n.host.LinkByName(ruleset.TunnelLink); err == nil {
		v, ok := l.(*netlink.Vxlan)
		if !ok || !v.SrcAddr.Equal(n.cfg.NodeIP.AsSlice()) || v.VtepDevIndex != up.Attrs().Index || v.VxlanId != vxlanID {
			if err := n.host.LinkDel(l); err != nil {
				return 0, fmt.Errorf("replace tunnel: %w", err)
			}
		}
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.HardwareAddr = ruleset.TunnelLink, up.Attrs().MTU-vxlanOverhead, vtepMAC(n.cfg.NodeIP)
	err = n.host.LinkAdd(&netlink.Vxlan{LinkAttrs: la, VxlanId: vxlanID, VtepDevIndex: up.Attrs().Index,
		SrcAddr: n.cfg.NodeIP.AsSlice(), Port: vxlanPort, Learning: false})
	if err := ignore(err, unix.EEXIST); err != nil {
		return 0, fmt.Errorf("add tunnel: %w", err)
	}
	l, err := n.host.LinkByName(ruleset.TunnelLink)
	if err != nil {
		return 0, fmt.Errorf("find tunnel: %w", err)
	}
	_ = n.host.LinkSetIP6AddrGenMode(l, addrGenNone)
	if err := setSysctl("net/ipv4/conf/"+ruleset.TunnelLink+"/route_localnet", "1"); err != nil {
		return 0, err
	}
	// The source of what this node sends through the tunnel itself.
	if err := ignore(n.host.AddrAdd(l, &netlink.Addr{IPNet: host32(vtep)}), unix.EEXIST); err != nil {
		return 0, fmt.Errorf("add address %s to tunnel: %w", vtep, err)
	}
	if err := n.host.LinkSetUp(l); err != nil {
		return 0, fmt.Errorf("set tunnel up: %w", err)
	}
	return l.Attrs().Index, nil
}

// setTunnelPeers tells the tunnel where its peers are, by tables instead of
// learning.
func (n *Network) setTunnelPeers(index int, hops []hop) error {
	var errs []error
	want := map[string]bool{}
	for _, h := range hops {
		if !h.tunnel {
			continue
		}
		mac := vtepMAC(h.peer.NodeIP)
		want[mac.String()] = true
		errs = append(errs,
			n.host.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
				Flags: netlink.NTF_SELF, IP: h.peer.NodeIP.AsSlice(), HardwareAddr: mac}),
			n.host.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
				IP: h.peer.PodCIDR.Masked().Addr().AsSlice(), HardwareAddr: mac}))
	}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET} {
		have, err := netdump.Whole(func() ([]netlink.Neigh, error) { return n.host.NeighList(index, family) })
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, nb := range have {
			if nb.HardwareAddr == nil || want[nb.HardwareAddr.String()] || nb.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			errs = append(errs, ignore(n.host.NeighDel(&nb), unix.ENOENT))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("peers of the tunnel: %w", err)
	}
	return nil
}

func (n *Network) setRoutes(tunnel int, hops []hop) error {
	var errs []error
	want := map[string]int{} // range -> link
	for _, h := range hops {
		r := &netlink.Route{LinkIndex: h.link, Dst: ipNet(h.peer.PodCIDR.Masked()), Gw: h.peer.NodeIP.AsSlice(), Protocol: RouteProtocol}
		if h.tunnel {
			r.LinkIndex, r.Gw = tunnel, h.peer.PodCIDR.Masked().Addr().AsSlice()
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		want[r.Dst.String()] = r.LinkIndex
		if err := n.host.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("add route to pods of node %s: %w", h.peer.Name, err))
		}
	}
	have, err := skiffRoutes(n.host)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list routes: %w", err))...)
	}
	for _, r := range have {
		if r.Gw == nil || r.Dst == nil { // pods and services
			continue
		}
		if link, ok := want[r.Dst.String()]; !ok || link != r.LinkIndex {
			if err := n.host.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route %s: %w", r, err))
			}
		}
	}
	return errors.Join(errs...)
}
