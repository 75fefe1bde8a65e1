package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Removed is the answer to a removal.
type Removed struct {
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
	Role Role   `json:"role"`
	// Notes say what the removal means, a line each.
	Notes []string `json:"notes,omitempty"`
}

// target is what is known of a member that is to be removed or promoted.
type target struct {
	Server
	role   Role
	state  State
	inRaft bool
	voter  bool
	node   bool // it has a Node object
}

// find looks for a member by name, in the records, gossip, the log's
// configuration and the nodes.
func (s *Service) find(ctx context.Context, name string) (*target, error) {
	if err := s.current(ctx); err != nil {
		return nil, err
	}
	t := &target{Server: Server{Name: name}, state: Unknown}
	rec, _, err := s.record(name)
	if err != nil {
		return nil, err
	}
	p, inGossip := s.peer(name)
	if inGossip {
		t.Server, t.role, t.state = p.Server, p.Role, p.State
	}
	if rec != nil {
		t.ID, t.role = rec.ID, rec.Role
		if p.ID != rec.ID {
			t.state = Unknown
		}
	}
	for _, m := range s.c.Raft.Members() {
		if m.ID == t.ID || m.ID == name { // a server that is only in the log's configuration goes by its ID
			t.ID, t.inRaft, t.voter = m.ID, true, m.Voter
		}
	}
	if t.inRaft && !t.role.Votes() {
		t.role = RoleServer
	}
	if s.c.Client != nil {
		if _, err := s.c.Client().CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"}); err == nil {
			t.node = true
		} else if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
	}
	if t.role == "" && t.node {
		t.role = RoleAgent
	}
	if rec == nil && !inGossip && !t.inRaft && !t.node {
		return nil, refuse(http.StatusNotFound, "there is no member %q; see skiff member list", name)
	}
	return t, nil
}

// Remove ends a membership. by says who asked, for the record. A server whose
// loss would leave no spare one is removed only with force; one without which
// there would be no quorum never is, because that could not be committed. A server
// has another one remove it: what comes after its last moment as a member is not
// for it to write.
func (s *Service) Remove(ctx context.Context, name, by string, force bool) (*Removed, error) {
	t, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if t.ID != "" && t.ID == s.c.Self().ID {
		return s.removeSelf(ctx, t, by, force)
	}
	return s.remove(ctx, t, by, force)
}

func (s *Service) remove(ctx context.Context, t *target, by string, force bool) (*Removed, error) {
	name := t.Name
	if r := s.removal(t.ID); r != nil && !r.Pending && !t.inRaft && !t.node {
		return nil, refuse(http.StatusConflict, "%s was removed already by %s at %s", name, r.By, r.At.Format(time.RFC3339))
	}
	out := &Removed{Name: name, ID: t.ID, Role: t.role}
	if t.inRaft {
		risk, err := s.risk(ctx, t)
		if err != nil {
			return nil, err
		}
		if risk != "" && !force {
			return nil, riskRefusal(risk)
		}
		if risk != "" {
			out.Notes = append(out.Notes, risk)
		}
		if err := s.removeVoter(ctx, name, t.ID, t.role, by); err != nil {
			if errors.Is(err, consensus.ErrQuorumRisk) {
				return nil, refuse(http.StatusConflict, "server %s stays: %v", name, err)
			}
			return nil, err
		}
	}
	// The mark comes first, or a host that runs would make its node anew.
	if err := s.markRemoved(ctx, name, t.ID, Removal{Name: name, Role: t.role, By: by, At: s.c.Now().UTC().Truncate(time.Second)}); err != nil {
		return nil, err
	}
	if t.node {
		notes, err := s.removeNode(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("%s was removed, but for its node: %w; try again", name, err)
		}
		out.Notes = append(out.Notes, notes...)
	}
	s.c.Forget(name)
	if t.state == Alive {
		out.Notes = append(out.Notes, "the host still runs: on it, stop skiff and run skiff reset --delete-data, which ends its pods and makes it free to join again")
	}
	s.c.Logger.Info("a member was removed", "name", name, "id", t.ID, "role", t.role, "by", by)
	return out, nil
}

func riskRefusal(risk string) error {
	return refuse(http.StatusConflict, "%s: add another server first, or say --force", risk)
}

