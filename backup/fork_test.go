package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// The state after a fork holds what is in snapshot and log, and the former log is
// kept.
func TestFork(t *testing.T) {
	m := sample(t, 20)
	rollout, err := fsm.EncodeEntry(fsm.One(fsm.Op{Type: fsm.Put, Key: "/skiff/upgrade/rollout", Value: []byte("{}"), Expect: fsm.Any}))
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(&raft.Log{Index: 8, Term: 3, Data: rollout})
	path, _ := save(t, m)
	dir := filepath.Join(t.TempDir(), "data")
	restored, err := Restore(t.Context(), path, dir, RestoreOptions{NodeID: "a", By: "host-a", Files: func(_ *Info, own map[string][]byte) (map[string][]byte, error) {
		return map[string][]byte{"more": own["/skiff/pki/ca.crt"]}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	first := restored.Epoch
	if got, err := raftdir.LoadEpoch(dir); err != nil || !got.Same(first) || got.Number != 2 || got.Cause != raftdir.Restored || got.By != "host-a" {
		t.Errorf("epoch %+v, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "more")); err != nil || string(b) != "certificate" {
		t.Errorf("further file %q, %v", b, err)
	}
	if !raftdir.Unasked(dir) {
		t.Error("nobody is to be asked")
	}
	log, _, err := raftdir.OpenLog(raftdir.Options{DataDir: dir, SnapshotIndex: restored.Snapshot.Index})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := fsm.EncodeEntry(fsm.One(fsm.Op{Type: fsm.Put, Key: "/registry/late", Value: []byte("late")}))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.SetUint64([]byte("CurrentTerm"), 9); err != nil {
		t.Fatal(err)
	}
	at := restored.Snapshot.Index
	for i, e := range []*raft.Log{{Type: raft.LogCommand, Data: rollout}, {Type: raft.LogCommand, Data: entry}, {Type: raft.LogBarrier}} {
		e.Index, e.Term = at+1+uint64(i), 9
		if err := log.StoreLog(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := ReadLog(dir)
	if err != nil || info.Index != at+3 || info.Term != 9 || len(info.Members) != 1 || info.Members[0] != (LogMember{raftdir.Member{ID: "a", Addr: "127.0.0.1:6444"}, true}) {
		t.Errorf("log %+v, %v", info, err)
	}

	if before, _, err := replay(t.Context(), dir); err != nil || before.Store().Revision() != restored.Revision+2 {
		t.Errorf("before: %v", err)
	}
	epoch := first.Next(raftdir.Recovered, "a", time.Now(), "b")
	out, err := Fork(t.Context(), dir, ForkOptions{Member: raftdir.Member{ID: "a", Addr: "127.0.0.1:1"}, Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	if out.Index != at+3 || out.Term != 9 || out.Revision != restored.Revision+4+DefaultRevisionStep {
		t.Errorf("%+v after revision %d", out, restored.Revision)
	}
	if got, err := raftdir.LoadEpoch(dir); err != nil || !got.Same(epoch) || !got.Follows("b") {
		t.Errorf("epoch %+v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(out.Aside, "raft.db")); err != nil || filepath.Base(out.Aside) != "raft.epoch-2" {
		t.Errorf("the former log is not kept in %s: %v", out.Aside, err)
	}
	f, last, err := replay(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if last.Index != at+4 || last.Term != 10 {
		t.Errorf("the new log ends at %d of term %d", last.Index, last.Term)
	}
	get := func(f *fsm.FSM, key string) string {
		kv, _ := f.Store().View().Get(key)
		if kv == nil {
			return ""
		}
		return string(kv.Value)
	}
	if get(f, "/registry/late") != "late" || !strings.Contains(get(f, raftdir.EpochKey), epoch.ID) || f.ClusterID() != "test-cluster" {
		t.Error("the state is not whole")
	}
	if get(f, "/skiff/upgrade/rollout") != "" {
		t.Error("a roll-out goes on")
	}
	if f.Store().Revision() != out.Revision {
		t.Errorf("revision %d", f.Store().Revision())
	}

	// What is saved now is restored into the epoch after that.
	snap := filepath.Join(t.TempDir(), "snap")
	if _, err := Save(t.Context(), source(f), snap, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	again, err := Restore(t.Context(), snap, filepath.Join(t.TempDir(), "data"), RestoreOptions{})
	if err != nil || again.Epoch.Number != 4 {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestForkRefuses(t *testing.T) {
	epoch := raftdir.Epoch{Number: 2, ID: "x", Cause: raftdir.Recovered}
	o := ForkOptions{Member: raftdir.Member{ID: "a", Addr: "127.0.0.1:1"}, Epoch: epoch}
	if _, err := Fork(t.Context(), t.TempDir(), o); err == nil || !strings.Contains(err.Error(), "holds no log") {
		t.Errorf("no log: %v", err)
	}
	// A damaged entry: the log stays where it is.
	path, info := save(t, sample(t, 5))
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Restore(t.Context(), path, dir, RestoreOptions{NodeID: "a"}); err != nil {
		t.Fatal(err)
	}
	log, _, err := raftdir.OpenLog(raftdir.Options{DataDir: dir, SnapshotIndex: info.Index})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.StoreLog(&raft.Log{Index: info.Index + 1, Term: info.Term, Type: raft.LogCommand, Data: []byte("no entry")}); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	if _, err := Fork(t.Context(), dir, o); err == nil {
		t.Error("an entry that cannot be applied was left out")
	}
	if after := names(t, dir); strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("%v became %v", before, after)
	}
}
