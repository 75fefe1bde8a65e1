package service

import (
	"fmt"
	"net/netip"

	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// target is where UDP packets to a key should go now.
type target struct {
	known     bool // a service has this key
	endpoints map[ruleset.Endpoint]bool
}

// staleUDP matches connection tracking entries that keep UDP clients on what a
// service no longer is. UDP has no end of connection, so a client that keeps
// sending would stay on a removed endpoint for ever. (TCP entries are left: the
// connections of an endpoint that terminates go on until it closes them.)
type staleUDP struct {
	targets map[ruleset.Key]target
	local   map[netip.Addr]bool // this node's addresses, for node ports
}

// MatchConntrackFlow reports whether the entry must go.
func (s *staleUDP) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(f.Forward.DstIP.To4())
	src, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	if !ok1 || !ok2 {
		return false
	}
	t, ok := s.targets[ruleset.NewKey(dst, unix.IPPROTO_UDP, f.Forward.DstPort)]
	if !ok && s.local[dst] {
		t, ok = s.targets[ruleset.NewKey(netip.Addr{}, unix.IPPROTO_UDP, f.Forward.DstPort)]
	}
	if !ok {
		return false
	}
	if !t.known { // the service is gone: only what was translated
		return src != dst || f.Reverse.SrcPort != f.Forward.DstPort
	}
	return !t.endpoints[ruleset.Endpoint{Addr: src.As4(), Port: f.Reverse.SrcPort}]
}

// purgeUDP deletes stale entries of the given keys.
func purgeUDP(targets map[ruleset.Key]target) (uint, error) {
	s := &staleUDP{targets: targets, local: map[netip.Addr]bool{}}
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return 0, fmt.Errorf("list addresses of this node: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			s.local[ip] = true
		}
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, s)
	if err != nil {
		return n, fmt.Errorf("delete UDP connection tracking entries: %w", err)
	}
	return n, nil
}
