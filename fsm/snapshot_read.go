package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/skiff-sh/skiff/fsm/store"
)

var (
	// ErrNotSnapshot says that the input is something else.
	ErrNotSnapshot = errors.New("not a skiff snapshot")
	// ErrSnapshotVersion says that a later skiff wrote the snapshot, or that it is
	// of a feature level that this one does not know.
	ErrSnapshotVersion = errors.New("snapshot has a format version that this skiff does not know")
	// ErrTruncated says that the input ends before the snapshot does.
	ErrTruncated = errors.New("snapshot is truncated")
	// ErrDamaged says that the content is not what was written.
	ErrDamaged = errors.New("snapshot is damaged")
)

// Summary is what is known after a snapshot has been read to its end.
type Summary struct {
	Header
	Keys    uint64 // number of keys
	Bytes   uint64 // of all keys and values
	Version uint32 // of the format
	Size    int64  // of the file
	Hash    string // SHA-256 of everything before the end block, in hex
}

// Reader reads a snapshot and verifies it on the way. Only when Next has
// returned io.EOF is it known that everything read was right.
type Reader struct {
	r       *bufio.Reader
	sum     hash.Hash
	at      int64 // bytes read
	version uint32
	header  Header
	block   []byte // buffer of the present block
	rest    []byte // what of the block's body has not been read
	last    []byte // the key before in the block
	prev    string // the key before
	keys    uint64
	bytes   uint64
	done    *Summary
}

// NewReader reads up to the first key. Its errors are ErrNotSnapshot,
// ErrSnapshotVersion, ErrTruncated, ErrDamaged, or those of src.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{r: bufio.NewReaderSize(src, 256<<10), sum: sha256.New()}
	start := make([]byte, len(snapshotMagic)+4)
	n, err := io.ReadFull(r.r, start)
	if n < len(snapshotMagic) || string(start[:len(snapshotMagic)]) != snapshotMagic {
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("read snapshot: %w", err)
		}
		if n > 0 && n < len(snapshotMagic) && snapshotMagic[:n] == string(start[:n]) {
			return nil, r.short("first bytes")
		}
		return nil, fmt.Errorf("%w: it does not begin as one", ErrNotSnapshot)
	}
	if err != nil {
		return nil, r.readError(err, "format version")
	}
	r.sum.Write(start)
	r.at = int64(n)
	r.version = binary.LittleEndian.Uint32(start[len(snapshotMagic):])
	if r.version == 0 {
		return nil, r.damaged("format version 0, which there never was")
	}
	if r.version > FormatVersion {
		return nil, fmt.Errorf("%w: version %d, this one reads up to %d", ErrSnapshotVersion, r.version, FormatVersion)
	}
	kind, body, err := r.next()
	if err != nil {
		return nil, err
	}
	if kind != blockHeader {
		return nil, r.damaged("block of kind %d where the header should be", kind)
	}
	d := decoder{b: body}
	r.header = Header{Revision: d.int63(), Index: d.uvarint(), Term: d.uvarint(), Format: r.version}
	decodeHeader(&d, &r.header)
	r.header.ClusterID = string(d.b)
	if d.err != nil || r.header.Revision < 1 {
		return nil, r.damaged("header is malformed")
	}
	return r, nil
}

// Header is what the snapshot says about itself.
func (r *Reader) Header() Header { return r.header }

// Summary is known once Next has returned io.EOF; before it is nil.
func (r *Reader) Summary() *Summary { return r.done }

// Offset is how many bytes have been read, for showing progress.
func (r *Reader) Offset() int64 { return r.at }

// Next returns the keys in ascending order. io.EOF means that the snapshot was
// read to its end and that all of it is as it was written.
func (r *Reader) Next() (*store.KeyValue, error) {
	if r.done != nil {
		return nil, io.EOF
	}
	for len(r.rest) == 0 {
		before := r.sum.Sum(nil)
		kind, body, err := r.next()
		if err != nil {
			return nil, err
		}
		switch kind {
		case blockKeys:
			if len(body) == 0 {
				return nil, r.damaged("empty block of keys")
			}
			r.rest, r.last = body, r.last[:0]
		case blockEnd:
			return nil, r.end(body, before)
		default:
			return nil, r.damaged("block of kind %d among the keys", kind)
		}
	}
	return r.key()
}

