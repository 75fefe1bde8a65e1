package ruleset

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of links, which the rules match.
const (
	PodLinkPrefix = "skiff"       // host ends of pods' veths, and the tunnel
	TunnelLink    = "skiff-vxlan" // to nodes on other links
)

// Params are what the static rules depend on.
type Params struct {
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	DNSAddr     netip.Addr
	// HostAddr is what pods see as the source of connections that the node
	// makes to them or translates for others.
	HostAddr netip.Addr
	// Mark is the packet mark bit between the choice of an endpoint and the
	// masquerading of the same packet; it is cleared there.
	Mark uint32
}

// DefaultMark is the masquerade bit that Kubernetes nodes use by custom.
const DefaultMark = 0x4000

// Chain is one chain with its rules.
type Chain struct {
	Name     string
	Type     nftables.ChainType // empty: no base chain
	Hook     *nftables.ChainHook
	Priority int
	Rules    []Rule
}

// Rule is one rule.
type Rule struct{ Exprs []expr.Any }

func base(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio int, rules ...exprs) Chain {
	c := regular(name, rules...)
	c.Type, c.Hook, c.Priority = typ, hook, prio
	return c
}

func regular(name string, rules ...exprs) Chain {
	c := Chain{Name: name}
	for _, r := range rules {
		c.Rules = append(c.Rules, Rule{Exprs: r})
	}
	return c
}

// Priorities. Refusing comes before translation, where the packet still has
// the address that the client asked for.
const (
	prioGuard  = -300
	prioRefuse = -101
	prioDNAT   = -100
	prioFilter = 0
	prioSNAT   = 100
)

// Chains returns the static part of the table: everything but pickers.
func Chains(p Params) []Chain {
	fromOutside := within(saddr, p.ClusterCIDR, false)
	toService := within(daddr, p.ServiceCIDR, true)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	dns := netip.PrefixFrom(p.DNSAddr, 32)

	return []Chain{
		// Loopback addresses are routable on pod links, so that node ports
		// answer on 127.0.0.1; pods must not reach the host's by it.
		base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioGuard,
			join(ifname(expr.MetaKeyIIFNAME, PodLinkPrefix+"*", true), within(daddr, loopback, true), verdict(expr.VerdictDrop)),
		),
		base("refuse-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioRefuse,
			join(newConnection(), fromOutside, jump("refuse-outside")),
			join(newConnection(), jump("refuse-services")),
		),
		base("refuse-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, prioRefuse,
			join(newConnection(), jump("refuse-services")),
		),
		regular("refuse-outside",
			join(loadKey(false), exprs{inSet(SetDropExternal, regKey)}, verdict(expr.VerdictDrop)),
			join(localDestination(), loadKey(true), exprs{inSet(SetDropExternal, regKey)}, verdict(expr.VerdictDrop)),
		),
		regular("refuse-services",
			join(loadKey(false), exprs{inSet(SetDrop, regKey)}, verdict(expr.VerdictDrop)),
			join(loadKey(false), exprs{inSet(SetReject, regKey)}, goTo("reject")),
			join(localDestination(), loadKey(true), exprs{inSet(SetReject, regKey)}, goTo("reject")),
		),
		regular("reject",
			join(protocol(unix.IPPROTO_TCP), exprs{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}},
		),

		base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, prioDNAT,
			join(fromOutside, jump("external")),
			// Answers to clients that route service addresses to this node
			// must come back through it.
			join(fromOutside, toService, setMark(p.Mark, true)),
			jump("services"),
		),
		base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, prioDNAT,
			jump("services"),
		),
		// The pickers' chains return when a change of the maps came between
		// two of their lookups; the second try sees the new state whole.
		regular("external",
			dispatch(SetExternal, false), dispatch(SetExternal, false),
			join(localDestination(), dispatch(SetExternal, true)),
			join(localDestination(), dispatch(SetExternal, true)),
		),
		regular("services",
			dispatch(SetFrontends, false), dispatch(SetFrontends, false),
			join(localDestination(), jump("nodeports")),
		),
		regular("nodeports",
			dispatch(SetFrontends, true), dispatch(SetFrontends, true),
			join(loadKey(false), exprs{lookup(SetHostPorts, regKey, regDest)}, dnat()),
			join(loadKey(true), exprs{lookup(SetHostPorts, regKey, regDest)}, dnat()),
		),

		base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioSNAT,
			join(marked(p.Mark), jump("masquerade")),
			join(exprs{saddr(regKey), daddr(regKey + 1), inSet(SetHairpin, regKey)}, snat(p.HostAddr)),
			join(within(saddr, loopback, true), ifname(expr.MetaKeyOIFNAME, PodLinkPrefix+"*", true), goTo("masquerade")),
			join(ifname(expr.MetaKeyIIFNAME, PodLinkPrefix+"*", true), ifname(expr.MetaKeyOIFNAME, PodLinkPrefix+"*", false),
				within(daddr, p.ClusterCIDR, false), masquerade()),
		),
		regular("masquerade",
			setMark(p.Mark, false),
			join(ifname(expr.MetaKeyOIFNAME, TunnelLink, true), masquerade()),
			join(ifname(expr.MetaKeyOIFNAME, PodLinkPrefix+"*", true), snat(p.HostAddr)),
			masquerade(),
		),

		// What is still on its way to a service address has no service.
		base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, prioFilter,
			join(newConnection(), toService, goTo("reject")),
		),
		base("filter-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, prioFilter,
			// While skiff restarts nobody listens on the DNS address. A
			// resolver that gets no answer asks again; one that gets an
			// error gives up.
			join(within(saddr, dns, true), protocol(unix.IPPROTO_ICMP),
				exprs{
					&expr.Payload{DestRegister: regTmp, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: regTmp, Data: []byte{3}},
				}, verdict(expr.VerdictDrop)),
			join(within(daddr, dns, true), verdict(expr.VerdictAccept)),
			join(newConnection(), toService, goTo("reject")),
		),
	}
}

