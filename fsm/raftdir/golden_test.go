package raftdir

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/golden"
	"github.com/skiff-sh/skiff/fsm/store"
)

// goldenCommands are entries with every command of the log's first version; see
// the tests of package fsm.
func goldenCommands(t testing.TB) (out [][]byte) {
	t.Helper()
	b, err := os.ReadFile("../testdata/v1/entries.bin")
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		out, b = append(out, b[k:k+int(n)]), b[k+int(n):]
	}
	b, err = os.ReadFile("../testdata/v1/restore.bin")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, b)
}

var goldenEpoch = Epoch{Number: 2, ID: "abcdefghijklmnop", Cause: Restored, At: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), By: "one"}

// TestGoldenLog reads the log, votes, snapshot and epoch of every release.
func TestGoldenLog(t *testing.T) {
	commands := goldenCommands(t)
	config := raft.Configuration{Servers: []raft.Server{{ID: "aaaaaaaaaaaaaaaa", Address: "192.0.2.1:6444"}, {Suffrage: raft.Nonvoter, ID: "b", Address: "192.0.2.2:6444"}}}
	if golden.Update(t) {
		dir := golden.Fresh(t, "log")
		writeGoldenLog(t, dir, commands, config)
	}
	golden.Each(t, "log", func(t *testing.T, dir string) {
		data := golden.Copy(t, dir)
		snaps, err := OpenSnapshots(data, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		if err := snaps.VerifyState(fsm.Check); err != nil || !snaps.Taken {
			t.Errorf("snapshot: %v, taken here: %v", err, snaps.Taken)
		}
		all, err := snaps.List()
		if err != nil || len(all) != 1 || all[0].Index != 3 || len(all[0].Configuration.Servers) != 2 {
			t.Fatalf("snapshots: %+v, %v", all, err)
		}
		_, r, err := snaps.Open(all[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		f := fsm.New(store.New(store.Config{}))
		if err := f.Restore(r); err != nil {
			t.Fatal(err)
		}
		l, c, err := OpenLog(Options{DataDir: data, SnapshotIndex: 3, SnapshotTaken: true, Reserve: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if c.First != 1 || c.Last != uint64(len(commands)+1) {
			t.Errorf("the log has entries %d to %d", c.First, c.Last)
		}
		var e raft.Log
		if err := l.GetLog(1, &e); err != nil || e.Type != raft.LogConfiguration || len(raft.DecodeConfiguration(e.Data).Servers) != 2 {
			t.Errorf("configuration: %+v, %v", e, err)
		}
		for i, want := range commands {
			if err := l.GetLog(uint64(i+2), &e); err != nil || !bytes.Equal(e.Data, want) || e.Term != 2 {
				t.Errorf("entry %d: %+v, %v", i+2, e, err)
			}
		}
		if term, err := l.GetUint64([]byte("CurrentTerm")); term != 3 || err != nil {
			t.Errorf("term %d, %v", term, err)
		}
		if vote, err := l.Get([]byte("LastVoteCand")); string(vote) != "192.0.2.1:6444" || err != nil {
			t.Errorf("vote %q, %v", vote, err)
		}
		if got, err := LoadEpoch(data); err != nil || fmt.Sprint(got) != fmt.Sprint(goldenEpoch) || !got.Same(goldenEpoch) {
			t.Errorf("epoch %+v, %v", got, err)
		}
		if err := CheckOwner(data, "aaaaaaaaaaaaaaaa"); err != nil || Owner(data) == "" {
			t.Errorf("owner %q, %v", Owner(data), err)
		}
	})
}

func writeGoldenLog(t *testing.T, dir string, commands [][]byte, config raft.Configuration) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(Path(dir), 0o755))
	l, _, err := OpenLog(Options{DataDir: dir, Reserve: 1 << 20})
	must(err)
	must(l.SetUint64([]byte("CurrentTerm"), 3))
	must(l.SetUint64([]byte("LastVoteTerm"), 3))
	must(l.Set([]byte("LastVoteCand"), []byte("192.0.2.1:6444")))
	entries := []*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(config)}}
	for i, c := range commands {
		entries = append(entries, &raft.Log{Index: uint64(i + 2), Term: 2, Data: c})
	}
	must(l.StoreLogs(entries))
	f := fsm.New(store.New(store.Config{}))
	f.ApplyBatch(entries[:3])
	snaps, err := OpenSnapshots(dir, hclog.NewNullLogger())
	must(err)
	sink, err := snaps.Create(raft.SnapshotVersionMax, 3, 2, config, 1, addresses{})
	must(err)
	must(f.Capture().Write(t.Context(), sink.(io.Writer)))
	must(sink.Close())
	must(SaveEpoch(dir, goldenEpoch))
	must(SetOwner(dir, "aaaaaaaaaaaaaaaa"))
	must(l.Close())
	must(os.Remove(filepath.Join(Path(dir), "reserve"))) // is made again
}
