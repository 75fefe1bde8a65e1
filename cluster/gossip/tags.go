package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/memberlist"
)

// Tags travel as a version byte and fields: number, length, bytes. Numbers are
// only appended, and unknown ones are skipped, so that a later version may add
// some without being misread by this one. Zero values are left out.
const tagsVersion = 1

const (
	fieldID byte = iota + 1
	fieldRole
	fieldCluster
	fieldVersion
	fieldAPIPort
	fieldRaftPort
	fieldNodePort
	fieldTrust
	fieldLoad
	fieldLeaving
	fieldEpoch
	fieldEpochHash
	fieldOrders
	fieldMinLevel
	fieldMaxLevel
	fieldFree
)

var (
	roleCodes = map[Role]uint64{RoleServer: 1, RoleWitness: 2, RoleAgent: 3}
	roleNames = map[uint64]Role{1: RoleServer, 2: RoleWitness, 3: RoleAgent}
)

// encodeTags fails if the tags do not fit into what memberlist carries.
func encodeTags(t Tags, leaving bool) ([]byte, error) {
	out := append(make([]byte, 0, 128), tagsVersion)
	text := func(field byte, s string) error {
		if s == "" {
			return nil
		}
		if len(s) > 255 {
			return fmt.Errorf("gossip: a tag of %d bytes: at most 255 are possible", len(s))
		}
		out = append(append(out, field, byte(len(s))), s...)
		return nil
	}
	number := func(field byte, n uint64) {
		if n != 0 {
			v := binary.AppendUvarint(nil, n)
			out = append(append(out, field, byte(len(v))), v...)
		}
	}
	err := errors.Join(text(fieldID, t.ID), text(fieldCluster, t.ClusterID), text(fieldVersion, t.Version))
	number(fieldRole, roleCodes[t.Role])
	number(fieldAPIPort, uint64(t.APIPort))
	number(fieldRaftPort, uint64(t.RaftPort))
	number(fieldNodePort, uint64(t.NodePort))
	number(fieldTrust, t.Trust)
	number(fieldLoad, uint64(t.Load))
	number(fieldEpoch, t.Epoch)
	number(fieldEpochHash, uint64(t.EpochHash))
	number(fieldOrders, t.Orders)
	number(fieldMinLevel, uint64(t.MinLevel))
	number(fieldMaxLevel, uint64(t.MaxLevel))
	number(fieldFree, t.Free)
	if leaving {
		number(fieldLeaving, 1)
	}
	if err == nil && len(out) > memberlist.MetaMaxSize {
		err = fmt.Errorf("gossip: tags take %d bytes: at most %d are possible; shorten ID, ClusterID or Version", len(out), memberlist.MetaMaxSize)
	}
	return out, err
}

// decodeTags fails on bytes that no version can have written.
func decodeTags(b []byte) (t Tags, leaving bool, err error) {
	if len(b) == 0 || b[0] == 0 {
		return t, false, errors.New("gossip: tags without a version")
	}
	for b = b[1:]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return t, false, errors.New("gossip: tags are cut short")
		}
		field, value := b[0], b[2:2+int(b[1])]
		b = b[2+len(value):]
		var n uint64
		switch field {
		case fieldID:
			t.ID = string(value)
			continue
		case fieldCluster:
			t.ClusterID = string(value)
			continue
		case fieldVersion:
			t.Version = string(value)
			continue
		case fieldRole, fieldAPIPort, fieldRaftPort, fieldNodePort, fieldTrust, fieldLoad, fieldLeaving, fieldEpoch, fieldEpochHash,
			fieldOrders, fieldMinLevel, fieldMaxLevel, fieldFree:
			used := 0
			if n, used = binary.Uvarint(value); used != len(value) || used <= 0 {
				return t, false, fmt.Errorf("gossip: tag %d is no number", field)
			}
		default:
			continue
		}
		fits := true
		port := func(p *uint16) { *p, fits = uint16(n), n <= 65535 }
		switch field {
		case fieldRole:
			t.Role = roleNames[n] // a role of a later version is the empty one here
		case fieldAPIPort:
			port(&t.APIPort)
		case fieldRaftPort:
			port(&t.RaftPort)
		case fieldNodePort:
			port(&t.NodePort)
		case fieldTrust:
			t.Trust = n
		case fieldLoad:
			t.Load, fits = uint8(n), n <= 255
		case fieldLeaving:
			leaving = n != 0
		case fieldEpoch:
			t.Epoch = n
		case fieldEpochHash:
			t.EpochHash, fits = uint32(n), n <= math.MaxUint32
		case fieldOrders:
			t.Orders = n
		case fieldMinLevel:
			t.MinLevel, fits = uint16(n), n <= math.MaxUint16
		case fieldMaxLevel:
			t.MaxLevel, fits = uint16(n), n <= math.MaxUint16
		case fieldFree:
			t.Free = n
		}
		if !fits {
			return t, false, fmt.Errorf("gossip: tag %d is out of range: %d", field, n)
		}
	}
	return t, leaving, nil
}
