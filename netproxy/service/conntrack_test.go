package service

import (
	"net"
	"net/netip"
	"testing"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
)

func TestStaleUDP(t *testing.T) {
	vip, node := netip.MustParseAddr("10.43.0.20"), netip.MustParseAddr("192.168.0.1")
	s := &staleUDP{local: map[netip.Addr]bool{node: true}, targets: map[ruleset.Key]target{
		ruleset.NewKey(vip, 17, 53):             {known: true, endpoints: map[ruleset.Endpoint]bool{ep(1): true}},
		ruleset.NewKey(netip.Addr{}, 17, 30053): {known: true, endpoints: map[ruleset.Endpoint]bool{ep(1): true}},
		ruleset.NewKey(vip, 17, 54):             {},
	}}
	for _, c := range []struct {
		name     string
		proto    uint8
		dst      string
		port     uint16
		from     string
		fromPort uint16
		stale    bool
	}{
		{"current endpoint", 17, "10.43.0.20", 53, "10.42.0.1", 8080, false},
		{"removed endpoint", 17, "10.43.0.20", 53, "10.42.0.2", 8080, true},
		{"other port of the endpoint", 17, "10.43.0.20", 53, "10.42.0.1", 8081, true},
		{"older than the service", 17, "10.43.0.20", 53, "10.43.0.20", 53, true},
		{"TCP", 6, "10.43.0.20", 53, "10.42.0.2", 8080, false},
		{"other service", 17, "10.43.0.21", 53, "10.42.0.2", 8080, false},
		{"node port", 17, "192.168.0.1", 30053, "10.42.0.2", 8080, true},
		{"node port, current", 17, "192.168.0.1", 30053, "10.42.0.1", 8080, false},
		{"another host's port", 17, "192.168.0.9", 30053, "10.42.0.2", 8080, false},
		{"deleted service, translated", 17, "10.43.0.20", 54, "10.42.0.2", 8080, true},
		{"deleted service, not translated", 17, "10.43.0.20", 54, "10.43.0.20", 54, false},
	} {
		f := &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: c.proto, DstIP: net.ParseIP(c.dst), DstPort: c.port},
			Reverse: netlink.IPTuple{Protocol: c.proto, SrcIP: net.ParseIP(c.from), SrcPort: c.fromPort},
		}
		if got := s.MatchConntrackFlow(f); got != c.stale {
			t.Errorf("%s: stale %v", c.name, got)
		}
	}
}
