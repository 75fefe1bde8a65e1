package raftdir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// Bolt maps its file and trusts what is in it: a page that points outside the
// file is a memory fault, on open in a goroutine of its own, where nobody can
// catch it. So the structure is checked before bolt sees the file.
//
// This is bolt's format version 2 on a little-endian machine. A page begins with
// its number (8 bytes), flags (2), element count (2) and the number of pages that
// follow it (4).
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHead   = 16
	flagBranch = 1
	flagLeaf   = 2

	leafBucket = 1 // flag of a leaf element that is a bucket
	maxDepth   = 64
)

// boltFile walks the pages of a bolt file.
type boltFile struct {
	r     io.ReaderAt
	page  int64  // size of a page
	end   uint64 // number of pages in use
	seen  map[uint64]bool
	stale bool // one of the two meta pages is invalid

	in    string // bucket that is walked; "" is the root
	found map[string]bool
}

type boltMeta struct{ pageSize, root, end, tx uint64 }

// checkBolt returns what is wrong with the structure of a bolt file. A file that
// does not exist or is empty is all right. stale says that bolt will fall back to
// the state before the last write: that write was cut off by a crash, or the page
// was damaged later.
func checkBolt(path string) (stale bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return false, err
	}
	b := &boltFile{r: f, seen: map[uint64]bool{}, found: map[string]bool{}}
	meta, err := b.meta()
	if err != nil {
		return false, err
	}
	b.page, b.end = int64(meta.pageSize), meta.end
	if need := int64(b.end) * b.page; st.Size() < need {
		return false, fmt.Errorf("file has %d bytes, %d are in use: it was truncated", st.Size(), need)
	}
	if err := b.walk(meta.root, bounds{}, 0); err != nil {
		return b.stale, err
	}
	// A crash while the file was made leaves none of the two.
	if len(b.found) == 1 {
		return b.stale, fmt.Errorf("one of the buckets %q and %q is missing", logBucket, stableBucket)
	}
	return b.stale, nil
}

// The buckets that raft-boltdb makes. Of a bucket by another name it would know
// nothing, and begin with an empty one.
const (
	logBucket    = "logs"
	stableBucket = "conf"
)

// meta returns the newer valid one of the two meta pages.
func (b *boltFile) meta() (best boltMeta, err error) {
	first, err0 := b.metaAt(0)
	size := int64(os.Getpagesize())
	if err0 == nil {
		size = int64(first.pageSize)
	}
	second, err1 := b.metaAt(size)
	b.stale = err0 != nil || err1 != nil
	switch {
	case err0 != nil && err1 != nil:
		return best, fmt.Errorf("no valid meta page: %w; %w", err0, err1)
	case err1 != nil || (err0 == nil && first.tx > second.tx):
		return first, nil
	}
	return second, nil
}

func (b *boltFile) metaAt(at int64) (m boltMeta, err error) {
	p := make([]byte, pageHead+64)
	if _, err := b.r.ReadAt(p, at); err != nil {
		return m, fmt.Errorf("read meta page at byte %d: %w", at, err)
	}
	le, body := binary.LittleEndian, p[pageHead:]
	sum := fnv.New64a()
	sum.Write(body[:56])
	switch {
	case le.Uint32(body) != boltMagic || le.Uint32(body[4:]) != boltVersion:
		return m, fmt.Errorf("meta page at byte %d is none", at)
	case le.Uint64(body[56:]) != sum.Sum64():
		return m, fmt.Errorf("checksum of meta page at byte %d does not match", at)
	}
	m = boltMeta{
		pageSize: uint64(le.Uint32(body[8:])),
		root:     le.Uint64(body[16:]), end: le.Uint64(body[40:]), tx: le.Uint64(body[48:]),
	}
	if m.pageSize < 1024 || m.pageSize > 1<<20 {
		return m, fmt.Errorf("page size of %d bytes", m.pageSize)
	}
	return m, nil
}

// bounds are those that the pages above set to the keys of a page: at least the
// first, and less than the second. nil is no bound.
type bounds struct{ least, below []byte }

// walk checks a page and those below it.
func (b *boltFile) walk(id uint64, in bounds, depth int) error {
	p, err := b.read(id)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("page %d: more than %d levels deep", id, maxDepth)
	}
	return b.elements(p, id, in, depth, false)
}

// read returns a page with those that follow it, and marks them as seen.
func (b *boltFile) read(id uint64) ([]byte, error) {
	if id < 2 || id >= b.end {
		return nil, fmt.Errorf("a page refers to page %d of %d", id, b.end)
	}
	head := make([]byte, pageHead)
	if _, err := b.r.ReadAt(head, int64(id)*b.page); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	le := binary.LittleEndian
	n := uint64(le.Uint32(head[12:])) + 1
	switch flags := le.Uint16(head[8:]); {
	case le.Uint64(head) != id:
		return nil, fmt.Errorf("page %d calls itself page %d", id, le.Uint64(head))
	case flags != flagBranch && flags != flagLeaf:
		return nil, fmt.Errorf("page %d has flags %#x", id, flags)
	case n > b.end-id:
		return nil, fmt.Errorf("page %d extends over %d pages, to after the last", id, n)
	}
	for i := id; i < id+n; i++ {
		if b.seen[i] {
			return nil, fmt.Errorf("page %d is referred to twice", i)
		}
		b.seen[i] = true
	}
	p := make([]byte, int64(n)*b.page)
	if _, err := b.r.ReadAt(p, int64(id)*b.page); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return p, nil
}

