package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// sample is a state machine with objects, certificates and a deleted key.
func sample(t testing.TB, objects int) *fsm.FSM {
	t.Helper()
	f := fsm.New(store.New(store.Config{}))
	cmds := []fsm.Command{{Configuration: &fsm.Configuration{ClusterID: "test-cluster"}}}
	put := func(key, value string, expires int64) {
		cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: []byte(value), Expires: expires}))
	}
	for i := range objects {
		put(fmt.Sprintf("/registry/configmaps/default/c%06d", i), strings.Repeat("v", 20+i%50), int64(i%3))
	}
	put("/skiff/pki/ca.crt", "certificate", 0)
	put("/skiff/pki/ca.key", "key", 0)
	cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Delete, Key: "/registry/configmaps/default/c000000", Expect: fsm.Any}))
	entry, err := fsm.EncodeEntry(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 7, Term: 3, Data: entry})
	return f
}

func source(f *fsm.FSM) Source {
	return func(ctx context.Context, w io.Writer) error { return f.Capture().Write(ctx, w) }
}

func bytesSource(b []byte) Source {
	return func(ctx context.Context, w io.Writer) error { return FromReader(bytes.NewReader(b))(ctx, w) }
}

func save(t testing.TB, f *fsm.FSM) (path string, info *Info) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "snap")
	info, err := Save(t.Context(), source(f), path, SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return path, info
}

func names(t testing.TB, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestSaveAndStatus(t *testing.T) {
	f := sample(t, 50)
	path, saved := save(t, f)
	info, err := Status(path)
	if err != nil || *info != *saved {
		t.Fatalf("status %+v, %v; Save said %+v", info, err, saved)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	want := Info{
		Hash: info.Hash, Revision: f.Store().Revision(), TotalKeys: 51, TotalSize: st.Size(),
		Version: "1", ClusterID: "test-cluster", Index: 7, Term: 3, DataSize: info.DataSize,
		FeatureLevel: 1, Epoch: 1,
	}
	if *info != want || len(info.Hash) != 64 || info.DataSize != uint64(f.Store().View().Bytes()) {
		t.Errorf("got %+v, want %+v", *info, want)
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("beside the snapshot: %v", got)
	}
}

func TestSaveOverwritesOnlyWhenTold(t *testing.T) {
	path, _ := save(t, sample(t, 3))
	before, _ := os.ReadFile(path)
	if _, err := Save(t.Context(), source(sample(t, 4)), path, SaveOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("second save: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the refused save changed the file")
	}
	if _, err := Save(t.Context(), source(sample(t, 4)), path, SaveOptions{Overwrite: true}); err != nil {
		t.Error(err)
	}
	if info, err := Status(path); err != nil || info.TotalKeys != 5 {
		t.Errorf("after overwriting: %+v, %v", info, err)
	}
	if _, err := Save(t.Context(), source(sample(t, 4)), t.TempDir(), SaveOptions{Overwrite: true}); err == nil {
		t.Error("saved over a directory")
	}
	if _, err := Save(t.Context(), source(sample(t, 4)), filepath.Join(t.TempDir(), "no", "dir"), SaveOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("save into a directory that is not there: %v", err)
	}
}

func TestBrokenSaveLeavesNothing(t *testing.T) {
	var whole bytes.Buffer
	if err := sample(t, 500).Capture().Write(t.Context(), &whole); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole.Bytes())
	flipped[len(flipped)/2] ^= 4
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	boom := errors.New("connection reset")
	for _, c := range []struct {
		name   string
		ctx    context.Context
		source Source
		want   error
	}{
		{"fails at once", t.Context(), func(context.Context, io.Writer) error { return boom }, boom},
		{"fails in the middle", t.Context(), func(_ context.Context, w io.Writer) error {
			_, _ = w.Write(whole.Bytes()[:1000])
			return boom
		}, boom},
		{"ends too early without an error", t.Context(), bytesSource(whole.Bytes()[:1000]), fsm.ErrTruncated},
		{"damaged on the way", t.Context(), bytesSource(flipped), fsm.ErrDamaged},
		{"an error page", t.Context(), bytesSource([]byte("<html>502</html>")), fsm.ErrNotSnapshot},
		{"cancelled", cancelled, source(sample(t, 10)), context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			kept := filepath.Join(dir, "kept")
			if err := os.WriteFile(kept, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{filepath.Join(dir, "new"), kept} {
				if _, err := Save(c.ctx, c.source, path, SaveOptions{Overwrite: true}); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			}
			if got := names(t, dir); fmt.Sprint(got) != "[kept]" {
				t.Errorf("left behind: %v", got)
			}
			if b, _ := os.ReadFile(kept); string(b) != "old" {
				t.Errorf("the file that was there is now %q", b)
			}
		})
	}
}

// TestEveryDamageIsFound flips a bit of every byte of a snapshot, and cuts it at
// every length.
func TestEveryDamageIsFound(t *testing.T) {
	path, _ := save(t, sample(t, 12))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, content []byte, want ...error) {
		t.Helper()
		_, err := read(t.Context(), bytes.NewReader(content), func() {}, nil)
		if !Refused(err) {
			t.Errorf("%s: %v", what, err)
		}
		for _, w := range want {
			if !errors.Is(err, w) {
				t.Errorf("%s: %v, want %v", what, err, w)
			}
		}
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			refused(fmt.Sprintf("bit %#x of byte %d flipped", bit, i), bad)
		}
		if i > 0 {
			refused(fmt.Sprintf("cut to %d bytes", i), good[:i], fsm.ErrTruncated)
		}
	}
	refused("empty", nil, fsm.ErrNotSnapshot)
	refused("one byte more", append(bytes.Clone(good), 0), fsm.ErrDamaged)
	refused("twice", append(bytes.Clone(good), good...), fsm.ErrDamaged)
	later := bytes.Clone(good)
	later[8]++
	refused("of a later version", later, fsm.ErrSnapshotVersion)
}

