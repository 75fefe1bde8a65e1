package dev

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/netproxy/netdump"
)

// The bridge is in the network namespace of a node of this name that is none.
const switchNode = "switch"

const (
	bridgeName = "br0"
	hostPort   = "host" // the bridge's port to this machine
	prefixBits = 24
	firstHost  = 10 // node number n has the address firstHost+n
	maxNodes   = 200
)

// chooseSubnet gives a range of 10.190.0.0/16 that no link or route of this
// machine has; the same one for the same folder, where that is free.
func (p place) chooseSubnet() (netip.Prefix, error) {
	used, err := usedRanges()
	if err != nil {
		return netip.Prefix{}, err
	}
	h := fnv.New32a()
	h.Write([]byte(p.dir))
	for i := range 256 {
		s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 190, byte(h.Sum32() + uint32(i)), 0}), prefixBits)
		if err := free(s, used); err == nil {
			return s, nil
		}
	}
	return netip.Prefix{}, errors.New("10.190.0.0/16 is in use on this machine: choose a range with --subnet")
}

func free(s netip.Prefix, used []netip.Prefix) error {
	for _, u := range used {
		if u.Overlaps(s) {
			return fmt.Errorf("%s is in use on this machine (%s)", s, u)
		}
	}
	return nil
}

// usedRanges lists what links and routes have, the default route left out.
func usedRanges() ([]netip.Prefix, error) {
	var out []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		a, ok := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if ok && a.Unmap().Is4() && ones > 0 {
			out = append(out, netip.PrefixFrom(a.Unmap(), ones).Masked())
		}
	}
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	routes, err := netdump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	return out, nil
}

func hostAddr(s netip.Prefix, n int) netip.Addr {
	b := s.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(prefixBits, 32)}
}

// makeSwitch makes the bridge in its namespace and this machine's link to it.
func (p place) makeSwitch(subnet netip.Prefix) error {
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make the network namespace of the bridge: %w", err)
		}
		return p.keepThread(switchNode, "net")
	})
	if err != nil {
		return err
	}
	err = p.inNet(switchNode, func(h *netlink.Handle) error {
		// Frames pass at once: there is no loop that spanning trees would find.
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := h.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make the bridge: %w", err)
		}
		return h.LinkSetUp(bridge)
	})
	if err != nil {
		return err
	}
	if err := p.plug(hostPort, -1, p.uplink()); err != nil {
		return err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return bringUp(h, p.uplink(), hostAddr(subnet, 1))
}

// keepThread pins a namespace of the calling thread.
func (p place) keepThread(node, namespace string) error {
	return p.keep("/proc/thread-self/ns/"+namespace, node, namespace)
}

// inNet gives fn a handle on the links of a node. fn must not start processes.
func (p place) inNet(node string, fn func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(p.pin(node, "net"))
	if err != nil {
		return fmt.Errorf("network of %s: %w", node, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("network of %s: %w", node, err)
	}
	defer h.Close()
	return fn(h)
}

// plug makes a veth pair: one end is a port of the bridge, the other is the
// link named inside in the namespace ns, or in that of this process (ns -1).
func (p place) plug(port string, ns int, inside string) error {
	return p.inNet(switchNode, func(h *netlink.Handle) error {
		if ns < 0 {
			own, err := netns.Get()
			if err != nil {
				return err
			}
			defer own.Close()
			ns = int(own)
		}
		bridge, err := h.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find the bridge: %w", err)
		}
		// What is left of a node that was cut off from its power.
		if old, err := h.LinkByName(port); err == nil {
			if err := h.LinkDel(old); err != nil {
				return fmt.Errorf("remove the old link %s: %w", port, err)
			}
		}
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index}, PeerName: inside, PeerNamespace: netlink.NsFd(ns)}
		if err := h.LinkAdd(pair); err != nil {
			return fmt.Errorf("make the link %s: %w", inside, err)
		}
		return h.LinkSetUp(pair)
	})
}

func bringUp(h *netlink.Handle, name string, addr netip.Addr) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if addr.IsValid() {
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr)}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// connect gives a node its link, address and default route.
func (p place) connect(n nodeState, subnet netip.Prefix) error {
	ns, err := netns.GetFromPath(p.pin(n.Name, "net"))
	if err != nil {
		return fmt.Errorf("network of %s: %w", n.Name, err)
	}
	defer ns.Close()
	if err := p.plug(port(n.Index), int(ns), "eth0"); err != nil {
		return err
	}
	return p.inNet(n.Name, func(h *netlink.Handle) error {
		if err := bringUp(h, "lo", netip.Addr{}); err != nil {
			return err
		}
		if err := bringUp(h, "eth0", n.Addr); err != nil {
			return err
		}
		if err := h.RouteAdd(&netlink.Route{Gw: hostAddr(subnet, 1).AsSlice()}); err != nil {
			return fmt.Errorf("default route of %s: %w", n.Name, err)
		}
		return nil
	})
}

// unplug takes a node's link away, as when its power is cut.
func (p place) unplug(n nodeState) error {
	if !p.kept(switchNode, "net") {
		return nil
	}
	return p.inNet(switchNode, func(h *netlink.Handle) error {
		l, err := h.LinkByName(port(n.Index))
		if err != nil {
			return nil // it is gone
		}
		return h.LinkDel(l)
	})
}

// removeUplink removes this machine's link to the bridge.
func (p place) removeUplink() error {
	l, err := netlink.LinkByName(p.uplink())
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("find link %s: %w", p.uplink(), err)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", p.uplink(), err)
	}
	return nil
}
