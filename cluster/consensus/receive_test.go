package consensus

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// puts are log entries, each of which sets the key k to its index and term.
func puts(t *testing.T, from, to, term uint64) (all []*raft.Log) {
	t.Helper()
	for i := from; i <= to; i++ {
		data, err := fsm.EncodeEntry(onePut("k", valueAt(i, term)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: data})
	}
	return all
}

func valueAt(index, term uint64) string {
	return strings.Repeat("x", int(index)) + strings.Repeat("t", int(term))
}

// tell gives a member a request of another, and returns the answer.
func (m *member) tell(t *testing.T, command any) any {
	t.Helper()
	answer := make(chan raft.RPCResponse, 1)
	q := raft.RPC{Command: command, Reader: strings.NewReader("state"), RespChan: answer}
	if !m.trans.answer(q) {
		m.trans.received <- q
	}
	select {
	case a := <-answer:
		if a.Error != nil {
			t.Fatalf("%T: %v", command, a.Error)
		}
		return a.Response
	case <-time.After(10 * time.Second):
		t.Fatalf("no answer to %T", command)
		return nil
	}
}

// TestFollowerHasMore: a follower whose snapshot and log are ahead of where a
// leader begins takes what the leader sends.
func TestFollowerHasMore(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: l, Bootstrap: []Server{
		{ID: "a", Addr: l.Addr().String()}, {ID: "b", Addr: "127.0.0.1:1"}, {ID: "c", Addr: "127.0.0.1:2"}}})
	begun := func() bool { return m.raft.Load() != nil }
	eventually(t, "Raft runs", begun)
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b"), Addr: []byte("127.0.0.1:1")}
	appends := func(term, prev, prevTerm uint64, entries []*raft.Log, commit uint64) bool {
		t.Helper()
		return m.tell(t, &raft.AppendEntriesRequest{RPCHeader: header, Term: term, PrevLogEntry: prev, PrevLogTerm: prevTerm,
			Entries: entries, LeaderCommitIndex: commit}).(*raft.AppendEntriesResponse).Success
	}
	holds := func(index, term uint64) {
		t.Helper()
		eventually(t, "the state of entry "+valueAt(index, term), func() bool { return m.get("k") == valueAt(index, term) })
	}
	if !appends(2, 1, 1, puts(t, 2, 14, 2), 12) {
		t.Fatal("the first append is refused")
	}
	holds(12, 2)
	m.reload(m.raft.Load(), func(rc *raft.ReloadableConfig) { rc.TrailingLogs = 1 })
	if err := m.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, _ := m.log.FirstIndex(); first != 13 {
		t.Fatalf("the log begins at %d", first)
	}
	m = m.restart(t)
	eventually(t, "Raft runs", begun)

	if appends(3, 12, 1, nil, 12) {
		t.Error("an entry of another term is taken for the snapshot's last")
	}
	if !appends(3, 12, 2, puts(t, 13, 13, 3), 13) {
		t.Fatal("an append that begins behind the snapshot, where the log holds something else, is refused")
	}
	holds(13, 3)
	for _, prev := range []uint64{0, 1, 5, 11} {
		if !appends(3, prev, min(prev, 2), puts(t, prev+1, 12, 2), 13) {
			t.Errorf("an append of 12 entries from %d on is refused", prev+1)
		}
	}
	if !appends(3, 5, 2, slices.Concat(puts(t, 6, 12, 2), puts(t, 13, 15, 3)), 15) {
		t.Error("an append that begins before the snapshot and has news is refused")
	}
	holds(15, 3)
	install := func(term uint64) *raft.InstallSnapshotResponse {
		t.Helper()
		return m.tell(t, &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: term, LastLogIndex: 10, LastLogTerm: 2,
			ConfigurationIndex: 1, Configuration: raft.EncodeConfiguration(raft.Configuration{}), Size: 5}).(*raft.InstallSnapshotResponse)
	}
	if r := install(3); !r.Success || r.Term != 3 {
		t.Errorf("a snapshot of what it has: %+v", r)
	}
	if r := install(2); r.Success || r.Term != 3 {
		t.Errorf("a snapshot of a leader of before: %+v", r)
	}
	if !appends(3, 15, 3, puts(t, 16, 16, 3), 16) {
		t.Error("the next append is refused")
	}
	holds(16, 3)
}