// TestEveryBlockMatters takes out, doubles and exchanges whole blocks, whose own
// checksums stay right.
func TestEveryBlockMatters(t *testing.T) {
	path, _ := save(t, sample(t, 20_000))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start, blocks := good[:12], [][]byte(nil)
	for rest := good[12:]; len(rest) > 0; {
		n := 5 + int(rest[1]) + int(rest[2])<<8 + int(rest[3])<<16 + int(rest[4])<<24 + 4
		blocks, rest = append(blocks, rest[:n]), rest[n:]
	}
	if len(blocks) < 5 {
		t.Fatalf("only %d blocks", len(blocks))
	}
	for i := range blocks {
		without := append(append([][]byte{start}, blocks[:i]...), blocks[i+1:]...)
		doubled := append(append([][]byte{start}, blocks[:i+1]...), blocks[i:]...)
		for what, parts := range map[string][][]byte{"without": without, "doubled": doubled} {
			_, err := read(t.Context(), bytes.NewReader(bytes.Join(parts, nil)), func() {}, nil)
			if !Refused(err) {
				t.Errorf("%s block %d: %v", what, i, err)
			}
		}
		if i+1 < len(blocks) {
			swapped := append([][]byte{start}, blocks...)
			swapped[i+1], swapped[i+2] = swapped[i+2], swapped[i+1]
			_, err := read(t.Context(), bytes.NewReader(bytes.Join(swapped, nil)), func() {}, nil)
			if !Refused(err) {
				t.Errorf("blocks %d and %d exchanged: %v", i, i+1, err)
			}
		}
	}
}

func TestVerifyForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "text": "apiVersion: v1\nkind: List\n", "gzip": "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "zeros": strings.Repeat("\x00", 8192),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Status(path); !errors.Is(err, fsm.ErrNotSnapshot) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Status(dir); !errors.Is(err, fsm.ErrNotSnapshot) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Status(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestRestore(t *testing.T) {
	f := sample(t, 100)
	path, info := save(t, f)
	dir := filepath.Join(t.TempDir(), "new", "data")
	var steps []Step
	r, err := Restore(t.Context(), path, dir, RestoreOptions{Progress: func(s Step) { steps = append(steps, s) }})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(names(t, dir)) != "[node-id pki raft]" || fmt.Sprint(r.PKIFiles) != "[ca.crt ca.key]" {
		t.Errorf("made %v, certificates %v", names(t, dir), r.PKIFiles)
	}
	if got := names(t, filepath.Dir(dir)); len(got) != 1 {
		t.Errorf("beside the data dir: %v", got)
	}
	key := filepath.Join(dir, "pki", "ca.key")
	st, err := os.Stat(key)
	if b, _ := os.ReadFile(key); err != nil || string(b) != "key" || st.Mode().Perm() != 0o600 {
		t.Errorf("ca.key holds %q with mode %v, %v", b, st.Mode(), err)
	}
	if id, _ := os.ReadFile(filepath.Join(dir, "node-id")); string(id) != r.NodeID+"\n" || r.NodeID == "" {
		t.Errorf("node-id holds %q, want %q", id, r.NodeID)
	}
	if r.Revision != info.Revision+DefaultRevisionStep {
		t.Errorf("revision %d after %d", r.Revision, info.Revision)
	}
	if last := steps[len(steps)-1]; last != (Step{"restoring", info.TotalSize, info.TotalSize}) {
		t.Errorf("last progress %+v", last)
	}
	// Raft's snapshot is one of ours, and holds the same but for the revision and the epoch.
	files, _ := filepath.Glob(filepath.Join(dir, "raft", "snapshots", "*", "state.bin"))
	if len(files) != 1 {
		t.Fatalf("raft snapshots: %v", files)
	}
	inner, err := Status(files[0])
	if err != nil || inner.Revision != r.Revision || inner.TotalKeys != info.TotalKeys+1 || inner.ClusterID != info.ClusterID {
		t.Errorf("raft's snapshot: %+v, %v", inner, err)
	}
}

