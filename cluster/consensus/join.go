package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
)

// joinRequest asks to be a member at an address.
type joinRequest struct {
	ID             string `json:"id"`
	Addr           string `json:"addr"`
	CommandVersion int    `json:"commandVersion"`
	Levels
	Instance string `json:"instance"`
	// Fresh: the server knows of no configuration and holds no log.
	Fresh bool `json:"fresh"`
	// Forwarded: whoever gets it does not pass it on.
	Forwarded bool `json:"forwarded"`
}

const joinEvery = time.Second // between two rounds of asking

// join asks members to admit this server, or to correct its address, for as long
// as the configuration does not name it or nobody leads it.
func (n *Node) join() {
	ctx, cancel := n.untilStopped(context.Background())
	defer cancel()
	pause := 10 * time.Millisecond // a leader may be about to speak
	var said string
	for {
		select {
		case <-time.After(pause + rand.N(pause/4)):
		case <-ctx.Done():
			return
		}
		pause = joinEvery
		r := n.raft.Load()
		ask, fresh := n.mustAsk(r)
		if !ask {
			said = ""
			if n.soleVoter(r) {
				pause = time.Minute
			}
			continue
		}
		err := n.askToJoin(ctx, r, fresh)
		if err == nil {
			n.port.shutRaft(false)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if text := err.Error(); text != said {
			said = text
			n.c.Logger.Warn("ask the cluster to let this server in", "error", err)
		}
	}
}

// mustAsk says whether the cluster may not know this member, or not where it is.
func (n *Node) mustAsk(r *raft.Raft) (ask, fresh bool) {
	me, members := Member{}, n.Members()
	for _, m := range members {
		if m.ID == n.c.NodeID {
			me = m
		}
	}
	_, leader := r.LeaderWithID()
	switch {
	case n.removed() != nil:
		return false, false
	case len(members) == 0:
		return len(n.c.Join) > 0, r.LastIndex() == 0
	case me.ID == "":
		return false, false // removed: only a new server may come
	case r.State() == raft.Leader:
		return false, false // correctAddress does it
	}
	return (leader == "" || me.Address != n.c.AdvertiseAddr) && !n.soleVoter(r), false
}

// askToJoin asks the members that are known until one of them has done it.
func (n *Node) askToJoin(ctx context.Context, r *raft.Raft, fresh bool) error {
	body, err := json.Marshal(joinRequest{
		ID: n.c.NodeID, Addr: n.c.AdvertiseAddr, CommandVersion: fsm.MaxCommandVersion, Levels: ownLevels, Instance: n.instance, Fresh: fresh,
	})
	if err != nil {
		return err
	}
	var addrs []string
	for _, m := range n.Members() {
		if m.ID != n.c.NodeID {
			addrs = append(addrs, m.Address)
		}
	}
	addrs = append(addrs, n.c.Join...)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	var all error
	for _, a := range addrs {
		if a == n.c.AdvertiseAddr {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		answer, err := n.callAddr(ctx, a, methodJoin, body)
		cancel()
		if err == nil && fresh {
			return n.keepAdmission(answer)
		}
		if err == nil {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("%s: %w", a, err))
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrVersion) {
			break
		}
	}
	return all
}

// answerJoin admits a server or corrects its address, or lets the leader do it.
func (n *Node) answerJoin(ctx context.Context, _ string, body []byte) ([]byte, error) {
	var q joinRequest
	if err := json.Unmarshal(body, &q); err != nil || q.ID == "" || q.Addr == "" {
		return nil, errors.New("malformed request to join")
	}
	if n.lead.leadingTerm() != 0 {
		if err := n.admit(ctx, q); err != nil {
			return nil, err
		}
		return n.admitted()
	}
	id, addr := n.Leader()
	if id == "" || id == n.c.NodeID || q.Forwarded {
		return nil, ErrNoLeader
	}
	q.Forwarded = true
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	return n.callAddr(ctx, addr, methodJoin, body)
}

// admit makes a server a non-voter, or corrects its address, on the leader.
func (n *Node) admit(ctx context.Context, q joinRequest) error {
	if q.ID == n.c.NodeID {
		return fmt.Errorf("%w: its ID is the leader's", ErrRefused)
	}
	select {
	case n.admitting <- struct{}{}:
		defer func() { <-n.admitting }()
	case <-ctx.Done():
		return fmt.Errorf("%w: another server is being let in: %w", ErrNotReady, ctx.Err())
	}
	level := n.c.FSM.Level()
	if v := fsm.AtLevel(level).Command; q.CommandVersion < v {
		return fmt.Errorf("%w: it can apply commands up to version %d, the cluster uses those of version %d", ErrVersion, q.CommandVersion, v)
	}
	if err := q.fit(level); err != nil {
		return err
	}
	m, known := n.member(q.ID)
	if !known {
		if n.c.Admit == nil && !q.Fresh {
			return fmt.Errorf("%w: it was removed", ErrRefused)
		}
	}
	if n.c.Admit != nil {
		if err := n.c.Admit(q.ID, q.Addr); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if known && (q.Fresh || m.Address != q.Addr) {
		if s := n.askMember(ctx, m); s.Error == "" && s.Instance != q.Instance {
			return fmt.Errorf("%w: another server of its ID answers at %s; a data dir is for one server, and a copy of it for none", ErrRefused, m.Address)
		}
	}
	id, addr := raft.ServerID(q.ID), raft.ServerAddress(q.Addr)
	if known && m.Voter && q.Fresh {
		// It has forgotten what it voted for and acknowledged. Members that lag know
		// it as a voter: with its vote they could forget as well.
		return fmt.Errorf("%w: the voter %s has lost its data; remove the rest of its data dir too, so that it comes as a new server", ErrRefused, q.ID)
	}
	if known && m.Address == q.Addr {
		return nil
	}
	for _, o := range n.Members() { // who was there is there no more
		if o.Address != q.Addr || o.ID == q.ID {
			continue
		}
		if err := n.dispensable(o); err != nil {
			return fmt.Errorf("its address is that of server %s: %w", o.ID, err)
		}
		n.c.Logger.Info("removing a server whose address another has now", "server", o.ID, "address", o.Address, "by", q.ID)
		err := n.change(ctx, func(r *raft.Raft) raft.Future {
			return r.RemoveServer(raft.ServerID(o.ID), 0, changeTimeout)
		})
		if err != nil {
			return err
		}
	}
	if known {
		n.c.Logger.Info("address of a server has changed", "server", q.ID, "from", m.Address, "to", q.Addr)
	} else {
		n.c.Logger.Info("a server joins", "server", q.ID, "address", q.Addr)
	}
	return n.change(ctx, func(r *raft.Raft) raft.Future {
		if m.Voter {
			return r.AddVoter(id, addr, 0, changeTimeout)
		}
		return r.AddNonvoter(id, addr, 0, changeTimeout)
	})
}

// commandVersion is the newest version of commands that all members can apply,
// as far as the leader knows.
func (n *Node) commandVersion() int {
	v, known := fsm.MaxCommandVersion, n.lastStats()
	for _, m := range n.Members() {
		if m.ID == n.c.NodeID {
			continue
		}
		s, ok := known[m.ID]
		if !ok {
			return 1
		}
		v = min(v, s.CommandVersion)
	}
	return v
}
