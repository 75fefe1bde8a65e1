package consensus

import (
	"io"

	"github.com/hashicorp/raft"
)

// A member need not be told what it has applied. Raft does not know that: it
// wants the entry before those it is sent in its log, also when a snapshot has
// taken that entry's place, and it installs a snapshot that is older than its
// state, which the state machine refuses. Either can happen when a leader does not
// hear the answers of a follower, or a new one looks for what they have in common,
// and would leave that follower behind until the leader's next snapshot.

// receive passes requests on to Raft.
func (t *replicator) receive() {
	from := t.NetworkTransport.Consumer()
	for {
		select {
		case q := <-from:
			if t.answer(q) {
				continue
			}
			select {
			case t.received <- q:
			case <-t.n.port.stop.Done():
				return
			}
		case <-t.n.port.stop.Done():
			return
		}
	}
}

// Consumer implements raft.Transport.
func (t *replicator) Consumer() <-chan raft.RPC { return t.received }

// answer returns true if it has answered a request in Raft's place.
func (t *replicator) answer(q raft.RPC) bool {
	r := t.n.raft.Load()
	if r == nil {
		return false
	}
	if t.n.tooEarly(r, q) {
		return true
	}
	switch req := q.Command.(type) {
	case *raft.AppendEntriesRequest:
		if !isHeartbeat(req) {
			index, term := t.n.log.Snapshot()
			shorten(req, index, term, r.AppliedIndex())
		}
	case *raft.InstallSnapshotRequest:
		if req.Term < r.CurrentTerm() || req.LastLogIndex > r.AppliedIndex() {
			return false
		}
		t.spare(q, &raft.InstallSnapshotResponse{RPCHeader: t.n.header(), Term: req.Term, Success: true})
		return true
	}
	return false
}

// spare reads over a snapshot before it answers, as the sender expects.
func (t *replicator) spare(q raft.RPC, answer *raft.InstallSnapshotResponse) {
	t.n.port.wg.Go(func() {
		_, _ = io.Copy(io.Discard, q.Reader)
		q.Respond(answer, nil)
	})
}

// SetHeartbeatHandler implements raft.Transport.
func (t *replicator) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(q raft.RPC) {
		if r := t.n.raft.Load(); r == nil || !t.n.tooEarly(r, q) {
			handle(q)
		}
	})
}

// shorten lets an append begin behind the newest snapshot, which ends with the
// entry index, if that was applied: up to there all members have the same. And it
// tells of no commit behind the append's last entry: what the follower's log holds
// there may not be what was committed.
func shorten(req *raft.AppendEntriesRequest, index, term, applied uint64) {
	if req.PrevLogEntry < index && index <= applied {
		rest := req.Entries
		for len(rest) > 0 && rest[0].Index <= index {
			rest = rest[1:]
		}
		req.PrevLogEntry, req.PrevLogTerm, req.Entries = index, term, rest
	}
	req.LeaderCommitIndex = min(req.LeaderCommitIndex, lastOf(req))
}
