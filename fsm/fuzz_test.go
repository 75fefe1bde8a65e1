package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// FuzzDecodeEntry: whatever is decoded can be encoded again and means the same,
// and nothing but an unknown command or a malformed entry panics in Apply.
func FuzzDecodeEntry(f *testing.F) {
	for _, e := range splitEntries(f, readGolden(f, "entries.bin")) {
		f.Add(e)
	}
	f.Add([]byte{})
	f.Add([]byte{entryVersion, 99, 0})
	f.Add(entry(f, Command{Restore: aRestore(strings.Repeat("0f", 32))}))
	f.Fuzz(func(t *testing.T, data []byte) {
		cmds, err := DecodeEntry(data)
		if err != nil {
			if perr := mustPanic(func() { newFSM().Apply(&raft.Log{Data: data}) }); perr == nil {
				t.Errorf("Apply took what can't be decoded: %v", err)
			}
			return
		}
		again, err := EncodeEntry(cmds...)
		if err != nil {
			t.Fatalf("decoded, but not encoded again: %v", err)
		}
		second, err := DecodeEntry(again)
		if err != nil || len(second) != len(cmds) {
			t.Fatalf("%d commands became %d, %v", len(cmds), len(second), err)
		}
		for i := range cmds {
			if a, b := describe(cmds[i]), describe(second[i]); a != b {
				t.Errorf("command %d: %s became %s", i, a, b)
			}
		}
		if RestoreIn(data) != nil { // there are no files
			return
		}
		a, b := newFSM(), newFSM()
		a.Apply(&raft.Log{Index: 1, Term: 1, Data: data})
		b.Apply(&raft.Log{Index: 1, Term: 1, Data: again})
		if !bytes.Equal(snapshot(t, a), snapshot(t, b)) {
			t.Error("the same commands had other effects")
		}
	})
}

// FuzzSnapshot: a snapshot is refused, with one of the known reasons, or restored
// to something that gives an equal snapshot.
func FuzzSnapshot(f *testing.F) {
	golden := readGolden(f, "snapshot.bin")
	f.Add(golden)
	f.Add(golden[:len(golden)/2])
	f.Add([]byte(snapshotMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		a := newFSM()
		if err := a.Restore(io.NopCloser(bytes.NewReader(data))); err != nil {
			known := errors.Is(err, ErrNotSnapshot) || errors.Is(err, ErrSnapshotVersion) ||
				errors.Is(err, ErrTruncated) || errors.Is(err, ErrDamaged)
			if !known {
				t.Errorf("refused without a reason: %v", err)
			}
			if a.Store().View().Len() != 0 {
				t.Error("the refused snapshot left keys behind")
			}
			return
		}
		first := snapshot(t, a)
		b := newFSM()
		if err := b.Restore(io.NopCloser(bytes.NewReader(first))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, snapshot(t, b)) {
			t.Error("the snapshot of what was restored is another")
		}
	})
}

// FuzzSnapshotBlocks gives bodies with right checksums, which mutated bytes of a
// whole file never have.
func FuzzSnapshotBlocks(f *testing.F) {
	body := func(kind int) []byte { // of the golden snapshot, which has one block of each kind
		rest := readGolden(f, "snapshot.bin")[len(snapshotMagic)+4:]
		for {
			n := int(binary.LittleEndian.Uint32(rest[1:]))
			if int(rest[0]) == kind {
				return rest[blockHead : blockHead+n]
			}
			rest = rest[blockHead+n+4:]
		}
	}
	f.Add(body(blockHeader), body(blockKeys), body(blockEnd)[:2])
	f.Fuzz(func(t *testing.T, header, keys, counts []byte) {
		b := binary.LittleEndian.AppendUint32([]byte(snapshotMagic), 1)
		block := func(kind byte, body []byte) {
			start := len(b)
			b = binary.LittleEndian.AppendUint32(append(b, kind), uint32(len(body)))
			b = append(b, body...)
			b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], crcTable))
		}
		block(blockHeader, header)
		block(blockKeys, keys)
		sum := sha256.Sum256(b)
		block(blockEnd, append(bytes.Clone(counts), sum[:]...))
		a := newFSM()
		if err := a.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrSnapshotVersion) {
				t.Errorf("refused as %v", err)
			}
			return
		}
		c := newFSM()
		if err := c.Restore(io.NopCloser(bytes.NewReader(snapshot(t, a)))); err != nil {
			t.Fatalf("what was restored can't be restored again: %v", err)
		}
	})
}
