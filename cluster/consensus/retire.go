package consensus

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
)

// retired is why this member has no part in the log any more.
type retired struct{ why error }

func (r *retired) Error() string        { return r.why.Error() }
func (r *retired) Unwrap() error        { return r.why }
func (r *retired) Is(target error) bool { return target == ErrRemoved }

// Retire ends this member's part in the log, because it was removed from the
// cluster: from now on proposals, reads and calls fail at once with an error that
// is ErrRemoved and has the text of why, and nothing more is sent to the others or
// taken from them. What the FSM holds can be read as before. The first call
// counts; Run goes on.
func (n *Node) Retire(why error) {
	if !n.gone.CompareAndSwap(nil, &retired{why}) {
		return
	}
	n.leave()
	n.lead.announce()
	r := n.raft.Load()
	if r == nil {
		return // Run does it
	}
	n.endRaft(r)
}

// endRaft lets Raft end without waiting for it.
func (n *Node) endRaft(r *raft.Raft) {
	ended := r.Shutdown()
	n.port.cutRaft(true)
	n.behind.Go(func() {
		if err := ended.Error(); err != nil {
			n.c.Logger.Warn("end raft", "error", err)
		}
	})
}

// removed is the error of a member that has retired.
func (n *Node) removed() error {
	if r := n.gone.Load(); r != nil {
		return r
	}
	return nil
}

// waitApplied waits until the FSM has applied the entry at index.
func (n *Node) waitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.left, cancel)()
	err := n.c.FSM.WaitApplied(ctx, index)
	if gone := n.removed(); err != nil && gone != nil {
		return gone // the log does not come here any more
	}
	return err
}

func isRemoved(err error) bool { return errors.Is(err, ErrRemoved) }
