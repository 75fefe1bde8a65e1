package ruleset

import (
	"bytes"
	"encoding/binary"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write golden files")

func TestGolden(t *testing.T) {
	chains := Chains(testParams())
	for _, p := range []Picker{{Count: 3}, {Count: 17, Opts: OptMasquerade | OptNodePort}, {Count: 2, Opts: OptExternal}, {Count: 2, Opts: 10800}} {
		chains = append(chains, PickerChain(p, DefaultMark))
	}
	path := filepath.Join("testdata", "chains.txt")
	got := Format(chains)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("rules differ from %s (go test -update):\n%s", path, d)
	}
}

// packet is what the rules look at, and what they do to it.
type packet struct {
	saddr, daddr string
	proto        uint8
	dport        uint16
	iif, oif     string
	mark         uint32
	local        bool // the destination is an address of this host
	pick         uint32

	verdict string // accept, drop, reject, dnat …, snat …, masquerade
}

// tracer runs the rules over a packet, as the kernel does.
type tracer struct {
	t        *testing.T
	chains   map[string]Chain
	elements map[string]map[string][]byte // set -> key -> value
	affinity map[string][]byte
}

func newTracer(t *testing.T) *tracer {
	tr := &tracer{t: t, chains: map[string]Chain{}, elements: map[string]map[string][]byte{}, affinity: map[string][]byte{}}
	for _, c := range Chains(testParams()) {
		tr.chains[c.Name] = c
	}
	for _, l := range layouts() {
		tr.elements[l.name] = map[string][]byte{}
	}
	tr.elements[SetAffinity] = tr.affinity
	return tr
}

func (tr *tracer) apply(u *Unit) {
	for set, els := range u.del {
		for _, e := range els {
			delete(tr.elements[set], string(e.Key))
		}
	}
	for set, els := range u.add {
		for _, e := range els {
			tr.elements[set][string(e.Key)] = e.Val
		}
	}
	for _, p := range u.pickers {
		c := PickerChain(p, DefaultMark)
		tr.chains[c.Name] = c
		tr.elements[SetPickers][string(p.bytes())] = []byte(c.Name)
	}
}

// run runs a base chain; the packet's verdict is set when a rule decides.
func (tr *tracer) run(chain string, p *packet) { tr.chain(chain, p) }

func (tr *tracer) chain(name string, p *packet) (done bool) {
	c, ok := tr.chains[name]
	if !ok {
		tr.t.Fatalf("no chain %s", name)
	}
	for _, r := range c.Rules {
		done, returned := tr.rule(r, p)
		if done {
			return true
		}
		if returned {
			return false
		}
	}
	return false
}

func padded(b []byte) []byte { return append(append([]byte{}, b...), make([]byte, (4-len(b)%4)%4)...) }

