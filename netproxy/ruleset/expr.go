package ruleset

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers are the sixteen 32-bit registers of nftables (NFT_REG32_00 is 8).
// The rules use them the same way everywhere.
const (
	regKey   = 8       // three words: address, protocol, port
	regList  = 8 + 3   // four words: list (two), count, options
	regSlot  = 8 + 5   // the slot goes where the count was
	regDest  = 8 + 8   // address, port: follows regMember's list
	regCopy  = 8 + 6   // two words: a list in front of regDest, for member lookups
	regTmp   = 8 + 12  // scratch
	regMasqA = regDest // source address for SNAT
)

type exprs = []expr.Any

func join(parts ...exprs) exprs {
	var out exprs
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func saddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func daddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

// loadKey loads the packet's Key.
func loadKey(nodePort bool) exprs {
	first := daddr(regKey)
	if nodePort {
		first = &expr.Immediate{Register: regKey, Data: make([]byte, 4)}
	}
	return exprs{
		first,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey + 1},
		&expr.Payload{DestRegister: regKey + 2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func lookup(set string, src, dst uint32) expr.Any {
	return &expr.Lookup{SetName: set, SourceRegister: src, DestRegister: dst, IsDestRegSet: true}
}

func inSet(set string, src uint32) expr.Any {
	return &expr.Lookup{SetName: set, SourceRegister: src}
}

func notInSet(set string, src uint32) expr.Any {
	return &expr.Lookup{SetName: set, SourceRegister: src, Invert: true}
}

// within matches an address in p, or outside of it.
func within(load func(uint32) expr.Any, p netip.Prefix, inside bool) exprs {
	op := expr.CmpOpEq
	if !inside {
		op = expr.CmpOpNeq
	}
	a := p.Masked().Addr().As4()
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return exprs{
		load(regTmp),
		&expr.Bitwise{SourceRegister: regTmp, DestRegister: regTmp, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: regTmp, Data: a[:]},
	}
}

func localDestination() exprs {
	return exprs{
		&expr.Fib{Register: regTmp, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regTmp, Data: word(unix.RTN_LOCAL)},
	}
}

// ifname matches an interface name; a trailing star matches a prefix.
func ifname(key expr.MetaKey, name string, match bool) exprs {
	op := expr.CmpOpEq
	if !match {
		op = expr.CmpOpNeq
	}
	var data []byte
	if n := len(name); name[n-1] == '*' {
		data = []byte(name[:n-1])
	} else {
		data = make([]byte, unix.IFNAMSIZ)
		copy(data, name)
	}
	return exprs{
		&expr.Meta{Key: key, Register: 1}, // sixteen bytes: the first 128-bit register
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

func newConnection() exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: regTmp},
		&expr.Bitwise{SourceRegister: regTmp, DestRegister: regTmp, Len: 4, Mask: word(expr.CtStateBitNEW), Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regTmp, Data: word(0)},
	}
}

func protocol(p byte) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regTmp},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regTmp, Data: []byte{p}},
	}
}

// setMark sets or clears skiff's bit and leaves the others alone.
func setMark(mark uint32, on bool) exprs {
	x := uint32(0)
	if on {
		x = mark
	}
	return exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regTmp},
		&expr.Bitwise{SourceRegister: regTmp, DestRegister: regTmp, Len: 4, Mask: word(^mark), Xor: word(x)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regTmp},
	}
}

func marked(mark uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regTmp},
		&expr.Bitwise{SourceRegister: regTmp, DestRegister: regTmp, Len: 4, Mask: word(mark), Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regTmp, Data: word(0)},
	}
}

func jump(chain string) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func goTo(chain string) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func verdict(k expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: k}} }

func dnat() exprs {
	return exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
		RegAddrMin: regDest, RegAddrMax: regDest, RegProtoMin: regDest + 1, RegProtoMax: regDest + 1, Specified: true}}
}

func snat(to netip.Addr) exprs {
	a := to.As4()
	return exprs{
		&expr.Immediate{Register: regMasqA, Data: a[:]},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regMasqA, RegAddrMax: regMasqA, FullyRandom: true},
	}
}

func masquerade() exprs { return exprs{&expr.Masq{FullyRandom: true}} }

func random(reg, modulus uint32) expr.Any {
	return &expr.Numgen{Register: reg, Modulus: modulus, Type: unix.NFT_NG_RANDOM}
}

func remember(op uint32, key, data uint32, timeout time.Duration) expr.Any {
	return &expr.Dynset{SetName: SetAffinity, SrcRegKey: key, SrcRegData: data, Operation: op, Timeout: timeout}
}