func TestRestoreOfSealedKeys(t *testing.T) {
	f := sample(t, 3)
	entry, err := fsm.EncodeEntry(fsm.One(fsm.Op{Type: fsm.Put, Key: "/skiff/keys/000001", Value: []byte("wrapped")}))
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 8, Term: 3, Data: entry})
	path, _ := save(t, f)
	parent := t.TempDir()
	dir := filepath.Join(parent, "data")
	if _, err := Restore(t.Context(), path, dir, RestoreOptions{}); !errors.Is(err, ErrSealed) {
		t.Errorf("without keys: %v", err)
	}
	wrong := errors.New("wrong key")
	for want, keys := range map[string]func(map[string][]byte) (map[string][]byte, error){
		"wrong key": func(map[string][]byte) (map[string][]byte, error) { return nil, wrong },
		"no name":   func(map[string][]byte) (map[string][]byte, error) { return map[string][]byte{"../x": nil}, nil },
	} {
		if _, err := Restore(t.Context(), path, dir, RestoreOptions{Keys: keys}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if got := names(t, parent); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	// What does not open anything works without.
	if _, err := Status(path); err != nil {
		t.Error(err)
	}
	if _, err := Verify(t.Context(), path, nil, nil); err != nil {
		t.Error(err)
	}
	r, err := Restore(t.Context(), path, dir, RestoreOptions{Keys: func(state map[string][]byte) (map[string][]byte, error) {
		if string(state["/skiff/keys/000001"]) != "wrapped" || state["/registry/configmaps/default/c000001"] != nil {
			t.Errorf("got %d keys", len(state))
		}
		return map[string][]byte{"cluster.key": []byte("opened")}, nil
	}})
	if err != nil || fmt.Sprint(r.PKIFiles) != "[cluster.key]" {
		t.Errorf("%+v, %v", r, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "pki", "cluster.key")); string(b) != "opened" {
		t.Errorf("cluster.key holds %q", b)
	}
}

func TestRestoreRefuses(t *testing.T) {
	path, _ := save(t, sample(t, 30))
	good, _ := os.ReadFile(path)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, good[:len(good)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	exists := t.TempDir()
	if err := os.Mkdir(filepath.Join(exists, "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	evil := fsm.New(store.New(store.Config{}))
	entry, _ := fsm.EncodeEntry(fsm.One(fsm.Op{Type: fsm.Put, Key: "/skiff/pki/../../etc/passwd", Value: []byte("x")}))
	evil.Apply(&raft.Log{Index: 1, Term: 1, Data: entry})
	evilPath, _ := save(t, evil)
	for _, c := range []struct {
		name, path, dir string
		ctx             context.Context
		opts            RestoreOptions
		want            string
	}{
		{"the directory of a member", path, exists, t.Context(), RestoreOptions{}, "raft already exists, so "},
		{"a truncated snapshot", bad, "", t.Context(), RestoreOptions{}, "truncated"},
		{"a cancelled context", path, "", cancelled, RestoreOptions{}, "canceled"},
		{"a step back", path, "", t.Context(), RestoreOptions{RevisionStep: -1}, "go back"},
		{"a step too far", path, "", t.Context(), RestoreOptions{RevisionStep: 1<<63 - 1}, "further"},
		{"a key that leaves the directory", evilPath, "", t.Context(), RestoreOptions{}, "no name for a file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			parent := t.TempDir()
			if c.dir == "" {
				c.dir = filepath.Join(parent, "data")
			}
			_, err := Restore(c.ctx, c.path, c.dir, c.opts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something with %q", err, c.want)
			}
			if got := names(t, parent); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
			if got := names(t, exists); len(got) != 1 {
				t.Errorf("wrote into what exists: %v", got)
			}
		})
	}
}

func big(b *testing.B) *fsm.FSM {
	f := fsm.New(store.New(store.Config{}))
	value := bytes.Repeat([]byte("0123456789abcdef"), 64)
	for i := range 1000 {
		var cmds []fsm.Command
		for j := range 100 {
			cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: fmt.Sprintf("/registry/configmaps/ns%03d/c%06d", j, i), Value: value, Expect: 0}))
		}
		entry, err := fsm.EncodeEntry(cmds...)
		if err != nil {
			b.Fatal(err)
		}
		f.Apply(&raft.Log{Index: uint64(i + 1), Term: 1, Data: entry})
	}
	return f
}

// BenchmarkSave saves 100,000 objects of 1 KiB.
func BenchmarkSave(b *testing.B) {
	f := big(b)
	dir := b.TempDir()
	for b.Loop() {
		if _, err := Save(b.Context(), source(f), filepath.Join(dir, "s"), SaveOptions{Overwrite: true}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestore restores 100,000 objects of 1 KiB into a data dir.
func BenchmarkRestore(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s")
	if _, err := Save(b.Context(), source(big(b)), path, SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		d := filepath.Join(dir, fmt.Sprint(i))
		if _, err := Restore(b.Context(), path, d, RestoreOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(d)
		b.StartTimer()
	}
}
