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

// answer returns true if the request is not for Raft, or goes there by itself.
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
		t.n.port.wg.Go(func() { t.install(r, q, req) })
		return true
	}
	return false
}

// install lets Raft install a snapshot, unless its state is applied already. No
// snapshot is taken meanwhile: one that was begun before and ends after would make
// Raft believe that the log ends with it, and no leader could append any more.
func (t *replicator) install(r *raft.Raft, q raft.RPC, req *raft.InstallSnapshotRequest) {
	stop := t.n.port.stop.Done()
	select {
	case t.n.snapshot <- struct{}{}:
		defer func() { <-t.n.snapshot }()
	case <-stop:
		return
	}
	if req.Term >= r.CurrentTerm() && req.LastLogIndex <= r.AppliedIndex() {
		t.spare(q, &raft.InstallSnapshotResponse{RPCHeader: t.n.header(), Term: req.Term, Success: true})
		return
	}
	answer := make(chan raft.RPCResponse, 1)
	select {
	case t.received <- raft.RPC{Command: q.Command, Reader: q.Reader, RespChan: answer}:
	case <-stop:
		return
	}
	select {
	case a := <-answer:
		q.Respond(a.Response, a.Error)
	case <-stop:
	}
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