// elements checks the elements of a page, and the pages they refer to. An inline
// page has no room to spare.
func (b *boltFile) elements(p []byte, id uint64, in bounds, depth int, inline bool) error {
	le := binary.LittleEndian
	branch, count := le.Uint16(p[8:]) == flagBranch, int(le.Uint16(p[10:]))
	if branch && count == 0 {
		return fmt.Errorf("page %d is a branch without elements", id)
	}
	if pageHead+elementHead*count > len(p) {
		return fmt.Errorf("page %d has %d elements, more than fit", id, count)
	}
	all := make([]boltElement, count)
	end := pageHead + elementHead*count // keys and values follow one another without gaps
	for i := range all {
		var ok bool
		if all[i], ok = elementAt(p, i, branch); !ok {
			return fmt.Errorf("element %d of page %d lies outside of it", i, id)
		}
		if all[i].at != end {
			return fmt.Errorf("element %d of page %d begins at byte %d, should at %d", i, id, all[i].at, end)
		}
		end += len(all[i].key) + len(all[i].value)
		key := all[i].key
		if i > 0 && bytes.Compare(key, all[i-1].key) <= 0 ||
			in.least != nil && bytes.Compare(key, in.least) < 0 ||
			in.below != nil && bytes.Compare(key, in.below) >= 0 {
			return fmt.Errorf("element %d of page %d is out of order", i, id)
		}
	}
	if count > 0 && b.page > 0 && int64(end) <= int64(len(p))-b.page || inline && end != len(p) {
		return fmt.Errorf("page %d ends at byte %d of %d", id, end, len(p))
	}
	for i, e := range all {
		var err error
		switch {
		case branch:
			child := bounds{least: e.key, below: in.below}
			if i+1 < count {
				child.below = all[i+1].key
			}
			err = b.walk(e.page, child, depth+1)
		case e.flags == leafBucket:
			if name := string(e.key); b.in != "" || name != logBucket && name != stableBucket {
				return fmt.Errorf("element %d of page %d is a bucket %q in %q", i, id, name, b.in)
			}
			b.in, b.found[string(e.key)] = string(e.key), true
			err = b.bucket(e.value, id, depth)
			b.in = ""
		case e.flags != 0 || b.in == "":
			err = fmt.Errorf("element %d of page %d has flags %#x in %q", i, id, e.flags, b.in)
		case b.in == logBucket && len(e.key) != 8:
			err = fmt.Errorf("element %d of page %d has a key of %d bytes", i, id, len(e.key))
		case b.in == stableBucket:
			if _, err = openValue(e.key, e.value); err != nil {
				err = fmt.Errorf("element %d of page %d: %w", i, id, err)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// boltElement is an element of a branch (key and page) or of a leaf.
type boltElement struct {
	key, value []byte
	at         int // where the key begins in the page
	page       uint64
	flags      uint32
}

// elementHead is the size of what comes before keys and values: of a branch
// position (4), key size (4) and page (8), of a leaf flags, position, key size
// and value size (4 each). Positions count from the element's head.
const elementHead = 16

func elementAt(p []byte, i int, branch bool) (e boltElement, ok bool) {
	le := binary.LittleEndian
	from := pageHead + elementHead*i
	p = p[from:]
	if branch {
		pos, n := uint64(le.Uint32(p)), uint64(le.Uint32(p[4:]))
		if pos+n > uint64(len(p)) {
			return e, false
		}
		return boltElement{at: from + int(pos), key: p[pos : pos+n], page: le.Uint64(p[8:])}, true
	}
	pos, n, v := uint64(le.Uint32(p[4:])), uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[12:]))
	if pos+n+v > uint64(len(p)) {
		return e, false
	}
	return boltElement{at: from + int(pos), key: p[pos : pos+n], value: p[pos+n : pos+n+v], flags: le.Uint32(p)}, true
}

// bucket checks a bucket: its root page, or the small page within it.
func (b *boltFile) bucket(v []byte, id uint64, depth int) error {
	if len(v) < 16 {
		return fmt.Errorf("a bucket in page %d is cut off", id)
	}
	if root := binary.LittleEndian.Uint64(v); root != 0 {
		if len(v) != 16 {
			return fmt.Errorf("a bucket in page %d has %d bytes", id, len(v))
		}
		return b.walk(root, bounds{}, depth+1)
	}
	inline := v[16:]
	if len(inline) < pageHead || binary.LittleEndian.Uint16(inline[8:]) != flagLeaf || depth > maxDepth {
		return fmt.Errorf("a bucket in page %d is malformed", id)
	}
	return b.elements(inline, id, bounds{}, depth+1, true)
}
