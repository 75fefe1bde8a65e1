package raftdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

// The seal of an entry is appended to its Extensions: one byte that tells the
// kind, and the CRC-32C of all that Raft relies on.
const (
	sealKind = 1
	sealSize = 1 + 4
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func checksum(e *raft.Log, extensions []byte) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], e.Index)
	binary.BigEndian.PutUint64(head[8:], e.Term)
	head[16] = byte(e.Type)
	sum := crc32.Update(0, crcTable, head[:])
	sum = crc32.Update(sum, crcTable, extensions)
	return crc32.Update(sum, crcTable, e.Data)
}

// seal returns copies of the entries with their checksums. Raft goes on using
// the originals.
func seal(entries []*raft.Log) (sealed []*raft.Log, size int64) {
	sealed = make([]*raft.Log, len(entries))
	for i, e := range entries {
		c := *e
		c.Extensions = make([]byte, len(e.Extensions), len(e.Extensions)+sealSize)
		copy(c.Extensions, e.Extensions)
		c.Extensions = append(c.Extensions, sealKind)
		c.Extensions = binary.BigEndian.AppendUint32(c.Extensions, checksum(e, e.Extensions))
		sealed[i] = &c
		size += int64(len(e.Data)) + entryOverhead
	}
	return sealed, size
}

// entryOverhead is about what an entry takes beside its data.
const entryOverhead = 64

var (
	errNoSeal   = errors.New("it has no checksum")
	errChecksum = errors.New("checksum does not match")
)

// unseal checks and removes the checksum of an entry that was read at index.
func unseal(index uint64, e *raft.Log) error {
	n := len(e.Extensions) - sealSize
	if n < 0 || e.Extensions[n] != sealKind {
		return errNoSeal
	}
	want := binary.BigEndian.Uint32(e.Extensions[n+1:])
	e.Extensions = e.Extensions[:n:n]
	if n == 0 {
		e.Extensions = nil
	}
	if e.Index != index || checksum(e, e.Extensions) != want {
		return errChecksum
	}
	return nil
}

// stableKeys are what Raft keeps beside the log.
var stableKeys = map[string]bool{keyTerm: true, "LastVoteTerm": true, "LastVoteCand": true}

const keyTerm = "CurrentTerm"

// sealValue gives a stable value with its checksum, in which the key counts too:
// what a member has voted must not become another vote.
func sealValue(key, val []byte) []byte {
	out := append(make([]byte, 0, len(val)+sealSize), val...)
	return binary.BigEndian.AppendUint32(append(out, sealKind), valueSum(key, val))
}

func valueSum(key, val []byte) uint32 {
	return crc32.Update(crc32.Update(0, crcTable, key), crcTable, val)
}

// openValue is the opposite of sealValue.
func openValue(key, sealed []byte) ([]byte, error) {
	if !stableKeys[string(key)] {
		return nil, fmt.Errorf("key %q is none that was written", key)
	}
	n := len(sealed) - sealSize
	if n < 0 || sealed[n] != sealKind {
		return nil, fmt.Errorf("%s: %w", key, errNoSeal)
	}
	if valueSum(key, sealed[:n]) != binary.BigEndian.Uint32(sealed[n+1:]) {
		return nil, fmt.Errorf("%s: %w", key, errChecksum)
	}
	return sealed[:n:n], nil
}