// rule returns done when the packet's fate is decided, returned after a goto
// whose chain ended.
func (tr *tracer) rule(r Rule, p *packet) (done, returned bool) {
	var regs [24 * 4]byte
	at := func(reg uint32) []byte {
		if reg < 8 {
			return regs[(reg-1)*16+32:]
		}
		return regs[reg*4:]
	}
	addr := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Payload:
			var v []byte
			switch payloadName(e) {
			case "ip saddr":
				v = addr(p.saddr)
			case "ip daddr":
				v = addr(p.daddr)
			case "th dport":
				v = binary.BigEndian.AppendUint16(nil, p.dport)
			default:
				v = []byte{0}
			}
			copy(at(e.DestRegister), padded(v))
		case *expr.Meta:
			switch {
			case e.SourceRegister:
				p.mark = binary.NativeEndian.Uint32(at(e.Register))
			case e.Key == expr.MetaKeyL4PROTO:
				copy(at(e.Register), []byte{p.proto, 0, 0, 0})
			case e.Key == expr.MetaKeyMARK:
				copy(at(e.Register), word(p.mark))
			default:
				name := p.iif
				if e.Key == expr.MetaKeyOIFNAME {
					name = p.oif
				}
				copy(at(e.Register), append([]byte(name), make([]byte, 16-len(name))...))
			}
		case *expr.Immediate:
			copy(at(e.Register), padded(e.Data))
		case *expr.Ct:
			copy(at(e.Register), word(expr.CtStateBitNEW))
		case *expr.Fib:
			v := uint32(unix.RTN_UNICAST)
			if p.local {
				v = unix.RTN_LOCAL
			}
			copy(at(e.Register), word(v))
		case *expr.Bitwise:
			for i := range int(e.Len) {
				at(e.DestRegister)[i] = at(e.SourceRegister)[i]&e.Mask[i] ^ e.Xor[i]
			}
		case *expr.Cmp:
			if bytes.Equal(at(e.Register)[:len(e.Data)], e.Data) != (e.Op == expr.CmpOpEq) {
				return false, false
			}
		case *expr.Numgen:
			if p.pick >= e.Modulus {
				tr.t.Fatalf("packet asks for slot %d of %d", p.pick, e.Modulus)
			}
			copy(at(e.Register), word(p.pick))
		case *expr.Lookup:
			n := tr.keyLen(e.SetName)
			v, ok := tr.elements[e.SetName][string(at(e.SourceRegister)[:n])]
			if ok == e.Invert {
				return false, false
			}
			if e.IsDestRegSet && e.DestRegister == 0 {
				if tr.chain(string(v), p) {
					return true, false
				}
				return false, false
			}
			if e.IsDestRegSet {
				copy(at(e.DestRegister), v)
			}
		case *expr.Dynset:
			key := string(at(e.SrcRegKey)[:12])
			if e.Operation == dynsetDelete {
				delete(tr.affinity, key)
			} else if _, ok := tr.affinity[key]; !ok {
				tr.affinity[key] = bytes.Clone(at(e.SrcRegData)[:8])
			}
		case *expr.NAT:
			if e.Type == expr.NATTypeDestNAT {
				p.verdict = "dnat " + endpointFrom(at(e.RegAddrMin)).String()
			} else {
				p.verdict = "snat " + netip.AddrFrom4([4]byte(at(e.RegAddrMin)[:4])).String()
			}
			return true, false
		case *expr.Masq:
			p.verdict = "masquerade"
			return true, false
		case *expr.Reject:
			p.verdict = "reject"
			return true, false
		case *expr.Verdict:
			switch e.Kind {
			case expr.VerdictJump:
				return tr.chain(e.Chain, p), false
			case expr.VerdictGoto:
				return tr.chain(e.Chain, p), true
			case expr.VerdictDrop:
				p.verdict = "drop"
				return true, false
			case expr.VerdictAccept:
				p.verdict = "accept"
				return true, false
			}
		default:
			tr.t.Fatalf("unknown expression %T", e)
		}
	}
	return false, false
}

func (tr *tracer) keyLen(set string) int {
	for _, l := range layouts() {
		if l.name == set {
			return 4 * len(l.key)
		}
	}
	tr.t.Fatalf("no set %s", set)
	return 0
}