// TestSnapshotIsTakenOrInstalled: a snapshot that a leader sends while this member
// takes one of its own waits, and what the member has of the log then ends with it.
func TestSnapshotIsTakenOrInstalled(t *testing.T) {
	t.Parallel()
	writes, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: l, Bootstrap: []Server{
		{ID: "a", Addr: l.Addr().String()}, {ID: "b", Addr: "127.0.0.1:1"}, {ID: "c", Addr: "127.0.0.1:2"}},
		Step: func(step string) {
			if step == "snapshot:write:before" {
				once.Do(func() { close(writes); <-goOn })
			}
		}})
	eventually(t, "Raft runs", func() bool { return m.raft.Load() != nil })
	r := m.raft.Load()
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b"), Addr: []byte("127.0.0.1:1")}
	appends := func(prev, prevTerm, to uint64) bool {
		t.Helper()
		return m.tell(t, &raft.AppendEntriesRequest{RPCHeader: header, Term: 2, PrevLogEntry: prev, PrevLogTerm: prevTerm,
			Entries: puts(t, prev+1, to, 2), LeaderCommitIndex: to}).(*raft.AppendEntriesResponse).Success
	}
	if !appends(1, 1, 8) {
		t.Fatal("the first append is refused")
	}
	eventually(t, "it is applied", func() bool { return m.get("k") == valueAt(8, 2) })
	taken := make(chan error, 1)
	go func() { taken <- m.takeSnapshot(r) }()
	<-writes

	other := fsm.New(store.New(store.Config{}))
	for _, e := range puts(t, 2, 14, 2) {
		other.Apply(e)
	}
	snapshot, err := other.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var state bytes.Buffer
	if err := snapshot.(*fsm.Snapshot).Write(t.Context(), &state); err != nil {
		t.Fatal(err)
	}
	answer := make(chan raft.RPCResponse, 1)
	m.trans.answer(raft.RPC{RespChan: answer, Reader: &state, Command: &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: 2,
		LastLogIndex: 14, LastLogTerm: 2, ConfigurationIndex: 1, Size: int64(state.Len()),
		Configuration: raft.EncodeConfiguration(r.GetConfiguration().Configuration())}})
	time.Sleep(50 * time.Millisecond) // or as long as it may take
	close(goOn)
	if err := <-taken; err != nil {
		t.Error(err)
	}
	if a := <-answer; a.Error != nil || !a.Response.(*raft.InstallSnapshotResponse).Success {
		t.Fatalf("%+v", a)
	}
	if last := r.LastIndex(); last != 14 || m.get("k") != valueAt(14, 2) {
		t.Errorf("it believes in a log up to %d", last)
	}
	if !appends(14, 2, 16) {
		t.Fatal("the next append is refused")
	}
	eventually(t, "it is applied", func() bool { return m.get("k") == valueAt(16, 2) })
}

func TestShorten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                     string
		prev, last, commit       uint64
		applied                  uint64
		wantPrev, wantLast, upto uint64
	}{
		{"behind the snapshot", 10, 12, 11, 10, 10, 12, 11},
		{"a commit of what is not sent", 10, 12, 40, 10, 10, 12, 12},
		{"nothing new", 20, 20, 40, 10, 20, 20, 20},
		{"from before it on", 5, 12, 40, 10, 10, 12, 12},
		{"up to it", 5, 10, 10, 10, 10, 10, 10},
		{"all before it", 5, 8, 40, 10, 10, 10, 10},
		{"not applied", 5, 8, 40, 9, 5, 8, 8},
	} {
		req := &raft.AppendEntriesRequest{PrevLogEntry: c.prev, PrevLogTerm: 2, Entries: puts(t, c.prev+1, c.last, 2), LeaderCommitIndex: c.commit}
		shorten(req, 10, 2, c.applied)
		if req.PrevLogEntry != c.wantPrev || lastOf(req) != c.wantLast || req.LeaderCommitIndex != c.upto {
			t.Errorf("%s: entries behind %d up to %d, committed %d", c.name, req.PrevLogEntry, lastOf(req), req.LeaderCommitIndex)
		}
	}
}
