package ruleset

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Format writes chains as text: one line a rule, close to nft's own words, with
// registers visible. It is for reading and for golden files.
func Format(chains []Chain) string {
	var b strings.Builder
	for _, c := range chains {
		fmt.Fprintf(&b, "chain %s {\n", c.Name)
		if c.Type != "" {
			fmt.Fprintf(&b, "\ttype %s hook %s priority %d\n", c.Type, hookName(c.Hook), c.Priority)
		}
		for _, r := range c.Rules {
			b.WriteByte('\t')
			for i, e := range r.Exprs {
				if i > 0 {
					b.WriteString("; ")
				}
				b.WriteString(formatExpr(e))
			}
			b.WriteByte('\n')
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func hookName(h *nftables.ChainHook) string {
	switch *h {
	case unix.NF_INET_PRE_ROUTING:
		return "prerouting"
	case unix.NF_INET_LOCAL_IN:
		return "input"
	case unix.NF_INET_FORWARD:
		return "forward"
	case unix.NF_INET_LOCAL_OUT:
		return "output"
	}
	return "postrouting"
}

func reg(r uint32) string {
	if r < 8 {
		return fmt.Sprintf("R%d", (r-1)*4) // a 128-bit register by its first word
	}
	return fmt.Sprintf("r%d", r-8)
}

func formatExpr(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Payload:
		return fmt.Sprintf("%s = %s", reg(e.DestRegister), payloadName(e))
	case *expr.Meta:
		if e.SourceRegister {
			return fmt.Sprintf("meta %s = %s", metaName(e.Key), reg(e.Register))
		}
		return fmt.Sprintf("%s = meta %s", reg(e.Register), metaName(e.Key))
	case *expr.Immediate:
		return fmt.Sprintf("%s = %s", reg(e.Register), formatData(e.Data))
	case *expr.Ct:
		return reg(e.Register) + " = ct state"
	case *expr.Fib:
		return reg(e.Register) + " = fib daddr type"
	case *expr.Bitwise:
		s := fmt.Sprintf("%s &= 0x%s", reg(e.DestRegister), hexWord(e.Mask))
		if binary.NativeEndian.Uint32(e.Xor) != 0 {
			s += " ^ 0x" + hexWord(e.Xor)
		}
		return s
	case *expr.Cmp:
		op := "=="
		if e.Op == expr.CmpOpNeq {
			op = "!="
		}
		return fmt.Sprintf("%s %s %s", reg(e.Register), op, formatData(e.Data))
	case *expr.Lookup:
		switch {
		case e.IsDestRegSet && e.DestRegister == 0:
			return fmt.Sprintf("vmap @%s[%s]", e.SetName, reg(e.SourceRegister))
		case e.IsDestRegSet:
			return fmt.Sprintf("%s = @%s[%s]", reg(e.DestRegister), e.SetName, reg(e.SourceRegister))
		case e.Invert:
			return fmt.Sprintf("%s not in @%s", reg(e.SourceRegister), e.SetName)
		}
		return fmt.Sprintf("%s in @%s", reg(e.SourceRegister), e.SetName)
	case *expr.Numgen:
		return fmt.Sprintf("%s = random mod %d", reg(e.Register), e.Modulus)
	case *expr.Dynset:
		op := "update"
		if e.Operation == dynsetDelete {
			op = "delete"
		}
		return fmt.Sprintf("%s @%s[%s] = %s timeout %s", op, e.SetName, reg(e.SrcRegKey), reg(e.SrcRegData), e.Timeout)
	case *expr.NAT:
		if e.Type == expr.NATTypeDestNAT {
			return fmt.Sprintf("dnat %s:%s", reg(e.RegAddrMin), reg(e.RegProtoMin))
		}
		return "snat " + reg(e.RegAddrMin)
	case *expr.Masq:
		return "masquerade"
	case *expr.Reject:
		if e.Type == unix.NFT_REJECT_TCP_RST {
			return "reject with tcp reset"
		}
		return fmt.Sprintf("reject with icmp %d", e.Code)
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictJump:
			return "jump " + e.Chain
		case expr.VerdictGoto:
			return "goto " + e.Chain
		case expr.VerdictDrop:
			return "drop"
		case expr.VerdictAccept:
			return "accept"
		}
	}
	return fmt.Sprintf("%T", e)
}

func payloadName(e *expr.Payload) string {
	if e.Base == expr.PayloadBaseNetworkHeader {
		if e.Offset == 12 {
			return "ip saddr"
		}
		return "ip daddr"
	}
	if e.Offset == 0 {
		return "icmp type"
	}
	return "th dport"
}

func metaName(k expr.MetaKey) string {
	switch k {
	case expr.MetaKeyL4PROTO:
		return "l4proto"
	case expr.MetaKeyMARK:
		return "mark"
	case expr.MetaKeyIIFNAME:
		return "iifname"
	}
	return "oifname"
}

func hexWord(b []byte) string { return hex.EncodeToString(b) }

func formatData(b []byte) string {
	if len(b) == 4 && b[0] != 0 && b[3] == 0 && b[1] == 0 && b[2] == 0 && b[0] != 10 {
		return fmt.Sprint(binary.NativeEndian.Uint32(b))
	}
	switch {
	case len(b) == 4:
		return net.IP(b).String()
	case len(b) == 1:
		return fmt.Sprint(b[0])
	}
	name := strings.TrimRight(string(b), "\x00")
	if len(b) < 16 {
		name += "*"
	}
	return fmt.Sprintf("%q", name)
}
