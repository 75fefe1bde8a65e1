package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Prepare makes the host ready for pods: forwarding, the DNS address, a route
// for service addresses, and the pods of the last run in the ruleset, whose
// table must exist.
func (n *Network) Prepare() error {
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	lo, err := n.host.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := n.host.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	addrs := []netip.Addr{n.cfg.DNSAddr}
	if n.cfg.NodeIP.IsLoopback() {
		addrs = append(addrs, Gateway)
	}
	for _, a := range addrs {
		// Scope host: never chosen as a source address by itself.
		addr := &netlink.Addr{IPNet: host32(a), Label: AddrLabel, Scope: int(netlink.SCOPE_HOST)}
		if err := ignore(n.host.AddrAdd(lo, addr), unix.EEXIST); err != nil {
			return fmt.Errorf("add address %s to lo: %w", a, err)
		}
	}
	// A connection to a service address needs a route before it can be
	// translated, also on a host without a default route.
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(n.cfg.ServiceCIDR),
		Src: HostAddr(n.cfg.NodeIP).AsSlice(), Protocol: RouteProtocol}
	if err := n.host.RouteReplace(route); err != nil {
		if !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("add route for %s: %w", n.cfg.ServiceCIDR, err)
		}
		return fmt.Errorf("add route for %s: the node address %s is not on this host: %w", n.cfg.ServiceCIDR, n.cfg.NodeIP, err)
	}
	n.mu.Lock()
	n.mtu = n.uplinkMTU()
	n.mu.Unlock()
	if err := n.Resync(); err != nil {
		return err
	}
	select {
	case <-n.prepared:
	default:
		close(n.prepared)
	}
	return nil
}

const defaultMTU = 1500

// uplink returns the link that has the node's address.
func (n *Network) uplink() (netlink.Link, error) {
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return n.host.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip == n.cfg.NodeIP {
			return n.host.LinkByIndex(a.LinkIndex)
		}
	}
	return nil, fmt.Errorf("node address %s is on no link", n.cfg.NodeIP)
}

// uplinkMTU is what pods' links get. Packets through the tunnel need room for
// its header; the kernel tells senders (path MTU), so links need not differ.
func (n *Network) uplinkMTU() int {
	l, err := n.uplink()
	if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 {
		return defaultMTU
	}
	return l.Attrs().MTU
}

func (n *Network) linkMTU() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mtu == 0 {
		return defaultMTU
	}
	return n.mtu
}

// Reset removes everything that this package makes on the host: links of pods
// and the tunnel, routes, and the addresses on lo. Kernel parameters stay.
func Reset() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open route netlink: %w", err)
	}
	defer h.Close()
	var errs []error
	links, err := podLinks(h)
	errs = append(errs, err)
	for _, name := range append(links, ruleset.TunnelLink) {
		l, err := h.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err == nil {
			err = h.LinkDel(l)
		}
		if err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
		}
	}
	routes, err := skiffRoutes(h)
	if err != nil {
		errs = append(errs, fmt.Errorf("list routes: %w", err))
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r, err))
		}
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("find lo: %w", err))...)
	}
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return h.AddrList(lo, unix.AF_INET) })
	if err != nil {
		errs = append(errs, fmt.Errorf("list addresses of lo: %w", err))
	}
	for _, a := range addrs {
		if strings.HasPrefix(a.Label, AddrLabel) {
			if err := h.AddrDel(lo, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("remove address %s from lo: %w", a.IP, err))
			}
		}
	}
	return errors.Join(errs...)
}

// skiffRoutes lists the routes that this package has made.
func skiffRoutes(h *netlink.Handle) ([]netlink.Route, error) {
	return netdump.Whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	})
}
