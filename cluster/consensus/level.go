package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skiff-sh/skiff/fsm"
)

// allowed says whether a command may be proposed at the cluster's feature level,
// and could be applied by all members. It is asked on the leader.
func (n *Node) allowed(data []byte) error {
	v := n.versionOf(data)
	if v <= 1 {
		return nil
	}
	if level := n.c.FSM.Level(); v > fsm.AtLevel(level).Command {
		return fmt.Errorf("%w: the command is of version %d, and at the cluster's feature level %d there is none above %d; run the newer version on every member, then skiff upgrade finalize", ErrVersion, v, level, fsm.AtLevel(level).Command)
	}
	if all := n.commandVersion(); v > all {
		return fmt.Errorf("%w: the command is of version %d, and not all members can apply more than %d; upgrade them first", ErrVersion, v, all)
	}
	return nil
}

// Levels are the feature levels that a program works at. Both are 0 of the first
// versions, which work at level 1.
type Levels struct {
	MinLevel int `json:"minLevel"`
	MaxLevel int `json:"maxLevel"`
}

var ownLevels = Levels{fsm.MinLevel, fsm.MaxLevel}

// fit says whether a member's program works at a level.
func (l Levels) fit(level int) error {
	if l.MinLevel > level || max(l.MaxLevel, 1) < level {
		return fmt.Errorf("%w: the cluster is at feature level %d, and its program works at %d to %d; run the version of the other servers on it", ErrVersion, level, max(l.MinLevel, 1), max(l.MaxLevel, 1))
	}
	return nil
}

// RaiseLevel raises the feature level of the cluster on the leader, if the
// programs of all servers work at it. Meanwhile no server is let in.
func (n *Node) RaiseLevel(ctx context.Context, to int) error {
	if n.lead.leadingTerm() == 0 {
		return ErrNotLeader
	}
	select {
	case n.admitting <- struct{}{}:
		defer func() { <-n.admitting }()
	case <-ctx.Done():
		return fmt.Errorf("%w: another server is being let in: %w", ErrNotReady, ctx.Err())
	}
	view := n.c.FSM.Store().View()
	if now := fsm.LevelOf(view); to <= now {
		return fmt.Errorf("%w: the cluster is at feature level %d already", fsm.ErrInvalid, now)
	}
	if err := fsm.CheckLevel(to); err != nil {
		return err
	}
	for _, m := range n.askMembers(ctx) {
		if m.Error != "" {
			return fmt.Errorf("%w: %s at %s does not answer: %s", ErrNotReady, m.ID, m.Address, m.Error)
		}
		if err := m.fit(to); err != nil {
			return fmt.Errorf("server %s at %s: %w", m.ID, m.Address, err)
		}
	}
	r, err := n.Propose(ctx, fsm.SetLevel(view, to))
	if err := errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("raise the feature level: %w", err)
	}
	return nil
}

// verifyState looks at the newest snapshot. That a later version wrote it is no
// damage.
func (n *Node) verifyState() error {
	var later error
	err := n.snaps.VerifyState(func(r io.Reader) error {
		err := fsm.Check(r)
		if errors.Is(err, fsm.ErrSnapshotVersion) {
			later = err
		}
		return err
	})
	if later != nil {
		return fmt.Errorf("the log of this server (%s): %w: run the version of skiff that ran here before, or a newer one", n.snaps.Files()[0], later)
	}
	return err
}
