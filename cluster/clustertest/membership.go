package clustertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

// Changes of membership are asked for while everything else goes wrong. They may
// fail; what they may not do is lose a write.

const (
	maxMembers    = 5
	changePatient = 5 * time.Second
)

// background runs do with a time limit, so that faults go on meanwhile.
func (w *world) background(do func(ctx context.Context)) {
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), changePatient)
		defer cancel()
		do(ctx)
	})
}

func (w *world) transfer(r *rand.Rand) {
	m := pick(r, w.alive())
	if m == nil {
		return
	}
	id := ""
	if o := pick(r, w.alive()); r.IntN(2) == 0 && o != nil {
		id = o.id
	}
	w.background(func(ctx context.Context) {
		err := m.node.TransferLeadership(ctx, id)
		w.logf("%s asks to transfer leadership to %q: %v", m.host, id, err)
		if err == nil {
			w.meet("leadership handed over")
		}
	})
}

// addMember lets a new server join.
func (w *world) addMember(r *rand.Rand) {
	w.mu.Lock()
	host := ""
	for _, h := range []string{"a", "b", "c", "d", "e", "f", "g"}[:maxMembers] {
		if w.slots[h] == nil {
			host = h
			break
		}
	}
	if host != "" {
		w.slots[host] = &slot{host: host}
	}
	w.mu.Unlock()
	if host != "" {
		w.renew(r, w.slots[host])
	}
}

// renew puts a new server, with an empty disk, into a slot.
func (w *world) renew(r *rand.Rand, s *slot) {
	id, dir := w.newID(s.host), w.newDir()
	w.mu.Lock()
	s.id, s.dir, s.mistaken = id, dir, false
	w.mu.Unlock()
	w.logf("new server %s", id)
	w.ensnare(r, s, 3)
	w.restart(s)
	w.mu.Lock()
	if s.m != nil {
		s.m.joined = true
	}
	w.mu.Unlock()
}

// removeMember takes a member out of the configuration and then stops it. Its
// slot is free again.
func (w *world) removeMember(r *rand.Rand) {
	if s := w.expel(r); s != nil {
		w.mu.Lock()
		delete(w.slots, s.host)
		w.mu.Unlock()
	}
}

// replaceMember takes a member out and lets another come at its address.
func (w *world) replaceMember(r *rand.Rand) {
	if s := w.expel(r); s != nil {
		w.renew(r, s)
	}
}

// expel removes a member, if the cluster agrees, and stops it.
func (w *world) expel(r *rand.Rand) *slot {
	hosts := w.hosts()
	by := pick(r, w.alive())
	if len(hosts) <= 3 || by == nil {
		return nil
	}
	w.mu.Lock()
	s := w.slots[pick(r, hosts)]
	id := s.id
	w.mu.Unlock()
	if w.expelled != nil { // as membership marks it first
		w.mu.Lock()
		w.expelled[id] = true
		w.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), changePatient)
	defer cancel()
	err := by.node.Remove(ctx, id)
	w.logf("%s asks to remove %s: %v", by.host, id, err)
	if errors.Is(err, consensus.ErrQuorumRisk) {
		w.meet("removal refused")
	}
	if err != nil {
		return nil // it may have been removed all the same; see repair
	}
	w.meet("member removed")
	if s.m != nil && !s.m.dead.Load() {
		w.stop(s.m)
	}
	return s
}

// admit is consensus.Config.Admit: those that were dead for long may come back,
// those that somebody removed may not.
func (w *world) admit() func(id, addr string) error {
	if w.expelled == nil {
		return nil
	}
	return func(id, _ string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.expelled[id] {
			return errors.New("it was removed")
		}
		return nil
	}
}

// isMember says whether a member with that ID is in the configuration of m.
func isMember(m *member, id string) bool {
	for _, o := range m.node.Members() {
		if o.ID == id {
			return true
		}
	}
	return false
}