// key decodes the next key of the present block.
func (r *Reader) key() (*store.KeyValue, error) {
	d := decoder{b: r.rest}
	shared := d.uvarint()
	rest := d.bytes()
	create, later, expires := d.int63(), d.int63(), d.int63()
	value := d.bytes()
	if d.err != nil || shared > uint64(len(r.last)) {
		return nil, r.damaged("key after %q is malformed", r.prev)
	}
	r.rest = d.b
	r.last = append(r.last[:shared], rest...)
	kv := &store.KeyValue{
		Key: string(r.last), Value: bytes.Clone(value),
		CreateRevision: create, ModRevision: create + later, Expires: expires,
	}
	switch {
	case kv.Key == "" || (r.keys > 0 && kv.Key <= r.prev):
		return nil, r.damaged("key %q does not sort after %q", kv.Key, r.prev)
	case create < 1 || kv.ModRevision < create || kv.ModRevision > r.header.Revision:
		return nil, r.damaged("key %q has revisions %d and %d, the store is at %d", kv.Key, create, kv.ModRevision, r.header.Revision)
	}
	if kv.Key == LevelKey {
		if err := CheckLevel(parseLevel(kv.Value)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshotVersion, err)
		}
	}
	r.prev = kv.Key
	r.keys++
	r.bytes += uint64(len(kv.Key) + len(kv.Value))
	return kv, nil
}

// end checks the end block against what was read. It returns io.EOF if all is
// well.
func (r *Reader) end(body, sum []byte) error {
	d := decoder{b: body}
	keys, size := d.uvarint(), d.uvarint()
	switch {
	case d.err != nil || len(d.b) != sha256.Size:
		return r.damaged("end is malformed")
	case keys != r.keys || size != r.bytes:
		return r.damaged("%d keys of %d bytes, should be %d of %d", r.keys, r.bytes, keys, size)
	case !bytes.Equal(d.b, sum):
		return r.damaged("SHA-256 does not match")
	}
	if _, err := r.r.ReadByte(); err == nil {
		return r.damaged("more data follows the end")
	} else if err != io.EOF {
		return fmt.Errorf("read snapshot: %w", err)
	}
	r.done = &Summary{
		Header: r.header, Keys: r.keys, Bytes: r.bytes,
		Version: r.version, Size: r.at, Hash: hex.EncodeToString(sum),
	}
	return io.EOF
}

// next reads one block and checks its sum.
func (r *Reader) next() (kind byte, body []byte, err error) {
	r.block = append(r.block[:0], make([]byte, blockHead)...)
	if _, err := io.ReadFull(r.r, r.block); err != nil {
		return 0, nil, r.readError(err, "block")
	}
	kind = r.block[0]
	n := int(binary.LittleEndian.Uint32(r.block[1:]))
	if n > maxBlock {
		return 0, nil, r.damaged("block of %d bytes", n)
	}
	// Grow as data arrives: a damaged length must not cost its size in memory.
	for want := n + 4; want > 0; {
		step := min(want, 1<<20)
		old := len(r.block)
		if cap(r.block) < old+step {
			r.block = append(make([]byte, 0, max(2*cap(r.block), old+step)), r.block...)
		}
		r.block = r.block[:old+step]
		if _, err := io.ReadFull(r.r, r.block[old:]); err != nil {
			return 0, nil, r.readError(err, "block")
		}
		want -= step
	}
	end := blockHead + n
	if crc32.Checksum(r.block[:end], crcTable) != binary.LittleEndian.Uint32(r.block[end:]) {
		return 0, nil, r.damaged("checksum of block does not match")
	}
	if kind < blockHeader || kind > blockEnd {
		return 0, nil, r.damaged("block of unknown kind %d", kind)
	}
	r.sum.Write(r.block)
	r.at += int64(len(r.block))
	return kind, r.block[blockHead:end], nil
}

func (r *Reader) readError(err error, what string) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return r.short(what)
	}
	return fmt.Errorf("read snapshot: %w", err)
}

func (r *Reader) short(what string) error {
	return fmt.Errorf("%w: it ends within the %s that begins at byte %d", ErrTruncated, what, r.at)
}

func (r *Reader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrDamaged, r.at, fmt.Sprintf(format, args...))
}

// int63 is a uvarint that fits an int64.
func (d *decoder) int63() int64 {
	v := d.uvarint()
	if v > math.MaxInt64 {
		d.fail()
		return 0
	}
	return int64(v)
}
