package consensus

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/store"
)

// All members have the same state at the same revision, or one of them serves
// what is not true: its memory failed, or Apply is not deterministic. So the leader
// compares now and then: it names a revision that it has just reached, and every
// member hashes its own state at that, while it goes on. What differs is shown as
// the member's problem until it is started again. Nobody is stopped for it: who is
// right is for a person to say when there are only two.
//
// Nothing is written to the log. A cluster that is quiet is not compared again.

const (
	methodState  = ownMethods + "state"
	compareWait  = time.Minute // for a member to reach the revision and hash its state
	hashBlock    = 1 << 20     // bytes hashed between two pauses
	hashPauses   = 3           // how much longer a pause is than the work before it
	firstCompare = 5 * time.Minute
)

// stateQuestion asks for the hash at a revision, stateAnswer is that.
type stateQuestion struct {
	Revision int64 `json:"revision"`
}

type stateAnswer struct {
	Hash     string `json:"hash"`
	Instance string `json:"instance"` // of the process
}

// differing are the members whose state is not that of the others.
type differing struct {
	mu sync.Mutex
	by map[string]difference // by ID; guarded by mu
}

type difference struct{ instance, text string }

// problem is why a member is not to be trusted, "" if nothing is known against it.
func (d *differing) problem(id, instance string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.by[id]; ok && have.instance == instance {
		return have.text
	}
	return ""
}

// set replaces what is known.
func (d *differing) set(by map[string]difference) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.by = by
}

// answerState hashes the own state.
func (n *Node) answerState(ctx context.Context, _ string, body []byte) ([]byte, error) {
	var q stateQuestion
	if err := json.Unmarshal(body, &q); err != nil || q.Revision < 1 {
		return nil, errors.New("malformed question for the state")
	}
	sum, err := n.hashAt(ctx, q.Revision)
	if err != nil {
		return nil, err
	}
	return json.Marshal(stateAnswer{Hash: sum, Instance: n.instance})
}

// hashAt waits for the revision and hashes the state that it had.
func (n *Node) hashAt(ctx context.Context, revision int64) (string, error) {
	s := n.c.FSM.Store()
	for s.Revision() < revision {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("wait for revision %d, have %d: %w", revision, s.Revision(), ctx.Err())
		}
	}
	v, err := s.ViewAt(revision)
	if err != nil {
		return "", fmt.Errorf("state at revision %d: %w", revision, err)
	}
	return hashView(ctx, v, hashPauses)
}

// hashView is a SHA-256 over all keys of a view in order. It rests pauses times as
// long as it works.
func hashView(ctx context.Context, v *store.View, pauses int) (string, error) {
	h := &countingHash{Hash: sha256.New()}
	w := bufio.NewWriterSize(h, 64<<10)
	began := time.Now()
	var head [5 * binary.MaxVarintLen64]byte
	var err error
	v.Ascend("", "", func(kv *store.KeyValue) bool {
		b := binary.AppendUvarint(head[:0], uint64(len(kv.Key)))
		b = binary.AppendVarint(b, kv.CreateRevision)
		b = binary.AppendVarint(b, kv.ModRevision)
		b = binary.AppendVarint(b, kv.Expires)
		b = binary.AppendUvarint(b, uint64(len(kv.Value)))
		w.Write(b) // a hash takes everything
		w.WriteString(kv.Key)
		w.Write(kv.Value)
		if h.n < hashBlock {
			return true
		}
		h.n = 0
		select {
		case <-time.After(time.Duration(pauses) * time.Since(began)):
		case <-ctx.Done():
			err = ctx.Err()
		}
		began = time.Now()
		return err == nil
	})
	w.Flush()
	return hex.EncodeToString(h.Sum(nil)), err
}

type countingHash struct {
	hash.Hash
	n int
}

func (c *countingHash) Write(b []byte) (int, error) {
	c.n += len(b)
	return c.Hash.Write(b)
}

// compare compares the members from time to time while this one leads.
func (n *Node) compare(ctx context.Context) {
	var last int64
	for wait := min(firstCompare, n.c.CompareEvery); ; wait = n.c.CompareEvery {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		if rev := n.c.FSM.Store().Revision(); rev != last && len(n.Members()) > 1 && n.compareNow(ctx, rev) {
			last = rev
		}
	}
}

// compareNow compares all members at a revision. It returns false when too few
// answered for a result.
func (n *Node) compareNow(ctx context.Context, revision int64) bool {
	ctx, cancel := context.WithTimeout(ctx, compareWait)
	defer cancel()
	body, err := json.Marshal(stateQuestion{revision})
	if err != nil {
		return false
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	answers := map[string]stateAnswer{}
	for _, m := range n.Members() {
		wg.Go(func() {
			b, err := n.Call(ctx, m.ID, methodState, body)
			var a stateAnswer
			if err == nil {
				err = json.Unmarshal(b, &a)
			}
			if err != nil {
				n.c.Logger.Debug("a member was not compared", "server", m.ID, "error", err)
				return
			}
			mu.Lock()
			answers[m.ID] = a
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(answers) < 2 {
		return false
	}
	n.differs.set(judge(answers, n.c.NodeID, revision))
	for id := range answers {
		if text := n.differs.problem(id, answers[id].Instance); text != "" {
			n.c.Logger.Error("the servers do not have the same state", "server", id, "problem", text)
		}
	}
	n.resignDiffering(ctx, n.raft.Load())
	return true
}

// judge says who has another state than most. Without a majority it is the other
// than the leader's: that is what clients are told to believe.
func judge(answers map[string]stateAnswer, leader string, revision int64) map[string]difference {
	count := map[string]int{}
	for _, a := range answers {
		count[a.Hash]++
	}
	right, text := answers[leader].Hash, "its state at revision %d differs from the leader's, and which of the two is right is not known; skiff recover --rejoin on a server gets it that of the others"
	for h, c := range count {
		if 2*c > len(answers) {
			right, text = h, "its state at revision %d differs from that of the other servers, so what it answers may be wrong; run skiff recover --rejoin on it"
		}
	}
	out := map[string]difference{}
	for id, a := range answers {
		if a.Hash != right {
			out[id] = difference{a.Instance, fmt.Sprintf(text, revision)}
		}
	}
	return out
}

// resignDiffering hands leadership over if it is this member whose state differs.
func (n *Node) resignDiffering(ctx context.Context, r *raft.Raft) {
	if r.State() == raft.Leader && n.differs.problem(n.c.NodeID, n.instance) != "" {
		if err := n.transferHere(ctx, ""); err != nil && ctx.Err() == nil {
			n.c.Logger.Error("this server's state differs from that of the others, and it could not hand over leadership", "error", err)
		}
	}
}
