package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// State is what the kernel's maps hold.
type State struct {
	Frontends map[Key]Frontend
	External  map[Key]Frontend
	Owners    map[Key]string // comments of frontends: namespace/service:port
	Lists     map[ListID]map[int]Endpoint
	Members   map[ListID]map[Endpoint]bool
	Flags     map[string]map[Key]bool // by set: reject, drop, drop external
	HostPorts map[Key]Endpoint
	Hairpin   map[netip.Addr]bool
}

// FlagSets are the sets of State.Flags.
var FlagSets = []string{SetReject, SetDrop, SetDropExternal}

// Load reads the maps.
func (t *Table) Load() (*State, error) {
	s := &State{
		Frontends: map[Key]Frontend{}, External: map[Key]Frontend{}, Owners: map[Key]string{},
		Lists: map[ListID]map[int]Endpoint{}, Members: map[ListID]map[Endpoint]bool{},
		Flags: map[string]map[Key]bool{}, HostPorts: map[Key]Endpoint{}, Hairpin: map[netip.Addr]bool{},
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	each := func(set string, keyLen, valLen int, fn func(nftables.SetElement)) error {
		elems, err := t.elements(set)
		if err != nil {
			return err
		}
		for _, e := range elems {
			if len(e.Key) < keyLen || len(e.Val) < valLen {
				return fmt.Errorf("set %s: element of %d and %d bytes", set, len(e.Key), len(e.Val))
			}
			fn(e)
		}
		return nil
	}
	for set, m := range map[string]map[Key]Frontend{SetFrontends: s.Frontends, SetExternal: s.External} {
		if err := each(set, 12, 16, func(e nftables.SetElement) {
			k := keyFrom(e.Key)
			m[k] = frontendFrom(e.Val)
			s.Owners[k] = e.Comment
		}); err != nil {
			return nil, err
		}
	}
	if err := each(SetEndpoints, 12, 8, func(e nftables.SetElement) {
		l := listFrom(e.Key)
		if s.Lists[l] == nil {
			s.Lists[l] = map[int]Endpoint{}
		}
		s.Lists[l][int(binary.NativeEndian.Uint32(e.Key[8:]))] = endpointFrom(e.Val)
	}); err != nil {
		return nil, err
	}
	if err := each(SetMembers, 16, 0, func(e nftables.SetElement) {
		l := listFrom(e.Key)
		if s.Members[l] == nil {
			s.Members[l] = map[Endpoint]bool{}
		}
		s.Members[l][endpointFrom(e.Key[8:])] = true
	}); err != nil {
		return nil, err
	}
	for _, set := range FlagSets {
		s.Flags[set] = map[Key]bool{}
		if err := each(set, 12, 0, func(e nftables.SetElement) { s.Flags[set][keyFrom(e.Key)] = true }); err != nil {
			return nil, err
		}
	}
	if err := each(SetHostPorts, 12, 8, func(e nftables.SetElement) {
		s.HostPorts[keyFrom(e.Key)] = endpointFrom(e.Val)
	}); err != nil {
		return nil, err
	}
	return s, each(SetHairpin, 8, 0, func(e nftables.SetElement) {
		s.Hairpin[netip.AddrFrom4([4]byte(e.Key[:4]))] = true
	})
}

func (t *Table) elements(set string) ([]nftables.SetElement, error) {
	var elems []nftables.SetElement
	err := t.doLocked(func(conn *nftables.Conn) (err error) {
		elems, err = conn.GetSetElements(t.sets[set])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read set %s of table %s: %w", set, t.name, err)
	}
	return elems, nil
}

func (t *Table) kernelPickers() ([]Picker, error) {
	elems, err := t.elements(SetPickers)
	if err != nil {
		return nil, err
	}
	var out []Picker
	for _, e := range elems {
		if len(e.Key) >= 8 {
			p := Picker{Count: binary.NativeEndian.Uint32(e.Key), Opts: binary.NativeEndian.Uint32(e.Key[4:])}
			if p.Count > 0 {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// AffinityEntry is one client that the kernel keeps on an endpoint.
type AffinityEntry struct {
	List     ListID
	Client   netip.Addr
	Endpoint Endpoint
	Expires  time.Duration
}

// Affinity reads the affinity entries.
func (t *Table) Affinity() ([]AffinityEntry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	elems, err := t.elements(SetAffinity)
	if err != nil {
		return nil, err
	}
	var out []AffinityEntry
	for _, e := range elems {
		if len(e.Key) < 12 || len(e.Val) < 8 {
			continue
		}
		out = append(out, AffinityEntry{List: listFrom(e.Key), Client: netip.AddrFrom4([4]byte(e.Key[8:12])),
			Endpoint: endpointFrom(e.Val), Expires: e.Expires})
	}
	return out, nil
}

// Generation is the kernel's count of ruleset changes, by anybody, in this
// network namespace. It costs one system call, so it is how skiff notices that
// somebody flushed the ruleset.
func Generation() (uint32, error) {
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	req := nl.NewNetlinkRequest(getGen, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	const attrID = 1 // NFTA_GEN_ID
	for _, m := range msgs {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("parse nftables generation: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&^uint16(unix.NLA_F_NESTED) == attrID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, fmt.Errorf("read nftables generation: no answer")
}
