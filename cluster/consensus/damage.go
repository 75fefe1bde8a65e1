package consensus

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/backup"
)

// withAdvice adds to the error of a damaged file what can be done about it: the
// other servers have all of it; if there are none, the newest of this server's own
// snapshots that is whole, or one from elsewhere.
func (n *Node) withAdvice(err error) error {
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	if len(n.c.Join) > 0 {
		err = fmt.Errorf("%w; to get all of it from the other servers: skiff recover --rejoin --data-dir %s", err, n.c.DataDir)
	}
	file, other := "FILE", "FILE is the newest that `skiff snapshot save` made"
	for _, f := range n.snaps.Files() {
		if info, err := backup.Status(f); err == nil {
			file = f
			other = fmt.Sprintf("it holds what was written up to revision %d; use a newer file if `skiff snapshot save` made one", info.Revision)
			break
		}
	}
	when := "to go on with a saved state"
	if len(n.c.Join) > 0 {
		when = "if they are lost too"
	}
	return fmt.Errorf("%w; %s: skiff snapshot restore --data-dir NEWDIR --key-file %s %s, then start with --data-dir NEWDIR (%s)", err, when, filepath.Join(n.c.DataDir, "pki", "cluster.key"), file, other)
}

// damaged is told by the log of an entry that can't be read any more. One that the
// state holds is needed by others only, and can go when a new snapshot is there.
// Without another this member can't go on: it ends with what to do.
func (n *Node) damaged(index uint64, err error) (halt bool) {
	r := n.raft.Load()
	if r == nil {
		return false
	}
	if index > r.AppliedIndex() {
		select {
		case n.broken <- n.withAdvice(err):
		default:
		}
		return true
	}
	n.renew(r, err)
	return false
}

// snapshotDamaged is told of a snapshot that can't be sent any more.
func (n *Node) snapshotDamaged(err error) {
	if r := n.raft.Load(); r != nil {
		n.renew(r, err)
	}
}

// renew writes what is in memory to a new snapshot, and removes the log up to it.
func (n *Node) renew(r *raft.Raft, why error) {
	if !n.compact.renewing.CompareAndSwap(false, true) {
		return
	}
	n.behind.Go(func() {
		defer n.compact.renewing.Store(false)
		n.c.Logger.Error("a file of the raft state is damaged; what is in memory is written anew", "error", why)
		n.reload(r, func(rc *raft.ReloadableConfig) { rc.TrailingLogs = 0 })
		if err := n.takeSnapshot(r); err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
			n.c.Logger.Error("the new snapshot failed; it is tried again when a member asks for what is damaged", "error", err)
		}
	})
}
