package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/fsm/store"
)

// Gone is closed when this server was removed from the cluster. Run has logged
// what to do.
func (s *Service) Gone() <-chan struct{} { return s.gone }

// Run keeps the record of this server, which holds its name, and notices when
// it is removed. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var helpers sync.WaitGroup
	helpers.Go(func() { s.register(ctx) })
	helpers.Go(func() { s.askOthers(ctx) })
	defer helpers.Wait()
	id := s.c.Self().ID
	for {
		seen := s.c.Store.Revision()
		r := s.removal(id)
		if r != nil && (!r.Pending || !s.inConfiguration(id)) {
			s.removed(ctx, r)
			<-ctx.Done()
			return nil
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if r != nil { // the configuration changes without a word in the store
			wait, cancel = context.WithTimeout(ctx, configurationPoll)
		}
		_, _, _ = s.c.Store.Watch(removedPrefix+id, seen).Next(wait) // whatever it says: look again
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// configurationPoll is how often a server that is being removed looks whether it
// still is in the log's configuration.
const configurationPoll = 200 * time.Millisecond

func (s *Service) inConfiguration(id string) bool {
	members := s.c.Raft.Members()
	return len(members) == 0 || slices.ContainsFunc(members, func(m RaftMember) bool { return m.ID == id })
}

// removed says once that this server was removed.
func (s *Service) removed(ctx context.Context, r *Removal) {
	first := false
	s.once.Do(func() { first = true })
	if !first {
		return
	}
	s.c.Logger.Error("this server was removed from the cluster and serves no more writes; its pods go on until skiff reset",
		"by", r.By, "at", r.At.Format(time.RFC3339), "to rejoin", "stop it, run skiff reset --delete-data, and start it with --join and a new token")
	close(s.gone)
	leave, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.c.LeaveGossip(leave); err != nil && ctx.Err() == nil {
		s.c.Logger.Warn("gossip was not told that this server leaves: the others see it die", "error", err)
	}
}

const (
	leaderless = 5 * time.Second // without a leader, after which the others are asked
	askEvery   = 10 * time.Second
)

// askOthers finds out whether this server was removed while it was down or cut
// off: its own state does not say so, and the others refuse it on the Raft port
// without a word. They are asked only while there is no leader.
func (s *Service) askOthers(ctx context.Context) {
	for pause := leaderless; ; pause = askEvery {
		select {
		case <-ctx.Done():
			return
		case <-s.gone:
			return
		case <-time.After(pause):
		}
		if s.c.Raft.Stats().LeaderID != "" {
			continue
		}
		if r := s.askRemoved(ctx); r != nil {
			s.removed(ctx, r)
			return
		}
	}
}

// askRemoved gives the first word of another server that this one was removed.
func (s *Service) askRemoved(ctx context.Context) *Removal {
	self := s.c.Self()
	certs, err := parseCerts(s.c.Authority.Bundle())
	if err != nil {
		return nil
	}
	pool := poolOf(certs...)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: serverTLS(func() *x509.CertPool { return pool }), DisableKeepAlives: true}, Timeout: leaderTimeout}
	for _, o := range s.c.Servers() {
		if o.ID == self.ID || ctx.Err() != nil {
			continue
		}
		a, err := call[removedAnswer](ctx, client, http.MethodGet, "https://"+o.API()+RemovedPath+"?id="+url.QueryEscape(self.ID), nil, nil)
		if err == nil && a.Removal != nil && !a.Removal.Pending {
			return a.Removal
		}
	}
	return nil
}

// registerRetry is the pause after a failed attempt to write the record.
const registerRetry = 2 * time.Second

// register writes this server's record, unless it is there. The first server of
// a cluster has not joined, and an older version wrote none.
func (s *Service) register(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.registerOnce(ctx)
		if err == nil {
			return
		}
		level := s.c.Logger.Debug
		if errors.As(err, new(*Refusal)) {
			level = s.c.Logger.Error
		}
		level("this server's record is not written", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(registerRetry):
		}
	}
}

func (s *Service) registerOnce(ctx context.Context) error {
	self := s.c.Self()
	if err := s.current(ctx); err != nil {
		return err
	}
	have, revision, err := s.record(self.Name)
	switch {
	case err != nil:
		return err
	case have != nil && have.ID == self.ID && have.Role == s.c.Role:
		return nil
	case s.removal(self.ID) != nil:
		return nil // Run says it
	case have != nil && have.ID != self.ID:
		return refuse(http.StatusConflict, "the name %s is taken by another member, at %s: give this server another with --name", self.Name, have.Address)
	}
	rec := Record{ID: self.ID, Role: s.c.Role, Joined: s.c.Now().UTC().Truncate(time.Second), Address: self.Address.String()}
	if have != nil {
		rec.Joined = have.Joined
	}
	op, err := putRecord(self.Name, rec, revision)
	if err != nil {
		return fmt.Errorf("encode the record: %w", err)
	}
	err = s.propose(ctx, "write the record of this server", op)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w: look again", err)
	}
	return err
}
