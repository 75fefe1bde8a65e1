package ruleset

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// layoutVersion is part of the names of sets and of pickers' chains. Raise it
// with every change of what elements hold: an upgrade then fills new maps
// beside the old ones, before rules that read them replace the old rules.
const layoutVersion = "1"

// Names of the maps and sets.
const (
	SetFrontends    = "frontends" + layoutVersion     // Key -> Frontend, for every client
	SetExternal     = "external" + layoutVersion      // Key -> Frontend, for clients outside of the cluster, looked up first
	SetEndpoints    = "endpoints" + layoutVersion     // ListID, slot -> Endpoint
	SetMembers      = "members" + layoutVersion       // ListID, Endpoint: what an affinity entry may point to
	SetAffinity     = "affinity" + layoutVersion      // ListID, client -> Endpoint, written by the kernel
	SetReject       = "reject" + layoutVersion        // Key: services that have no endpoint
	SetDrop         = "drop" + layoutVersion          // Key: internalTrafficPolicy Local without a local endpoint
	SetDropExternal = "drop-external" + layoutVersion // Key: externalTrafficPolicy Local without a local endpoint
	SetHostPorts    = "hostports" + layoutVersion     // Key -> Endpoint
	SetHairpin      = "hairpin" + layoutVersion       // addr, addr of each pod on this node
	SetPickers      = "pickers" + layoutVersion       // Picker -> jump to its chain
)

// Key is what a client connects to. A zero Addr stands for every local address
// of the node.
type Key struct {
	Addr  [4]byte
	Proto uint8
	Port  uint16
}

// NewKey makes a Key; the zero Addr means any local address.
func NewKey(addr netip.Addr, proto uint8, port uint16) Key {
	k := Key{Proto: proto, Port: port}
	if addr.Is4() {
		k.Addr = addr.As4()
	}
	return k
}

func (k Key) String() string {
	addr := "*"
	if k.Addr != [4]byte{} {
		addr = netip.AddrFrom4(k.Addr).String()
	}
	return fmt.Sprintf("%s:%d/%s", addr, k.Port, ProtoName(k.Proto))
}

// ProtoName is the name of an IP protocol number, as Kubernetes writes it.
func ProtoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	}
	return fmt.Sprint(p)
}

// Endpoint is where a connection goes.
type Endpoint struct {
	Addr [4]byte
	Port uint16
}

func (e Endpoint) String() string {
	return netip.AddrPortFrom(netip.AddrFrom4(e.Addr), e.Port).String()
}

// Compare orders endpoints by address, then port.
func (e Endpoint) Compare(o Endpoint) int {
	return netip.AddrPortFrom(netip.AddrFrom4(e.Addr), e.Port).
		Compare(netip.AddrPortFrom(netip.AddrFrom4(o.Addr), o.Port))
}

// ListID names a list of endpoints. It is derived from the service's name, so
// that it is the same after a restart.
type ListID uint64

// NewListID hashes the parts of a name. It is a cryptographic hash, cut: nobody
// can choose a service name that shares another service's list.
func NewListID(parts ...string) ListID {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return ListID(binary.BigEndian.Uint64(sum[:8]))
}

// Options of a frontend, beside the number of endpoints.
const (
	OptMasquerade = 1 << 31 // the endpoint must see the node, not the client
	OptNodePort   = 1 << 30 // the key holds no address
	OptExternal   = 1 << 29 // the frontend is in SetExternal
	optTimeout    = 1<<29 - 1
)

// Picker chooses one of Count endpoints. Every distinct picker has a chain of
// its own with an exact modulus, so the choice is even for any count.
type Picker struct {
	Count uint32
	Opts  uint32 // Opt…, and in the low bits the affinity timeout in seconds
}

// Affinity is the client affinity timeout in seconds, 0 without affinity.
func (p Picker) Affinity() uint32 { return p.Opts & optTimeout }

// ChainName is the name of the picker's chain.
func (p Picker) ChainName() string {
	s := fmt.Sprintf("pick%s-%d", layoutVersion, p.Count)
	if p.Opts&OptExternal != 0 {
		s += "-external"
	}
	if p.Opts&OptNodePort != 0 {
		s += "-nodeport"
	}
	if p.Opts&OptMasquerade != 0 {
		s += "-masq"
	}
	if a := p.Affinity(); a != 0 {
		s += fmt.Sprintf("-affinity%d", a)
	}
	return s
}

// Frontend is where a Key leads: a list, and how to choose from it.
type Frontend struct {
	List ListID
	Picker
}

// The byte layouts below are those of nftables registers: each part is padded
// to four bytes, addresses and ports in network order, counters in host order.

func (k Key) bytes() []byte {
	b := make([]byte, 12)
	copy(b, k.Addr[:])
	b[4] = k.Proto
	binary.BigEndian.PutUint16(b[8:], k.Port)
	return b
}

func keyFrom(b []byte) (k Key) {
	copy(k.Addr[:], b)
	k.Proto = b[4]
	k.Port = binary.BigEndian.Uint16(b[8:])
	return k
}

func (e Endpoint) bytes() []byte {
	b := make([]byte, 8)
	copy(b, e.Addr[:])
	binary.BigEndian.PutUint16(b[4:], e.Port)
	return b
}

func endpointFrom(b []byte) (e Endpoint) {
	copy(e.Addr[:], b)
	e.Port = binary.BigEndian.Uint16(b[4:])
	return e
}

func (l ListID) bytes() []byte { return binary.BigEndian.AppendUint64(nil, uint64(l)) }

func listFrom(b []byte) ListID { return ListID(binary.BigEndian.Uint64(b)) }

func (p Picker) bytes() []byte {
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, p.Count), p.Opts)
}

func (f Frontend) bytes() []byte { return append(f.List.bytes(), f.Picker.bytes()...) }

func frontendFrom(b []byte) Frontend {
	return Frontend{List: listFrom(b), Picker: Picker{
		Count: binary.NativeEndian.Uint32(b[8:]), Opts: binary.NativeEndian.Uint32(b[12:])}}
}

func slotBytes(l ListID, slot int) []byte {
	return binary.NativeEndian.AppendUint32(l.bytes(), uint32(slot))
}

// layout describes one set for the kernel.
type layout struct {
	name     string
	key      []nftables.SetDatatype
	data     []nftables.SetDatatype
	verdict  bool
	affinity bool // written by rules, elements expire
}

// affinityMax bounds the memory that clients can make the kernel spend on
// affinity entries; beyond it new clients are balanced without affinity.
const affinityMax = 1 << 17

func layouts() []layout {
	var (
		addr  = nftables.TypeIPAddr
		proto = nftables.TypeInetProto
		port  = nftables.TypeInetService
		word  = nftables.TypeMark // any four bytes
	)
	type ts = []nftables.SetDatatype
	key := ts{addr, proto, port}
	return []layout{
		{name: SetFrontends, key: key, data: ts{word, word, word, word}},
		{name: SetExternal, key: key, data: ts{word, word, word, word}},
		{name: SetEndpoints, key: ts{word, word, word}, data: ts{addr, port}},
		{name: SetMembers, key: ts{word, word, addr, port}},
		{name: SetAffinity, key: ts{word, word, addr}, data: ts{addr, port}, affinity: true},
		{name: SetReject, key: key},
		{name: SetDrop, key: key},
		{name: SetDropExternal, key: key},
		{name: SetHostPorts, key: key, data: ts{addr, port}},
		{name: SetHairpin, key: ts{addr, addr}},
		{name: SetPickers, key: ts{word, word}, verdict: true},
	}
}
