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
//   - A leader that stops, or is removed, hands over first. One whose disk hangs
//     cuts itself off so that others lead.
//
// Members come by asking one that is there (Config.Join), begin without a vote,
// and get it when they have been healthy for five seconds. They go by Remove, or
// when they were dead for Config.DeadServerGrace; never so that the rest could not
// go on. A member whose address has changed tells the others itself.
//
// Limits: a member that was removed does not come back by itself unless
// Config.Admit lets it. Two voters tolerate no failure. Latency is that
// of one site: a connection has to come about within a second.
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
	// ErrUnreachable says that a request could not be sent: nothing was done.
	ErrUnreachable = errors.New("the server can't be reached")
	// ErrNotMember says that the cluster has no member of that ID.
	ErrNotMember = errors.New("not a member of the cluster")
	// ErrQuorumRisk says that the cluster would stop, or would need every server
	// that still answers.
	ErrQuorumRisk = errors.New("the remaining servers could not form a quorum")
	// ErrNotReady says that a server has not caught up or does not answer.
	ErrNotReady = errors.New("the server is not ready for it")
	// ErrRefused says that a server may not become a member.
	ErrRefused = errors.New("the cluster refuses this server")
	// ErrRemoved says that this server was removed from the cluster, see Retire.
	ErrRemoved = errors.New("this server was removed from the cluster")
	// ErrBehind says that this server lags and cannot catch up now.
	ErrBehind = errors.New("this server is behind the others")
	// ErrVersion says that a command needs a newer skiff on another member.
	ErrVersion = errors.New("a member runs too old a version")
	// ErrEpoch says that another server's log is of another epoch: the two have
	// nothing to say to each other.
	ErrEpoch = errors.New("another epoch of the log")
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
