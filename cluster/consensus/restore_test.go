package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// saved writes what a member holds into the directory of restores.
func (m *member) saved(t testing.TB) *backup.Info {
	t.Helper()
	info, err := m.FileToSpread(t.Context(), func(w io.Writer) error { return m.Snapshot(t.Context(), w) })
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func restoreOf(i *backup.Info) fsm.Command {
	return fsm.Command{Restore: &fsm.Restore{File: i.Hash, Size: i.TotalSize, Keep: []string{"/own/"},
		Ops: []fsm.Op{{Type: fsm.Put, Key: "/own/restored", Value: []byte(i.Hash), Expect: fsm.Any}}}}
}

func (m *member) dump() string {
	var b strings.Builder
	v := m.c.FSM.Store().View()
	v.Ascend("", "", func(kv *store.KeyValue) bool {
		fmt.Fprintf(&b, "%s=%.40s@%d ", kv.Key, kv.Value, kv.ModRevision)
		return true
	})
	return fmt.Sprint(v.Revision(), ": ", b.String())
}

// agree waits until all members hold the same.
func agree(t testing.TB, members []*member) {
	t.Helper()
	eventually(t, "all members hold the same", func() bool {
		for _, m := range members[1:] {
			if m.dump() != members[0].dump() {
				return false
			}
		}
		return true
	})
}

func fill3(t testing.TB, m *member) {
	for i := range 3 { // more than one piece
		m.put(t, fmt.Sprintf("/big/%d", i), strings.Repeat(fmt.Sprint(i), filePiece*2/3), fsm.Any)
	}
}

func TestRestoreThroughFollower(t *testing.T) {
	var held, resumed atomic.Int32
	members := cluster(t, 3, steady)
	for _, m := range members { // before any of them restores
		m.c.Restoring = func(context.Context) (func(), error) {
			held.Add(1)
			return func() { resumed.Add(1) }, nil
		}
	}
	leader, followers := leaderOf(t, members)
	f := followers[0]
	fill3(t, f)
	f.put(t, "/a", "1", 0)
	info := f.saved(t)
	f.put(t, "/a", "2", fsm.Any)
	f.put(t, "/b", "new", 0)
	f.put(t, "/own/x", "stays", 0)

	if _, err := f.Propose(t.Context(), restoreOf(info)); !errors.Is(err, ErrNotReady) || f.get("/a") != "2" {
		t.Errorf("before the leader has the file: %v", err)
	}
	most := map[string]int64{}
	if err := f.Spread(t.Context(), info.Hash, info.TotalSize, func(have map[string]int64) { most = have }); err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if most[m.c.NodeID] != info.TotalSize || !m.c.FSM.Preloaded(info.Hash) {
			t.Errorf("%s has %d of %d bytes", m.c.NodeID, most[m.c.NodeID], info.TotalSize)
		}
	}
	before := leader.c.FSM.Store().Revision()
	// Writes go on meanwhile: none of them is half there.
	stop, ended := make(chan bool), make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if _, err := leader.Propose(t.Context(), fsm.Batch(fsm.Op{Type: fsm.Put, Key: "/w/1", Value: []byte(fmt.Sprint(i)), Expect: fsm.Any},
				fsm.Op{Type: fsm.Put, Key: "/w/2", Value: []byte(fmt.Sprint(i)), Expect: fsm.Any})); err != nil {
				ended <- err
				return
			}
		}
	}()
	r, err := f.Propose(t.Context(), restoreOf(info))
	close(stop)
	if err := errors.Join(err, r.Err, <-ended); err != nil {
		t.Fatal(err)
	}
	if f.get("/a") != "1" || f.get("/b") != "<none>" || f.get("/own/x") != "stays" || f.get("/own/restored") != info.Hash || f.get("/w/1") != f.get("/w/2") {
		t.Errorf("after the restore: %s", f.dump())
	}
	if r.Revision <= before || held.Load() != 1 {
		t.Errorf("revision %d after %d, duties held %d times", r.Revision, before, held.Load())
	}
	eventually(t, "duties go on", func() bool { return resumed.Load() == 1 })
	agree(t, members)

	// The same again, from another member: everybody has the file.
	if err := members[0].Spread(t.Context(), info.Hash, info.TotalSize, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := members[0].Propose(t.Context(), restoreOf(info)); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	agree(t, members)
	for i := range members { // what they replay leads to the same
		members[i] = members[i].restart(t)
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	agree(t, members)
	if members[0].get("/a") != "1" {
		t.Error("after a restart: ", members[0].dump())
	}
}

// TestRestoreReachesLaggards: a member that was away gets the entry from the log
// and the file from the others; one whose copy is damaged, likewise.
func TestRestoreReachesLaggards(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, followers := leaderOf(t, members)
	fill3(t, leader)
	info := leader.saved(t)
	leader.put(t, "/b", "new", 0)
	alive := func(id string) bool { return id != followers[1].c.NodeID }
	leader.c.Alive = alive
	followers[1].stop(t)
	if err := leader.Spread(t.Context(), info.Hash, info.TotalSize, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := leader.Propose(t.Context(), restoreOf(info)); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	leader.put(t, "/c", "later", 0)
	late := followers[1].restart(t)
	late.awaitReady(t)
	agree(t, []*member{leader, followers[0], late})
	if late.get("/b") != "<none>" || late.get("/c") != "later" {
		t.Error(late.dump())
	}

	// Damaged between two starts, before a snapshot covers it.
	late.stop(t)
	if err := os.RemoveAll(filepath.Join(late.c.DataDir, "raft", "snapshots")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(late.c.DataDir, "raft", "restore", info.Hash)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	late = late.restart(t)
	late.awaitReady(t)
	agree(t, []*member{leader, followers[0], late})
	if b2, err := os.ReadFile(file); err != nil || bytes.Equal(b, b2) {
		t.Error("the damaged file is still there:", err)
	}
}

// TestStopWhileTheFileIsMissing: a member that can't get the file answers reads
// with what it had, and can be stopped.
func TestStopWhileTheFileIsMissing(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, followers := leaderOf(t, members)
	leader.put(t, "/a", "1", 0)
	info := leader.saved(t)
	leader.put(t, "/a", "2", fsm.Any)
	agree(t, members)
	if err := leader.Spread(t.Context(), info.Hash, info.TotalSize, nil); err != nil {
		t.Fatal(err)
	}
	late := followers[1]
	late.c.FSM.Forget(info.Hash)
	file, err := os.ReadFile(leader.files.path(info.Hash))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if err := os.Remove(m.files.path(info.Hash)); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := leader.Propose(t.Context(), restoreOf(info)); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	leader.put(t, "/b", "later", 0)
	time.Sleep(50 * time.Millisecond)
	if late.get("/a") != "2" || late.get("/b") != "<none>" {
		t.Error("it went on without the file:", late.dump())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := late.ReadIndex(ctx); err == nil {
		t.Error("it says that it is up to date")
	}
	late.stop(t)
	if err := os.WriteFile(leader.files.path(info.Hash), file, 0o600); err != nil {
		t.Fatal(err)
	}
	late = late.restart(t)
	late.awaitReady(t)
	agree(t, []*member{leader, followers[0], late})
}

func TestSpreadNeedsAMajority(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, followers := leaderOf(t, members)
	leader.put(t, "/a", "1", 0)
	info := leader.saved(t)
	for _, f := range followers {
		if err := os.RemoveAll(f.files.dir); err != nil { // like a disk that takes nothing
			t.Fatal(err)
		}
	}
	err := leader.Spread(t.Context(), info.Hash, info.TotalSize, nil)
	if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "1 of 3") {
		t.Error(err)
	}
	leader.DropFile(t.Context(), info.Hash)
	if _, err := os.Stat(leader.files.path(info.Hash)); err == nil || leader.c.FSM.Preloaded(info.Hash) {
		t.Error("the file was not dropped")
	}
	if _, err := leader.FileToSpread(t.Context(), func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }); !backup.Refused(err) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(leader.files.dir); len(left) != 0 {
		t.Error("left behind:", left)
	}
}

func TestFilesOfRestoresGo(t *testing.T) {
	dir := t.TempDir()
	m := single(t, dir)
	m.awaitReady(t)
	m.put(t, "/a", "1", 0)
	info := m.saved(t)
	if err := m.Spread(t.Context(), info.Hash, info.TotalSize, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Propose(t.Context(), restoreOf(info)); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	m.put(t, "/a", "2", fsm.Any)
	other := m.saved(t)
	m.files.tidy(time.Hour)
	if left, _ := os.ReadDir(m.files.dir); len(left) != 2 {
		t.Error("young files are gone:", left)
	}
	m.files.tidy(0)
	if _, err := os.Stat(m.files.path(other.Hash)); err == nil {
		t.Error("a file that was never restored stays")
	}
	if _, err := os.Stat(m.files.path(info.Hash)); err != nil {
		t.Error("a file that the log names:", err)
	}
	m.DropFile(t.Context(), info.Hash)
	if _, err := os.Stat(m.files.path(info.Hash)); err != nil {
		t.Error("a file that the log names:", err)
	}
}

func TestUploadLeavesRoomForTheLog(t *testing.T) {
	dir := filepath.Join(smallDisk(t, 64<<20), "data")
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{NodeID: "a", DataDir: dir, Listener: l, Reserve: 1 << 20, Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}}})
	m.awaitReady(t)
	_, err := m.Upload(func(w io.Writer) error {
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("an upload as large as the disk: %v", err)
	}
	if left, _ := os.ReadDir(m.files.dir); len(left) != 0 {
		t.Error("left behind:", left)
	}
	m.put(t, "/a", "1", fsm.Any)
}
