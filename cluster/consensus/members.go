package consensus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Member is a server in the configuration of the cluster.
type Member struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port of its Raft port
	Voter   bool   `json:"voter"`
}

// The methods of this package.
const (
	methodStats    = ownMethods + "stats"
	methodMembers  = ownMethods + "members"
	methodJoin     = ownMethods + "join"
	methodRemove   = ownMethods + "remove"
	methodPromote  = ownMethods + "promote"
	methodTransfer = ownMethods + "transfer"
	methodDeath    = ownMethods + "death"
)

func (n *Node) ownMethods() map[string]Handler {
	ofID := func(do func(ctx context.Context, id string) error) Handler {
		return func(ctx context.Context, _ string, body []byte) ([]byte, error) { return nil, do(ctx, string(body)) }
	}
	return map[string]Handler{
		methodStats: func(context.Context, string, []byte) ([]byte, error) { return json.Marshal(n.ownStats()) },
		methodMembers: func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			return json.Marshal(n.askMembers(ctx))
		},
		methodJoin:     n.answerJoin,
		methodRemove:   ofID(n.removeHere),
		methodPromote:  ofID(n.promoteHere),
		methodTransfer: ofID(n.transferHere),
		methodDeath:    n.answerDeath,
		methodState:    n.answerState,
		methodFilePull: n.files.answerPull,
		methodFileGet:  n.files.get,
		methodFileDrop: n.files.drop,
	}
}

// changeTimeout is for one change of the configuration.
const changeTimeout = 10 * time.Second