// One packet at a time through the rules, without a kernel.
func TestTrace(t *testing.T) {
	tr := newTracer(t)
	ep := func(n byte) *Endpoint { return &Endpoint{[4]byte{10, 42, 0, n}, 8080} }
	vip, sticky, only := netip.MustParseAddr("10.43.0.20"), netip.MustParseAddr("10.43.0.21"), netip.MustParseAddr("10.43.0.22")
	u := &Unit{}
	u.SetFrontend(SetFrontends, NewKey(vip, 6, 80), nil, &Frontend{1, Picker{Count: 3}}, "")
	u.SetFrontend(SetFrontends, NewKey(netip.Addr{}, 6, 30080), nil, &Frontend{1, Picker{Count: 3, Opts: OptNodePort | OptMasquerade}}, "")
	u.SetFrontend(SetFrontends, NewKey(netip.Addr{}, 6, 30081), nil, &Frontend{1, Picker{Count: 3, Opts: OptNodePort}}, "")
	u.SetFrontend(SetExternal, NewKey(netip.Addr{}, 6, 30081), nil, &Frontend{2, Picker{Count: 1, Opts: OptNodePort | OptExternal}}, "")
	u.SetFrontend(SetFrontends, NewKey(sticky, 6, 80), nil, &Frontend{3, Picker{Count: 2, Opts: 60}}, "")
	// A frontend whose slot is missing: between two generations.
	u.SetFrontend(SetFrontends, NewKey(only, 6, 80), nil, &Frontend{9, Picker{Count: 1}}, "")
	for i := range 3 {
		u.SetSlot(1, i, nil, ep(byte(i+1)))
	}
	u.SetSlot(2, 0, nil, ep(7))
	u.SetSlot(3, 0, nil, ep(1))
	u.SetSlot(3, 1, nil, ep(2))
	u.Member(3, *ep(1), true)
	u.Member(3, *ep(2), true)
	u.Flag(SetReject, NewKey(netip.MustParseAddr("10.43.0.30"), 17, 53), true)
	u.Flag(SetReject, NewKey(netip.Addr{}, 6, 30090), true)
	u.Flag(SetDrop, NewKey(netip.MustParseAddr("10.43.0.31"), 6, 80), true)
	u.Flag(SetDropExternal, NewKey(netip.Addr{}, 6, 30091), true)
	u.SetHostPort(NewKey(netip.Addr{}, 6, 8443), nil, ep(1))
	u.SetHostPort(NewKey(netip.MustParseAddr("192.168.7.1"), 6, 8444), nil, ep(2))
	u.Hairpin([4]byte{10, 42, 0, 1}, true)
	tr.apply(u)

	const (
		pod, out, host = "10.42.0.9", "203.0.113.5", "192.168.7.1"
		masq           = DefaultMark
	)
	for _, c := range []struct {
		name, chain string
		in          packet
		want        string
		mark        uint32
	}{
		{"pod to cluster IP, slot 0", "prerouting", packet{saddr: pod, daddr: "10.43.0.20", proto: 6, dport: 80}, "dnat 10.42.0.1:8080", 0},
		{"slot 2", "prerouting", packet{saddr: pod, daddr: "10.43.0.20", proto: 6, dport: 80, pick: 2}, "dnat 10.42.0.3:8080", 0},
		{"other bits of the mark stay", "prerouting", packet{saddr: pod, daddr: host, local: true, proto: 6, dport: 30080, mark: 3}, "dnat 10.42.0.1:8080", masq | 3},
		{"host to cluster IP", "output", packet{saddr: host, daddr: "10.43.0.20", proto: 6, dport: 80}, "dnat 10.42.0.1:8080", 0},
		{"outside to cluster IP", "prerouting", packet{saddr: out, daddr: "10.43.0.20", proto: 6, dport: 80}, "dnat 10.42.0.1:8080", masq},
		{"other port", "prerouting", packet{saddr: pod, daddr: "10.43.0.20", proto: 6, dport: 81}, "", 0},
		{"other protocol", "prerouting", packet{saddr: pod, daddr: "10.43.0.20", proto: 17, dport: 80}, "", 0},
		{"node port", "prerouting", packet{saddr: out, daddr: host, local: true, proto: 6, dport: 30080, pick: 1}, "dnat 10.42.0.2:8080", masq},
		{"node port number at a foreign address", "prerouting", packet{saddr: pod, daddr: out, proto: 6, dport: 30080}, "", 0},
		{"local policy from outside", "prerouting", packet{saddr: out, daddr: host, local: true, proto: 6, dport: 30081}, "dnat 10.42.0.7:8080", 0},
		{"local policy from a pod", "prerouting", packet{saddr: pod, daddr: host, local: true, proto: 6, dport: 30081, pick: 1}, "dnat 10.42.0.2:8080", 0},
		{"local policy from the host", "output", packet{saddr: host, daddr: host, local: true, proto: 6, dport: 30081}, "dnat 10.42.0.1:8080", 0},
		{"host port", "prerouting", packet{saddr: out, daddr: host, local: true, proto: 6, dport: 8443}, "dnat 10.42.0.1:8080", 0},
		{"host port of one address", "prerouting", packet{saddr: out, daddr: host, local: true, proto: 6, dport: 8444}, "dnat 10.42.0.2:8080", 0},
		{"host port of another address", "prerouting", packet{saddr: out, daddr: "192.168.7.9", local: true, proto: 6, dport: 8444}, "", 0},
		{"missing slot", "prerouting", packet{saddr: pod, daddr: "10.43.0.22", proto: 6, dport: 80}, "", 0},

		{"rejected UDP", "refuse-prerouting", packet{saddr: pod, daddr: "10.43.0.30", proto: 17, dport: 53}, "reject", 0},
		{"rejected node port", "refuse-output", packet{saddr: host, daddr: host, local: true, proto: 6, dport: 30090}, "reject", 0},
		{"dropped", "refuse-prerouting", packet{saddr: pod, daddr: "10.43.0.31", proto: 6, dport: 80}, "drop", 0},
		{"dropped from outside", "refuse-prerouting", packet{saddr: out, daddr: host, local: true, proto: 6, dport: 30091}, "drop", 0},
		{"not dropped from a pod", "refuse-prerouting", packet{saddr: pod, daddr: host, local: true, proto: 6, dport: 30091}, "", 0},
		{"forwarded to a service address", "forward", packet{saddr: pod, daddr: "10.43.1.1", proto: 6, dport: 80}, "reject", 0},
		{"forwarded elsewhere", "forward", packet{saddr: pod, daddr: out, proto: 6, dport: 80}, "", 0},
		{"sent to a service address", "filter-output", packet{saddr: host, daddr: "10.43.1.1", proto: 6, dport: 80}, "reject", 0},
		{"sent to cluster DNS", "filter-output", packet{saddr: host, daddr: "10.43.0.10", local: true, proto: 17, dport: 53}, "accept", 0},
		{"pod to the host's loopback", "guard", packet{saddr: pod, daddr: "127.0.0.1", iif: "skiff0123456789", proto: 6, dport: 80}, "drop", 0},
		{"lo to loopback", "guard", packet{saddr: "127.0.0.1", daddr: "127.0.0.1", iif: "lo", proto: 6, dport: 80}, "", 0},

		{"hairpin", "postrouting", packet{saddr: "10.42.0.1", daddr: "10.42.0.1", iif: "skiffa", oif: "skiffa"}, "snat 192.168.7.1", 0},
		{"pod to pod", "postrouting", packet{saddr: "10.42.0.1", daddr: "10.42.0.2", iif: "skiffa", oif: "skiffb"}, "", 0},
		{"pod to remote pod", "postrouting", packet{saddr: "10.42.0.1", daddr: "10.42.1.2", iif: "skiffa", oif: "eth0"}, "", 0},
		{"pod to the world", "postrouting", packet{saddr: "10.42.0.1", daddr: out, iif: "skiffa", oif: "eth0"}, "masquerade", 0},
		{"marked to a pod", "postrouting", packet{saddr: out, daddr: "10.42.0.1", oif: "skiffa", mark: masq | 1}, "snat 192.168.7.1", 1},
		{"marked to a node", "postrouting", packet{saddr: out, daddr: "10.42.1.1", oif: "eth0", mark: masq}, "masquerade", 0},
		{"marked through the tunnel", "postrouting", packet{saddr: out, daddr: "10.42.1.1", oif: TunnelLink, mark: masq}, "masquerade", 0},
		{"from loopback to a pod", "postrouting", packet{saddr: "127.0.0.1", daddr: "10.42.0.1", oif: "skiffa"}, "snat 192.168.7.1", 0},
		{"the host's own", "postrouting", packet{saddr: host, daddr: out, oif: "eth0"}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr.t = t
			p := c.in
			tr.run(c.chain, &p)
			if p.verdict != c.want || p.mark != c.mark {
				t.Errorf("got %q mark %#x, want %q mark %#x", p.verdict, p.mark, c.want, c.mark)
			}
		})
	}

	tr.t = t
	ask := func(slot uint32) string {
		p := packet{saddr: pod, daddr: "10.43.0.21", proto: 6, dport: 80, pick: slot}
		tr.run("prerouting", &p)
		return p.verdict
	}
	if a, b := ask(1), ask(0); a != "dnat 10.42.0.2:8080" || a != b {
		t.Errorf("affinity: %q then %q", a, b)
	}
	change := &Unit{} // endpoint 2 leaves
	change.Member(3, *ep(2), false)
	change.SetSlot(3, 1, ep(2), ep(5))
	change.Member(3, *ep(5), true)
	tr.apply(change)
	if a, b := ask(1), ask(0); a != "dnat 10.42.0.5:8080" || a != b {
		t.Errorf("affinity to an endpoint that left: %q then %q", a, b)
	}
}
