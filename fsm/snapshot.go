package fsm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/store"
)

// A snapshot is
//
//	8 bytes "SKIFFSNP", uint32 format version, blocks
//
// and a block is
//
//	1 byte kind, uint32 length of the body, body, uint32 CRC-32C of all before
//
// in this order: one header, any number of blocks of keys, one end. Numbers of
// fixed size are little-endian. The bodies:
//
//	header  uvarint revision, raft index, raft term; cluster id
//	keys    keys in ascending order, each: uvarint length of the prefix shared
//	        with the key before in the block, uvarint length of the rest, rest,
//	        uvarint create revision, mod revision minus create revision, expiry,
//	        value length; value
//	end     uvarint number of keys, uvarint bytes of keys and values, SHA-256 of
//	        the file up to this block
//
// Nothing follows the end. Equal states give equal bytes.
const (
	snapshotMagic = "SKIFFSNP"

	// FormatVersion is the newest version of the snapshot format. Which is written
	// depends on the feature level.
	FormatVersion = nextSnapshot

	blockHeader = 1
	blockKeys   = 2
	blockEnd    = 3

	blockTarget = 128 << 10 // a block of keys is closed when it has grown to this
	maxBlock    = 64 << 20  // no block is larger
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// Header is what a snapshot says about itself.
type Header struct {
	ClusterID string
	Revision  int64  // of the store
	Index     uint64 // of the last log entry in it
	Term      uint64 // of that entry
	Format    uint32 // version of the format; 0 is written as the first
}

// Snapshot is the state at one moment. It implements raft.FSMSnapshot.
type Snapshot struct {
	Header
	// Renewed: all keys are written with the header's Revision, for a state whose
	// readers may have seen later versions than it has.
	Renewed bool
	view    *store.View
}

// Keys is the number of keys in the snapshot.
func (s *Snapshot) Keys() int { return s.view.Len() }

// View is the state.
func (s *Snapshot) View() *store.View { return s.view }

// Write writes the snapshot, until ctx ends.
func (s *Snapshot) Write(ctx context.Context, w io.Writer) error {
	sw, err := NewWriter(w, s.Header)
	if err != nil {
		return err
	}
	s.view.Ascend("", "", func(kv *store.KeyValue) bool {
		if s.Renewed {
			kv = &store.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: s.Revision, Expires: kv.Expires}
		}
		if err = ctx.Err(); err == nil {
			err = sw.Add(kv)
		}
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sw.Close()
}

// Persist writes the snapshot into Raft's snapshot store.
func (s *Snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.Write(context.Background(), sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release does nothing: the memory is released with the Snapshot.
func (s *Snapshot) Release() {}

// Writer writes a snapshot key by key.
type Writer struct {
	w     io.Writer
	sum   hash.Hash
	block []byte // the block being filled, with room for its head
	last  string // the key before in the block
	prev  string // the key before
	keys  uint64
	bytes uint64
}

const blockHead = 1 + 4

// NewWriter writes what comes before the first key.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	if h.Format = max(h.Format, 1); h.Format > FormatVersion {
		return nil, fmt.Errorf("write snapshot: %w: version %d", ErrSnapshotVersion, h.Format)
	}
	s := &Writer{w: w, sum: sha256.New(), block: make([]byte, blockHead, blockTarget+blockTarget/4)}
	start := binary.LittleEndian.AppendUint32([]byte(snapshotMagic), h.Format)
	if err := s.write(start); err != nil {
		return nil, err
	}
	b := binary.AppendUvarint(s.block, uint64(h.Revision))
	b = binary.AppendUvarint(b, h.Index)
	b = binary.AppendUvarint(b, h.Term)
	b = appendHeader(b, &h)
	s.block = append(b, h.ClusterID...)
	return s, s.flush(blockHeader)
}

// Add adds a key, which must sort after the one before.
func (s *Writer) Add(kv *store.KeyValue) error {
	if s.keys > 0 && kv.Key <= s.prev {
		return fmt.Errorf("write snapshot: key %q does not sort after %q", kv.Key, s.prev)
	}
	shared := commonPrefix(s.last, kv.Key)
	b := binary.AppendUvarint(s.block, uint64(shared))
	b = appendString(b, kv.Key[shared:])
	b = binary.AppendUvarint(b, uint64(kv.CreateRevision))
	b = binary.AppendUvarint(b, uint64(kv.ModRevision-kv.CreateRevision))
	b = binary.AppendUvarint(b, uint64(kv.Expires))
	b = binary.AppendUvarint(b, uint64(len(kv.Value)))
	s.block = append(b, kv.Value...)
	s.keys++
	s.bytes += uint64(len(kv.Key) + len(kv.Value))
	s.last, s.prev = kv.Key, kv.Key
	if len(s.block) >= blockTarget {
		return s.flush(blockKeys)
	}
	return nil
}

// Close writes the end. It does not close the writer below.
func (s *Writer) Close() error {
	if len(s.block) > blockHead {
		if err := s.flush(blockKeys); err != nil {
			return err
		}
	}
	b := binary.AppendUvarint(s.block, s.keys)
	b = binary.AppendUvarint(b, s.bytes)
	s.block = s.sum.Sum(b)
	return s.flush(blockEnd)
}

// flush writes the block being filled and begins the next.
func (s *Writer) flush(kind byte) error {
	s.block[0] = kind
	binary.LittleEndian.PutUint32(s.block[1:], uint32(len(s.block)-blockHead))
	s.block = binary.LittleEndian.AppendUint32(s.block, crc32.Checksum(s.block, crcTable))
	err := s.write(s.block)
	s.block, s.last = s.block[:blockHead], ""
	return err
}

func (s *Writer) write(b []byte) error {
	s.sum.Write(b)
	if _, err := s.w.Write(b); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
