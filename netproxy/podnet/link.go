package podnet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// LinkName is the name of the host end of a pod's veth.
func LinkName(podUID string) string {
	sum := sha256.Sum256([]byte(podUID))
	return fmt.Sprintf("%s%x", ruleset.PodLinkPrefix, sum[:5])[:14]
}

// hostMAC is the MAC of every host end: pods know it without asking.
var hostMAC = net.HardwareAddr{0x0a, 0x58, 169, 254, 1, 1}

func podMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func host32(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, 32)) }

// connect makes or repairs the pod's link. known says that it may exist.
func (n *Network) connect(uid, netnsPath string, addr netip.Addr, known bool) error {
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", netnsPath, err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netnsPath, err)
	}
	defer pod.Close()

	name := LinkName(uid)
	if known {
		ok, err := n.connected(pod, name)
		if err != nil {
			return err
		}
		if !ok {
			if err := n.removeLink(name); err != nil {
				return err
			}
			known = false
		}
	}
	if !known {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU, la.HardwareAddr = name, n.linkMTU(), hostMAC
		la.NumTxQueues, la.NumRxQueues = 1, 1
		veth := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerHardwareAddr: podMAC(addr), PeerNamespace: netlink.NsFd(int(ns))}
		err := n.host.LinkAdd(veth)
		if errors.Is(err, unix.EEXIST) {
			// Left by a run whose leases are lost.
			if err = n.removeLink(name); err == nil {
				err = n.host.LinkAdd(veth)
			}
		}
		if err != nil {
			return fmt.Errorf("add link %s: %w", name, err)
		}
	}
	if err := n.configurePod(pod, addr); err != nil {
		return err
	}
	return n.configureHost(uid, name, addr)
}

// connected reports whether the two ends are each other's peer.
func (n *Network) connected(pod *netlink.Handle, name string) (bool, error) {
	host, err := n.host.LinkByName(name)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", name, err)
	}
	eth0, err := pod.LinkByName("eth0")
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find eth0 of the pod: %w", err)
	}
	return host.Attrs().ParentIndex == eth0.Attrs().Index && eth0.Attrs().ParentIndex == host.Attrs().Index, nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

func ignore(err error, ok ...error) error {
	for _, o := range ok {
		if errors.Is(err, o) {
			return nil
		}
	}
	return err
}

const addrGenNone = 1 // IN6_ADDR_GEN_MODE_NONE

// configurePod sets up the inside: lo, eth0, its address and routes.
func (n *Network) configurePod(pod *netlink.Handle, addr netip.Addr) error {
	lo := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}} // lo is always 1
	if err := pod.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo of the pod up: %w", err)
	}
	eth0, err := pod.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0 of the pod: %w", err)
	}
	// Without IPv6 addresses there is no duplicate address detection and no
	// router solicitation.
	_ = pod.LinkSetIP6AddrGenMode(eth0, addrGenNone)
	if err := ignore(pod.AddrAdd(eth0, &netlink.Addr{IPNet: host32(addr)}), unix.EEXIST); err != nil {
		return fmt.Errorf("add address %s to eth0 of the pod: %w", addr, err)
	}
	if err := pod.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set eth0 of the pod up: %w", err)
	}
	index := eth0.Attrs().Index
	if err := pod.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: Gateway.AsSlice(), HardwareAddr: hostMAC}); err != nil {
		return fmt.Errorf("set gateway neighbour of the pod: %w", err)
	}
	if err := pod.RouteReplace(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host32(Gateway)}); err != nil {
		return fmt.Errorf("add gateway route of the pod: %w", err)
	}
	if err := pod.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route of the pod: %w", err)
	}
	return nil
}

// configureHost sets up the host end.
func (n *Network) configureHost(uid, name string, addr netip.Addr) error {
	link, err := n.host.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	_ = n.host.LinkSetIP6AddrGenMode(link, addrGenNone)
	if link.Attrs().Alias != "pod "+uid {
		if err := n.host.LinkSetAlias(link, "pod "+uid); err != nil {
			return fmt.Errorf("set alias of link %s: %w", name, err)
		}
	}
	if err := setSysctl("net/ipv4/conf/"+name+"/rp_filter", "1"); err != nil { // no foreign sources
		return err
	}
	if err := setSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"); err != nil { // node ports on 127.0.0.1
		return err
	}
	if err := n.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	index := link.Attrs().Index
	if err := n.host.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: podMAC(addr)}); err != nil {
		return fmt.Errorf("set neighbour of link %s: %w", name, err)
	}
	if err := n.host.RouteReplace(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host32(addr),
		Src: HostAddr(n.cfg.NodeIP).AsSlice(), Protocol: RouteProtocol}); err != nil {
		return fmt.Errorf("add route to %s by link %s: %w", addr, name, err)
	}
	return nil
}

// podLinks returns the names of all host ends of pods.
func podLinks(h *netlink.Handle) ([]string, error) {
	links, err := netdump.Whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []string
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() == "veth" && len(name) == 14 && strings.HasPrefix(name, ruleset.PodLinkPrefix) && name != ruleset.TunnelLink {
			out = append(out, name)
		}
	}
	return out, nil
}

// setSysctl writes a kernel parameter of this network namespace, if it has
// another value.
func setSysctl(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read kernel parameter %s: %w", name, err)
	}
	if string(bytes.TrimSpace(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set kernel parameter %s to %s: %w", name, value, err)
	}
	return nil
}