// markRemoved writes that the member is gone for good.
func (s *Service) markRemoved(ctx context.Context, name, id string, r Removal) error {
	var ops []fsm.Op
	if id != "" {
		op, err := putRemoval(id, r)
		if err != nil {
			return err
		}
		ops = append(ops, op)
	}
	rec, revision, err := s.record(name)
	if err != nil {
		return err
	}
	if rec != nil && (id == "" || rec.ID == id) {
		ops = append(ops, fsm.Op{Type: fsm.Delete, Key: memberPrefix + name, Expect: revision})
	}
	if len(ops) == 0 {
		return nil
	}
	return s.propose(ctx, "remove "+name, ops...)
}

// removeVoter takes a server out of the log's configuration. From the first
// write on it is not admitted again; if the configuration stays as it is, that
// write is undone.
func (s *Service) removeVoter(ctx context.Context, name, id string, role Role, by string) error {
	pending := Removal{Name: name, Role: role, By: by, At: s.c.Now().UTC().Truncate(time.Second), Pending: true}
	op, err := putRemoval(id, pending)
	if err != nil {
		return err
	}
	if err := s.propose(ctx, "remove server "+name, op); err != nil {
		return err
	}
	err = s.c.Raft.Remove(ctx, id)
	if err == nil || errors.Is(err, consensus.ErrNotMember) {
		return nil
	}
	if !errors.Is(err, consensus.ErrUnknownOutcome) {
		undo := fsm.Op{Type: fsm.Delete, Key: removedPrefix + id, Expect: fsm.Any}
		if e := s.propose(ctx, "keep server "+name, undo); e != nil {
			s.c.Logger.Warn("a removal that was refused is still in the state; it is undone or finished later", "server", name, "error", e)
		}
	}
	return fmt.Errorf("remove server %s: %w", name, err)
}

// healthy tells whether the leader hears of the server.
func (s *Service) healthy(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	stats, err := s.c.Raft.MemberStats(ctx)
	return err == nil && slices.ContainsFunc(stats, func(m RaftMember) bool { return m.ID == id && m.Healthy })
}

// heardMembers are the servers' stats. One that answers is not healthy before the
// leader has heard of it, which takes a moment after leadership was handed over:
// that is waited for, for leaderTimeout at most.
func (s *Service) heardMembers(ctx context.Context) ([]RaftMember, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	members, err := s.c.Raft.MemberStats(ctx)
	for err == nil && slices.ContainsFunc(members, func(m RaftMember) bool { return m.Voter && !m.Healthy && m.Problem == "" }) {
		select {
		case <-time.After(hearAgain):
		case <-ctx.Done():
			return members, nil
		}
		if now, err := s.c.Raft.MemberStats(ctx); err == nil {
			members = now
		}
	}
	return members, err
}

const hearAgain = 50 * time.Millisecond

// risk says what the cluster loses by removing t, "" if nothing. It is an error
// if t can't be removed.
func (s *Service) risk(ctx context.Context, t *target) (string, error) {
	if !t.voter {
		return "", nil
	}
	members, err := s.heardMembers(ctx)
	if err != nil {
		return "", fmt.Errorf("removing server %s needs a quorum of the servers: %w", t.Name, err)
	}
	var voters, live, stay, liveStay int
	var down []string
	for _, m := range members {
		if !m.Voter {
			continue
		}
		voters++
		if m.ID != t.ID {
			stay++
		}
		switch {
		case m.Healthy && m.ID != t.ID:
			live, liveStay = live+1, liveStay+1
		case m.Healthy:
			live++
		case m.ID != t.ID:
			down = append(down, s.nameOf(m.ID))
		}
	}
	switch {
	case stay == 0:
		return "", refuse(http.StatusConflict, "%s is the only server: without it there is no cluster (skiff reset --delete-data removes everything from a host)", t.Name)
	case liveStay < stay/2+1:
		return "", refuse(http.StatusConflict, "without %s only %d of %d servers would be up (%s down), and no write would be possible, not even the removal: bring another server up first",
			t.Name, liveStay, stay, strings.Join(down, ", "))
	}
	before, after := live-(voters/2+1), liveStay-(stay/2+1)
	if after == 0 && before > 0 {
		return fmt.Sprintf("without %s the loss of one more server stops all writes", t.Name), nil
	}
	return "", nil
}

// nameOf gives the name of the member with that ID, or the ID.
func (s *Service) nameOf(id string) string {
	for _, p := range s.c.Peers() {
		if p.ID == id && p.Name != "" {
			return p.Name
		}
	}
	for name, r := range s.records() {
		if r.ID == id {
			return name
		}
	}
	return id
}

