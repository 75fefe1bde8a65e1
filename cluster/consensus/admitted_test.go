package consensus

import (
	"os"
	"testing"

	"github.com/hashicorp/raft"
)

// TestNewServerIsCareful: a server that was just let in, maybe with the ID of one that was
// there before, gives nobody a vote before it has what the leader had that let
// it in, and hears no leader of before.
func TestNewServerIsCareful(t *testing.T) {
	t.Parallel()
	m := start(t, Config{NodeID: "x", DataDir: t.TempDir()})
	begun := func() bool { return m.raft.Load() != nil }
	eventually(t, "Raft runs", begun)
	if err := m.keepAdmission([]byte(`{"term":5,"index":4}`)); err != nil {
		t.Fatal(err)
	}
	of := func(id string) raft.RPCHeader {
		return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id + ":1")}
	}
	votes := func(term, last uint64) bool {
		t.Helper()
		pre := m.tell(t, &raft.RequestPreVoteRequest{RPCHeader: of("c"), Term: term, LastLogIndex: last, LastLogTerm: 5}).(*raft.RequestPreVoteResponse)
		r := m.tell(t, &raft.RequestVoteRequest{RPCHeader: of("c"), Term: term, LastLogIndex: last, LastLogTerm: 5, LeadershipTransfer: true}).(*raft.RequestVoteResponse)
		return pre.Granted || r.Granted
	}
	appends := func(term, prev uint64, entries []*raft.Log) *raft.AppendEntriesResponse {
		t.Helper()
		return m.tell(t, &raft.AppendEntriesRequest{RPCHeader: of("b"), Term: term, PrevLogEntry: prev, PrevLogTerm: min(prev*5, 5), Entries: entries}).(*raft.AppendEntriesResponse)
	}
	if votes(9, 100) {
		t.Error("it votes with an empty log")
	}
	for _, entries := range [][]*raft.Log{nil, puts(t, 1, 2, 4)} { // without entries it is a heartbeat
		if r := appends(4, 0, entries); r.Success || r.Term != 5 {
			t.Errorf("a leader of before appends %d entries: %+v", len(entries), r)
		}
	}
	if r := m.tell(t, &raft.InstallSnapshotRequest{RPCHeader: of("b"), Term: 4, LastLogIndex: 9}).(*raft.InstallSnapshotResponse); r.Success || r.Term != 5 {
		t.Errorf("a leader of before sends a snapshot: %+v", r)
	}
	config := &raft.Log{Index: 1, Term: 5, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{ID: "b", Address: "b:1"}, {ID: "c", Address: "c:1"}, {ID: "x", Address: raft.ServerAddress(m.c.AdvertiseAddr)}}})}
	if r := appends(5, 0, append([]*raft.Log{config}, puts(t, 2, 3, 5)...)); !r.Success {
		t.Fatalf("the leader appends: %+v", r)
	}
	m = m.restart(t)
	eventually(t, "Raft runs", begun)
	if votes(9, 100) {
		t.Error("it votes with half of the log")
	}
	if r := appends(5, 3, puts(t, 4, 4, 5)); !r.Success {
		t.Fatalf("the leader appends: %+v", r)
	}
	if !votes(9, 100) {
		t.Error("it does not vote with the whole log")
	}
	if votes(10, 3) {
		t.Error("it votes for one that has less")
	}
	if _, err := os.Stat(admissionFile(m.c.DataDir)); !os.IsNotExist(err) {
		t.Errorf("what it was told is still there: %v", err)
	}
}
