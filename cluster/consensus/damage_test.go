package consensus

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/damage"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// sinceSnapshot is the most writes that history makes after its newest snapshot.
const sinceSnapshot = 60

// history is the data dir of a stopped member with two snapshots, a log that goes
// on behind them and every small file, with a copy from an earlier stop.
func history(t *testing.T) (c Config, older string, state []byte) {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	c = Config{
		NodeID: "a", DataDir: filepath.Join(t.TempDir(), "data"), Listener: l, SnapshotEntries: sinceSnapshot, Trailing: 40, Reserve: 1 << 20,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	}
	m := start(t, c)
	m.awaitReady(t)
	n := 0
	write := func(until func() bool) {
		for ; !until(); n++ {
			m.put(t, fmt.Sprintf("/registry/things/k%06d", n%70), strings.Repeat("value ", 1+n%60), fsm.Any)
		}
	}
	write(func() bool { return n >= 30 })
	m.stop(t)
	older = filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(c.DataDir)); err != nil {
		t.Fatal(err)
	}
	m = m.restart(t)
	m.awaitReady(t)
	write(func() bool { return len(m.snaps.Files()) == 2 && n >= 190 })
	last := n + 25
	write(func() bool { return n == last })
	m.stop(t)
	if err := os.WriteFile(admissionFile(c.DataDir), fmt.Appendf(nil, `{"term":1,"index":7,"sum":%d}`, admission{Term: 1, Index: 7}.sum()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := raftdir.SaveEpoch(c.DataDir, raftdir.Epoch{Number: 1}); err != nil {
		t.Fatal(err)
	}
	return m.config, older, stateOf(t, m.config.FSM)
}

func stateOf(t *testing.T, f *fsm.FSM) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f.Capture().Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sums are the hashes of all files below dir.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// damageOutcome is what a member makes of one damage.
type damageOutcome struct{ refused, whole int }

// runDamages starts a member on a copy with each of the damages: it refuses with
// the file's name and what to do and leaves everything as it is, or it has the
// whole state.
//
// After a kill, and only then, what only the last write has held may be missing
// without a word to the caller: nothing tells a damaged record of it from one that
// was never written. So may the last few when the page number of the log comes to
// be, by the chance of where pages lie, that of the log as it was before them.
func runDamages(t *testing.T, every int, killed bool) {
	c, older, want := history(t)
	if killed {
		if err := os.Remove(filepath.Join(raftdir.Path(c.DataDir), "closed")); err != nil {
			t.Fatal(err)
		}
	}
	cases, err := damage.Cases(c.DataDir, older, func(file string) bool { return filepath.Base(file) == "lock" })
	if err != nil {
		t.Fatal(err)
	}
	table, newest := map[string]*damageOutcome{}, newestSnapshot(t, c.DataDir)
	for i, d := range cases {
		if i%every != 0 {
			continue
		}
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.CopyFS(dir, os.DirFS(c.DataDir)); err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(dir); err != nil {
			t.Fatal(err)
		}
		before := sums(t, dir)
		f := fsm.New(store.New(store.Config{}))
		err := tryStart(t, c, dir, f)
		kind := filepath.Base(d.File)
		if strings.Contains(d.File, filepath.Base(filepath.Dir(newest))) {
			kind = "newest " + kind
		} else if strings.Contains(d.File, "snapshots") {
			kind = "older " + kind
		}
		if table[kind] == nil {
			table[kind] = &damageOutcome{}
		}
		if err == nil {
			table[kind].whole++
			if testing.Verbose() {
				t.Logf("%s: starts", d)
			}
			if got := stateOf(t, f); !bytes.Equal(content(t, got), content(t, want)) && !(killed && revision(t, got) >= revision(t, want)-mayMiss(d)) {
				t.Errorf("%s: it starts with another state: revision %d instead of %d", d, revision(t, got), revision(t, want))
			}
		} else {
			table[kind].refused++
			if !errors.Is(err, ErrDamaged) || !containsAll(err.Error(), filepath.Join(dir, "raft"), filepath.Base(d.File), "skiff snapshot restore") {
				t.Errorf("%s: the error does not help: %v", d, err)
			}
			after := sums(t, dir)
			for path, sum := range before {
				if after[path] != sum && filepath.Base(path) != "reserve" {
					t.Errorf("%s: a refused start has changed %s (%v)", d, path, err)
				}
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	var kinds []string
	for k := range table {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	for _, k := range kinds {
		t.Logf("%-17s %4d refused, %4d with the whole state", k, table[k].refused, table[k].whole)
	}
}

// mayMiss is how many of the last writes a damage can hide after a kill.
func mayMiss(d damage.Case) int64 {
	switch {
	case strings.Contains(d.What, "meta page"):
		return 1
	case strings.Contains(d.What, "leaf of root") && strings.HasSuffix(d.What, "begin of the value"),
		strings.Contains(d.What, "branch of logs") && strings.HasSuffix(d.What, ", page"):
		return sinceSnapshot
	}
	return 0
}

// content is a snapshot without its header: a start moves the log on.
func content(t *testing.T, snapshot []byte) []byte {
	t.Helper()
	r, err := fsm.NewReader(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for {
		kv, err := r.Next()
		if err != nil {
			return out
		}
		out = fmt.Appendf(out, "%q %q %d %d\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision)
	}
}

func revision(t *testing.T, snapshot []byte) int64 {
	t.Helper()
	r, err := fsm.NewReader(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	return r.Header().Revision
}

// TestSomeDamages is TestEveryDamage in short.
func TestSomeDamages(t *testing.T) { runDamages(t, 17, false) }

// TestDamageWhileRunning flips bits of entries under a running member. Those that
// the state holds are replaced by a snapshot; a restart has everything.
func TestDamageWhileRunning(t *testing.T) {
	c, _, _ := history(t)
	c.Listener, c.FSM = listen(t, c.AdvertiseAddr), nil
	m := start(t, c)
	m.awaitReady(t)
	want := stateOf(t, m.config.FSM)
	b, err := os.ReadFile(m.log.Path())
	if err != nil {
		t.Fatal(err)
	}
	first, err := m.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(m.log.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; at++ { // each value that is there
		next := bytes.Index(b[at:], []byte("value value"))
		if next < 0 {
			break
		}
		at += next
		if _, err := f.WriteAt([]byte("w"), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	var hurt error
	last, _ := m.log.LastIndex()
	for i := first; i <= last && hurt == nil; i++ { // as for a member that lags
		hurt = m.log.GetLog(i, new(raft.Log))
	}
	if !errors.Is(hurt, ErrDamaged) {
		t.Fatalf("damaged entries are read: %v", hurt)
	}
	eventually(t, "the log is replaced", func() bool {
		first, _ := m.log.FirstIndex()
		for last, _ := m.log.LastIndex(); first > 0 && first <= last; first++ {
			if m.log.GetLog(first, new(raft.Log)) != nil {
				return false
			}
		}
		return true
	})
	m.put(t, "/after", "x", 0)
	m.stop(t)
	m = m.restart(t)
	m.awaitReady(t)
	if got := m.config.FSM.Store().View().Len(); got != strings.Count(string(content(t, want)), "\n")+1 {
		t.Errorf("%d keys after the restart", got)
	}
}

// TestSnapshotDamagedBeforeItIsSent: a new member gets the state although the
// leader's snapshot, which it needs, was damaged on the disk.
func TestSnapshotDamagedBeforeItIsSent(t *testing.T) {
	c, _, want := history(t)
	c.Listener, c.FSM, c.HeartbeatTimeout = listen(t, c.AdvertiseAddr), nil, hasty
	a := start(t, c)
	a.awaitReady(t)
	for _, file := range a.snaps.Files() {
		if err := os.Truncate(file, 2000); err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, Config{NodeID: "b", DataDir: t.TempDir(), Listener: listen(t, "127.0.0.1:0"), HeartbeatTimeout: hasty, Join: []string{c.AdvertiseAddr}})
	eventually(t, "the new member has the state", func() bool {
		return bytes.Equal(content(t, stateOf(t, b.config.FSM)), content(t, want))
	})
}

// TestAdviceWhereThereAreOthers: a member of a cluster gets its log from the others,
// and does not go on without a last write that may be missing.
func TestAdviceWhereThereAreOthers(t *testing.T) {
	c, _, _ := history(t)
	c.Bootstrap, c.Join = nil, []string{"192.0.2.1:6444"}
	meta := func(at int64) func(dir string) error {
		return func(dir string) error {
			f, err := os.OpenFile(raftdir.LogPath(dir), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{0xff}, at)
			return errors.Join(err, f.Close(), os.RemoveAll(filepath.Join(raftdir.Path(dir), "closed")))
		}
	}
	for name, hurt := range map[string]func(dir string) error{
		"log":           func(dir string) error { return os.Truncate(raftdir.LogPath(dir), 9000) },
		"snapshot":      func(dir string) error { return os.Truncate(newestSnapshot(t, dir), 100) },
		"admission":     func(dir string) error { return os.Truncate(admissionFile(dir), 3) },
		"a meta page":   meta(64),
		"the other one": meta(4096 + 64),
	} {
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.CopyFS(dir, os.DirFS(c.DataDir)); err != nil {
			t.Fatal(err)
		}
		if err := hurt(dir); err != nil {
			t.Fatal(err)
		}
		err := tryStart(t, c, dir, fsm.New(store.New(store.Config{})))
		if !errors.Is(err, ErrDamaged) || !containsAll(err.Error(), "skiff recover --rejoin --data-dir "+dir, "skiff snapshot restore") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