// removeNode deletes the Node object; what that does to its pods is in the
// notes.
func (s *Service) removeNode(ctx context.Context, name string) ([]string, error) {
	pods, err := s.c.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", name).String()})
	if err != nil {
		return nil, fmt.Errorf("pods of node %s: %w", name, err)
	}
	if err := s.c.Client().CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	var owned int
	var bare []string
	for i := range pods.Items {
		p := &pods.Items[i]
		switch c := metav1.GetControllerOf(p); {
		case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		case c == nil:
			bare = append(bare, p.Namespace+"/"+p.Name)
		case c.Kind != "DaemonSet":
			owned++
		}
	}
	var notes []string
	if owned > 0 {
		notes = append(notes, fmt.Sprintf("%d of its pods are deleted and replaced on other nodes by their controllers", owned))
	}
	if len(bare) > 0 {
		slices.Sort(bare)
		notes = append(notes, fmt.Sprintf("pods without a controller are lost: %s", strings.Join(bare, ", ")))
	}
	return notes, nil
}

// Promote makes a server that does not vote yet a voter, if it has caught up.
func (s *Service) Promote(ctx context.Context, name string) error {
	t, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case !t.inRaft && t.role.Votes():
		return refuse(http.StatusConflict, "server %s has not reached the log yet: see its own log for why", name)
	case !t.inRaft:
		return refuse(http.StatusConflict, "%s is an agent: to make it a server, remove it, run skiff reset --delete-data there, and join it with skiff server --join", name)
	case t.voter:
		return refuse(http.StatusConflict, "server %s votes already", name)
	}
	if err := s.c.Raft.Promote(ctx, t.ID); err != nil {
		return fmt.Errorf("promote server %s: %w", name, err)
	}
	return nil
}

// Removals gives a channel of one place that is poked after every change of who
// was removed, and a function that ends this.
func (s *Service) Removals() (<-chan struct{}, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	poked := make(chan struct{}, 1)
	w := s.c.Store.Watch(removedPrefix, s.c.Store.Revision())
	go func() {
		for {
			events, _, err := w.Next(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil: // fell behind
				w = s.c.Store.Watch(removedPrefix, s.c.Store.Revision())
			case len(events) == 0:
				continue
			}
			select {
			case poked <- struct{}{}:
			default:
			}
		}
	}()
	return poked, cancel
}

// FinishRemovals is a leader's duty: it brings removals of servers to an end
// that another server has begun and could not finish. It returns when ctx ends.
func (s *Service) FinishRemovals(ctx context.Context) error {
	for {
		seen := s.c.Store.Revision()
		for id, r := range s.pendingRemovals() {
			if s.c.Now().Sub(r.At) < pendingGrace {
				continue // whoever began it is at it
			}
			if err := s.finishRemoval(ctx, id, r); err != nil && ctx.Err() == nil {
				s.c.Logger.Warn("the removal of a server is not finished yet", "server", r.Name, "error", err)
			}
		}
		w := s.c.Store.Watch(removedPrefix, seen)
		wait, cancel := ctx, context.CancelFunc(func() {})
		if len(s.pendingRemovals()) > 0 {
			wait, cancel = context.WithTimeout(ctx, pendingGrace)
		}
		_, _, _ = w.Next(wait) // whatever it says: look again
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pendingGrace is what a removal may take.
const pendingGrace = 30 * time.Second

func (s *Service) finishRemoval(ctx context.Context, id string, r Removal) error {
	in := slices.ContainsFunc(s.c.Raft.Members(), func(m RaftMember) bool { return m.ID == id })
	if in {
		if err := s.c.Raft.Remove(ctx, id); err != nil && !errors.Is(err, consensus.ErrNotMember) {
			if errors.Is(err, consensus.ErrQuorumRisk) { // it was refused then, and is now
				return s.propose(ctx, "keep server "+r.Name, fsm.Op{Type: fsm.Delete, Key: removedPrefix + id, Expect: fsm.Any})
			}
			return err
		}
	}
	r.Pending = false
	return s.markRemoved(ctx, r.Name, id, r)
}

func (s *Service) pendingRemovals() map[string]Removal {
	out := map[string]Removal{}
	s.c.Store.View().Ascend(removedPrefix, "", func(kv *store.KeyValue) bool {
		var r Removal
		if err := json.Unmarshal(kv.Value, &r); err == nil && r.Pending {
			out[strings.TrimPrefix(kv.Key, removedPrefix)] = r
		}
		return true
	})
	return out
}