// Members is the configuration as this member knows it, sorted by ID. A change
// that is under way counts.
func (n *Node) Members() []Member {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	var all []Member
	for _, s := range r.GetConfiguration().Configuration().Servers {
		all = append(all, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (n *Node) member(id string) (Member, bool) {
	for _, m := range n.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}

// Remove takes a member out of the cluster. A leader that is removed hands over
// first. It is ErrQuorumRisk if the other voters that live are not a quorum of
// themselves, and ErrNotMember if there is no such member.
func (n *Node) Remove(ctx context.Context, id string) error {
	if _, err := n.CallLeader(ctx, methodRemove, []byte(id)); err != nil {
		return fmt.Errorf("remove server %s: %w", id, err)
	}
	return nil
}

func (n *Node) removeHere(ctx context.Context, id string) error {
	m, ok := n.member(id)
	if !ok {
		return ErrNotMember
	}
	// A new leader may not have heard of all yet.
	young := time.After(n.c.HeartbeatTimeout)
	for old := false; ; {
		heard := n.contacts.next()
		err := n.dispensable(m)
		if err == nil {
			break
		}
		if old {
			return err
		}
		select {
		case <-heard:
		case <-young:
			old = true
		case <-ctx.Done():
			return err
		}
	}
	if id == n.c.NodeID {
		if err := n.transferHere(ctx, ""); err != nil {
			return err
		}
		return ErrNotLeader // the next leader does it
	}
	return n.change(ctx, func(r *raft.Raft) raft.Future { return r.RemoveServer(raft.ServerID(id), 0, changeTimeout) })
}

// dispensable says why a member can't be removed, if so.
func (n *Node) dispensable(m Member) error {
	if !m.Voter {
		return nil
	}
	voters, live := 0, 0
	for _, o := range n.Members() {
		if o.Voter && o.ID != m.ID {
			voters++
			if o.ID == n.c.NodeID || n.lives(o.ID) {
				live++
			}
		}
	}
	if live < voters/2+1 {
		return fmt.Errorf("%w: without it %d of %d voters would answer", ErrQuorumRisk, live, voters)
	}
	return nil
}

// change waits for a change of the configuration.
func (n *Node) change(ctx context.Context, do func(r *raft.Raft) raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- do(n.raft.Load()).Error() }()
	select {
	case err := <-done:
		return proposeError(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	case <-n.stopped:
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrStopped)
	}
}

// Promote makes a member a voter now, if it has caught up; otherwise it is
// ErrNotReady.
func (n *Node) Promote(ctx context.Context, id string) error {
	if _, err := n.CallLeader(ctx, methodPromote, []byte(id)); err != nil {
		return fmt.Errorf("promote server %s: %w", id, err)
	}
	return nil
}

func (n *Node) promoteHere(ctx context.Context, id string) error {
	m, ok := n.member(id)
	switch {
	case !ok:
		return ErrNotMember
	case m.Voter:
		return nil
	case !n.lives(id):
		return fmt.Errorf("%w: it does not answer", ErrNotReady)
	}
	s := n.askMember(ctx, m)
	if s.Error != "" {
		return fmt.Errorf("%w: %s", ErrNotReady, s.Error)
	}
	if lag := n.raft.Load().LastIndex() - min(s.LastIndex, n.raft.Load().LastIndex()); lag > maxLag {
		return fmt.Errorf("%w: it is %d log entries behind", ErrNotReady, lag)
	}
	return n.change(ctx, func(r *raft.Raft) raft.Future {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(m.Address), 0, changeTimeout)
	})
}

// TransferLeadership lets a voter lead, or with "" the one that is best for it.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if _, err := n.CallLeader(ctx, methodTransfer, []byte(id)); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}

func (n *Node) transferHere(ctx context.Context, id string) error {
	if id == n.c.NodeID {
		return nil
	}
	heirs := n.heirs(true)
	if id != "" {
		m, ok := n.member(id)
		if !ok {
			return ErrNotMember
		}
		if !m.Voter {
			return fmt.Errorf("%w: it is no voter", ErrNotReady)
		}
		heirs = []Member{m}
	}
	if len(heirs) == 0 {
		return fmt.Errorf("%w: there is no other voter that could lead", ErrQuorumRisk)
	}
	var err error
	for _, m := range heirs {
		r := n.raft.Load()
		if !n.contacts.follows(m.ID, max(silentBeats*n.c.HeartbeatTimeout, 3*maxHold)) {
			err = errors.New("it has not acknowledged anything lately")
			continue
		}
		err = waitFuture(ctx, n, r.LeadershipTransferToServer(raft.ServerID(m.ID), raft.ServerAddress(m.Address)))
		if err == nil {
			n.c.Logger.Info("handed leadership over", "to", m.ID)
			return nil
		}
		n.contacts.owe(m.ID)
		if ctx.Err() != nil || errors.Is(err, raft.ErrNotLeader) {
			break
		}
	}
	if errors.Is(err, raft.ErrNotLeader) {
		return ErrNotLeader
	}
	return fmt.Errorf("%w: %w", ErrNotReady, err)
}

// heirs are the voters that could lead in place of this member, the best first.
// Witnesses come last, if they count at all.
func (n *Node) heirs(witnesses bool) []Member {
	type heir struct {
		Member
		witness bool
		index   uint64
		fsync   time.Duration
	}
	known := n.lastStats()
	last := n.raft.Load().LastIndex()
	var all []heir
	for _, m := range n.Members() {
		if !m.Voter || m.ID == n.c.NodeID || !n.lives(m.ID) {
			continue
		}
		s := known[m.ID]
		h := heir{m, s.Witness, n.contacts.acked(m.ID), s.FsyncP99}
		if s.Problem != "" || h.witness && !witnesses || h.index+maxLag < last {
			continue
		}
		all = append(all, h)
	}
	slices.SortStableFunc(all, func(a, b heir) int {
		if a.witness != b.witness {
			if a.witness {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(b.index, a.index), cmp.Compare(a.fsync, b.fsync))
	})
	var out []Member
	for _, h := range all {
		out = append(out, h.Member)
	}
	return out
}

// lives says whether a member is alive by what others know, and answered this
// leader lately.
func (n *Node) lives(id string) bool {
	return (n.c.Alive == nil || n.c.Alive(id)) && n.contacts.since(id) < silentBeats*n.c.HeartbeatTimeout
}

// silent says whether a member does not answer and nobody knows it to be alive.
func (n *Node) silent(id string) bool {
	return (n.c.Alive == nil || !n.c.Alive(id)) && n.contacts.since(id) >= silentBeats*n.c.HeartbeatTimeout
}
