package fsm

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/golden"
)

const goldenDir = "testdata/v1"

// goldenEntries use every command, in every form.
func goldenEntries(t testing.TB) [][]byte {
	return [][]byte{
		entry(t, Command{Configuration: &Configuration{ClusterID: "golden"}}),
		entry(t, put("/registry/pods/default/a", "first", 0), put("/registry/pods/default/a", "refused", 0)),
		entry(t, put("/registry/pods/default/a", "second", 2), put("/registry/pods/default/b", "", Any)),
		entry(t,
			One(Op{Type: Put, Key: "/registry/events/default/e", Value: []byte("gone soon"), Expires: 1_800_000_000}),
			Batch(Op{Type: Put, Key: "/registry/pods/kube-system/c", Value: []byte{0, 1, 2, 255}},
				Op{Type: Delete, Key: "/registry/pods/default/b", Expect: 4})),
		entry(t, Batch(Op{Type: Put, Key: "/registry/never", Expect: 0}, Op{Type: Delete, Key: "/none", Expect: Any})),
		entry(t, put("/skiff/pki/ca.crt", "certificate", 0), One(Op{Type: Delete, Key: "/registry/pods/default/a", Expect: 3})),
	}
}

func writeGolden(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(goldenDir, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(goldenDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// splitEntries reads entries that are each preceded by their length.
func splitEntries(t testing.TB, b []byte) (out [][]byte) {
	t.Helper()
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			t.Fatal("the golden entries are malformed")
		}
		out, b = append(out, b[k:k+int(n)]), b[k+int(n):]
	}
	return out
}

// TestGolden reads the entries of version 1 and checks that they still lead to
// the snapshot of version 1, and that this version writes the same.
func TestGolden(t *testing.T) {
	entries := goldenEntries(t)
	var joined []byte
	for _, e := range entries {
		joined = append(binary.AppendUvarint(joined, uint64(len(e))), e...)
	}
	if golden.Update(t) {
		writeGolden(t, "entries.bin", joined)
	}
	old := readGolden(t, "entries.bin")
	if !bytes.Equal(joined, old) {
		t.Error("entries are encoded in another way than in version 1")
	}
	f := newFSM()
	for i, e := range splitEntries(t, old) {
		f.Apply(&raft.Log{Index: uint64(10 + i), Term: 2, Data: e})
	}
	got := snapshot(t, f)
	if golden.Update(t) {
		writeGolden(t, "snapshot.bin", got)
	}
	if !bytes.Equal(got, readGolden(t, "snapshot.bin")) {
		t.Error("the snapshot differs from that of version 1")
	}
	r, err := NewReader(bytes.NewReader(readGolden(t, "snapshot.bin")))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Header{ClusterID: "golden", Revision: 9, Index: 15, Term: 2, Format: 1}); r.Header() != want {
		t.Errorf("header %+v, want %+v", r.Header(), want)
	}
}
