// Package consensus replicates the state machine: it runs Raft over one TLS
// port, gathers proposals into log entries, forwards those made on followers to
// the leader, and tells readers when they may read.
//
// Promises:
//
//   - A proposal whose Propose returned without an error is on the disks of a
//     majority and has taken effect in the FSM of this member.
//   - Errors that wrap ErrUnknownOutcome leave open whether the proposal took or
//     will take effect. After any other error it did not and will not.
//   - After ReadIndex the local FSM holds everything acknowledged before the call,
//     by whichever member.
//   - A quiet cluster appends nothing to its log.
//   - Losing leadership, the quorum or disk space ends nothing: what is in the
//     FSM can be read, and writes go on when the cause is gone.
//
// Limits: membership is what the first start bootstrapped.
package consensus

import (
	"errors"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

var (
	// ErrNoLeader says that there was no leader to take the request. It can be
	// tried again.
	ErrNoLeader = errors.New("the cluster has no leader")
	// ErrNotLeader says that this member does not lead.
	ErrNotLeader = errors.New("this server is not the leader")
	// ErrUnknownOutcome says that a proposal may or may not take effect.
	ErrUnknownOutcome = errors.New("it is unknown whether the write takes effect")
	// ErrStopped says that the node has been stopped.
	ErrStopped = errors.New("consensus is stopped")
	// ErrLocked says that another process uses the data dir.
	ErrLocked = errors.New("data dir is in use")
	// ErrTLS says that the TLS configuration would let strangers in.
	ErrTLS = errors.New("unsafe TLS configuration")

	// ErrNoSpace says that the leader's disk is full: nothing was written, and
	// writes go on by themselves when there is room.
	ErrNoSpace = raftdir.ErrNoSpace
	// ErrStorageFailed says that the leader's disk failed. Its server has to be
	// restarted.
	ErrStorageFailed = raftdir.ErrFailed
	// ErrDamaged says that Raft's files are not as they were written.
	ErrDamaged = raftdir.ErrDamaged
)
