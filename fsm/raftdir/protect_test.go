package raftdir

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestOlderLog: a log that is older than when it was closed is refused, as is one
// that ends before the snapshot that was taken of it.
func TestOlderLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop := func(from, to, term uint64) []byte {
		t.Helper()
		l, _ := mustOpen(t, dir)
		if err := errors.Join(l.SetUint64([]byte(keyTerm), term), l.StoreLogs(entries(from, to, 10)), l.Close()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(LogPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := stop(1, 5, 9)
	second := stop(6, 9, 9)
	voted := stop(10, 12, 10)
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(LogPath(dir), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		log     []byte
		closed  bool // the file is there
		taken   bool // a snapshot up to 7
		refused string
	}{
		{"as it was", voted, true, false, ""},
		{"older", second, true, false, "its term is 9, and was 10"},
		{"older, after a kill", second, false, false, ""},
		{"before the snapshot", first, false, true, "ends with entry 5, and the snapshot that was taken of it with 7"},
		{"a snapshot that was sent", first, false, false, ""},
	} {
		put(c.log)
		mark, err := os.ReadFile(markPath(LogPath(dir)))
		if !c.closed {
			err = os.Remove(markPath(LogPath(dir)))
		}
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := OpenLog(Options{DataDir: dir, SnapshotIndex: 7, SnapshotTaken: c.taken, Reserve: 1 << 20})
		if c.refused == "" && err != nil || c.refused != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.refused)
		}
		if err == nil {
			if _, err := os.Stat(markPath(LogPath(dir))); err == nil {
				t.Errorf("%s: a log that is open counts as closed", c.name)
			}
			l.Close()
		}
		if err := os.WriteFile(markPath(LogPath(dir)), mark, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVotesAreSealed: a vote or term that was changed is not read.
func TestVotesAreSealed(t *testing.T) {
	t.Parallel()
	for key := range stableKeys {
		sealed := sealValue([]byte(key), []byte("value"))
		if got, err := openValue([]byte(key), sealed); err != nil || string(got) != "value" {
			t.Errorf("%s: %q, %v", key, got, err)
		}
		for i := range sealed {
			for bit := range 8 {
				sealed[i] ^= 1 << bit
				if got, err := openValue([]byte(key), sealed); err == nil {
					t.Errorf("%s: bit %d of byte %d flipped: %q", key, bit, i, got)
				}
				sealed[i] ^= 1 << bit
			}
		}
		for other := range stableKeys {
			if _, err := openValue([]byte(other), sealed); (err == nil) != (other == key) {
				t.Errorf("the value of %s as that of %s: %v", key, other, err)
			}
		}
	}
	if _, err := openValue([]byte("Other"), sealValue([]byte("Other"), nil)); err == nil {
		t.Error("a key that is not ours")
	}
}

// TestOwner: the ID of the log's member.
func TestOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(CheckOwner(dir, "a"), SetOwner(dir, "a"), SetOwner(dir, "a"), CheckOwner(dir, "a")); err != nil || Owner(dir) != "a" {
		t.Errorf("%q, %v", Owner(dir), err)
	}
	if err := CheckOwner(dir, "b"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(dir, "node-id")) {
		t.Errorf("another: %v", err)
	}
	if err := os.Truncate(ownerPath(dir), 20); err != nil {
		t.Fatal(err)
	}
	if err := CheckOwner(dir, "b"); err != nil || Owner(dir) != "" {
		t.Errorf("unknown: %q, %v", Owner(dir), err)
	}
}

// TestSentSnapshotIsChecked: what another member sends becomes a snapshot only when
// all of it was read and found whole; else nothing is left.
func TestSentSnapshotIsChecked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(5)
	s.LastIndex = func() uint64 { return last }
	s.Check = func(r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && string(b) != "a whole snapshot" {
			err = errors.New("it is none")
		}
		return err
	}
	send := func(index uint64, parts ...string) error {
		sink, err := s.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{}, 1, addresses{})
		if err != nil {
			return err
		}
		for _, p := range parts {
			if _, err := sink.Write([]byte(p)); err != nil {
				return errors.Join(err, sink.Cancel())
			}
		}
		return sink.Close()
	}
	if err := send(9, "a whole", " snapshop"); err == nil || !strings.Contains(err.Error(), "it is none") {
		t.Errorf("a damaged one: %v", err)
	}
	if names, err := os.ReadDir(s.dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if err := send(9, "a whole", " snapshot"); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		last, index uint64
		taken       bool
	}{{8, 9, false}, {20, 12, true}} {
		last = c.last
		if c.taken {
			if err := send(c.index, "what this member has written itself"); err != nil {
				t.Error(err)
			}
		}
		again, err := OpenSnapshots(dir, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		if all, err := again.List(); err != nil || len(all) != 1 || all[0].Index != c.index || again.Taken != c.taken {
			t.Errorf("%+v, %v, taken here: %v", all, err, again.Taken)
		}
	}
}