// dispatch sends a packet whose key is known to the picker's chain.
func dispatch(set string, nodePort bool) exprs {
	return join(loadKey(nodePort), exprs{
		lookup(set, regKey, regList),
		&expr.Lookup{SetName: SetPickers, SourceRegister: regList + 2, DestRegister: 0, IsDestRegSet: true},
	})
}

// PickerChain returns the chain that chooses one of p.Count endpoints. Count
// must not be zero.
func PickerChain(p Picker, mark uint32) Chain {
	set := SetFrontends
	if p.Opts&OptExternal != 0 {
		set = SetExternal
	}
	key := loadKey(p.Opts&OptNodePort != 0)
	pick := exprs{
		lookup(set, regKey, regList),
		random(regSlot, p.Count),
		lookup(SetEndpoints, regList, regDest),
	}
	finish := dnat()
	if p.Opts&OptMasquerade != 0 {
		finish = join(setMark(mark, true), finish)
	}
	if p.Affinity() == 0 {
		return regular(p.ChainName(), join(key, pick, finish))
	}

	timeout := time.Duration(p.Affinity()) * time.Second
	client := exprs{saddr(regSlot)}
	remembered := join(exprs{lookup(set, regKey, regList)}, client, exprs{
		lookup(set, regKey, regCopy), // the list again, in front of regDest
		lookup(SetAffinity, regList, regDest),
	})
	update := exprs{remember(unix.NFT_DYNSET_OP_UPDATE, regList, regDest, timeout)}
	forget := exprs{remember(dynsetDelete, regList, regDest, timeout)}
	return regular(p.ChainName(),
		join(key, remembered, exprs{inSet(SetMembers, regCopy)}, update, finish),
		join(key, remembered, exprs{notInSet(SetMembers, regCopy)}, forget),
		join(key, pick, client, update, finish),
		join(key, pick, finish), // no room for another client
	)
}

// dynsetDelete is NFT_DYNSET_OP_DELETE, which x/sys lacks.
const dynsetDelete = 2
