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

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Membership ends when this server was removed from the cluster; its cause then
// says by whom, and what to do. Run has logged it.
func (s *Service) Membership() context.Context { return s.member }

// Asked is closed when the other servers were asked, at the start of Run, whether
// this one was removed while it was down, and have answered or do not.
func (s *Service) Asked() <-chan struct{} { return s.asked }

// Unfit gives one word of another server that this program does not work in the
// cluster as it is, and what to run instead.
func (s *Service) Unfit() <-chan string { return s.unfitWord }

// Run keeps the record of this server, which holds its name, and notices when
// it is removed. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var helpers sync.WaitGroup
	helpers.Go(func() { s.register(ctx) })
	helpers.Go(func() { s.askOthers(ctx) })
	helpers.Go(func() { s.watchVoters(ctx) })
	defer helpers.Wait()
	id := s.c.Self().ID
	var asked time.Time
	for {
		seen := s.c.Store.Revision()
		r := s.removal(id)
		if r != nil && r.Pending && s.inConfiguration(id) && time.Since(asked) > pendingAsk {
			// That it is over may not come here any more.
			asked = time.Now()
			if said := s.askRemoved(ctx); said != nil {
				r = said
			}
		}
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

const (
	// configurationPoll is how often a server that is being removed looks whether
	// it still is in the log's configuration.
	configurationPoll = 200 * time.Millisecond
	// pendingAsk is how often it asks the others.
	pendingAsk = time.Second
)

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
	s.busy.Lock()
	defer s.busy.Unlock()
	why := *r
	why.Role = s.c.Role
	s.c.Logger.Error("this server was removed from the cluster and serves nothing any more; its pods go on until skiff reset, but those of StatefulSets, which must not run twice",
		"by", r.By, "at", r.At.Format(time.RFC3339), "to rejoin", "stop it, run skiff reset --delete-data, and start it with --join and a new token")
	s.leave(why.error())
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
// without a word. They are asked at the start, and then while there is no leader.
func (s *Service) askOthers(ctx context.Context) {
	r := s.askRemoved(ctx)
	if r != nil {
		s.removed(ctx, r)
	}
	close(s.asked)
	for pause := leaderless; r == nil; pause = askEvery {
		select {
		case <-ctx.Done():
			return
		case <-s.member.Done():
			return
		case r = <-s.told:
		case <-time.After(pause):
			if s.c.Raft.Stats().LeaderID == "" {
				r = s.askRemoved(ctx)
			}
		}
		if r != nil {
			s.removed(ctx, r)
		}
	}
}

// lateAnswers is how long the others are waited for once one has said that it
// knows nothing of a removal: it may be behind.
const lateAnswers = 200 * time.Millisecond

// askRemoved asks all other servers at the same time whether this one was
// removed, and gives the first word of it.
func (s *Service) askRemoved(ctx context.Context) *Removal {
	self := s.c.Self()
	others := slices.DeleteFunc(slices.Clone(s.c.Servers()), func(o Server) bool { return o.ID == self.ID })
	certs, err := parseCerts(s.c.Authority.Bundle())
	if err != nil || len(others) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	pool := poolOf(certs...)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: serverTLS(func() *x509.CertPool { return pool }), DisableKeepAlives: true}}
	type answer struct {
		*Removal
		unfit string
		err   error
	}
	answers := make(chan answer, len(others))
	for _, o := range others {
		go func() {
			a, err := call[removedAnswer](ctx, client, http.MethodGet, "https://"+o.API()+RemovedPath+"?id="+url.QueryEscape(self.ID)+ThisProgram(s.c.Version).query(), nil, nil)
			if err != nil {
				a = &removedAnswer{}
			}
			answers <- answer{a.Removal, a.Unfit, err}
		}()
	}
	var late <-chan time.Time
	for range others {
		select {
		case a := <-answers:
			if a.unfit != "" {
				select {
				case s.unfitWord <- a.unfit:
				default:
				}
			}
			switch {
			case a.Removal != nil && !a.Pending:
				return a.Removal
			case a.err == nil && late == nil:
				late = time.After(lateAnswers)
			}
		case <-late:
			return nil
		}
	}
	return nil
}

// votersPoll is how often the number of voters is looked at.
const votersPoll = time.Second

// watchVoters warns when the log's configuration becomes one of two voters: it
// survives less than one.
func (s *Service) watchVoters(ctx context.Context) {
	for before := 0; ; {
		if s.c.Raft.Stats().LeaderID != "" { // else what is known here may be old
			now := countVoters(s.c.Raft.Members())
			if now == 2 && before != 2 {
				s.c.Logger.Warn("two servers vote, and " + twoVoters)
			}
			before = now
		}
		select {
		case <-ctx.Done():
			return
		case <-s.member.Done():
			return
		case <-time.After(votersPoll):
		}
	}
}

func countVoters(members []RaftMember) (n int) {
	for _, m := range members {
		if m.Voter {
			n++
		}
	}
	return n
}

// registerRetry is the pause after a failed attempt to write the record.
const registerRetry = 2 * time.Second

// register writes this server's record, unless it is there. The first server of
// a cluster has not joined, and an older version wrote none.
func (s *Service) register(ctx context.Context) {
	said := ""
	for ctx.Err() == nil && s.member.Err() == nil {
		err := s.registerOnce(ctx)
		if err == nil || s.member.Err() != nil {
			return
		}
		level := s.c.Logger.Debug
		if text := err.Error(); errors.As(err, new(*Refusal)) && text != said {
			level, said = s.c.Logger.Error, text
		}
		level("this server's record is not written", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(registerRetry):
		}
	}
}

// registerOnce writes the record of this server under its name. One under another
// name is moved: a member has one, and its former name is free then.
func (s *Service) registerOnce(ctx context.Context) error {
	self := s.c.Self()
	if err := s.current(ctx); err != nil {
		return err
	}
	have, revision, err := s.record(self.Name)
	var former []string
	for name, other := range s.records() {
		if other.ID == self.ID && name != self.Name {
			former = append(former, name)
		}
	}
	slices.Sort(former)
	switch {
	case err != nil:
		return err
	case have != nil && have.ID == self.ID && have.Role == s.c.Role && len(former) == 0 && have.at(self):
		return nil
	case s.removal(self.ID) != nil:
		return nil // Run says it
	}
	var ops []fsm.Op
	if have != nil && have.ID != self.ID {
		if ops, err = s.takeOver(ctx, self, *have); err != nil {
			return err
		}
		have = nil
	}
	rec := Record{ID: self.ID, Role: s.c.Role, Joined: s.c.Now().UTC().Truncate(time.Second), Address: self.Address.String(),
		APIPort: self.APIPort, RaftPort: self.RaftPort, GossipPort: self.GossipPort}
	if have != nil {
		rec.Joined = have.Joined
	}
	for _, name := range former {
		old, expect, err := s.record(name)
		if err != nil || old == nil || old.ID != self.ID {
			return errors.Join(errTryAgain, err)
		}
		if old.Joined.Before(rec.Joined) {
			rec.Joined = old.Joined
		}
		ops = append(ops, fsm.Op{Type: fsm.Delete, Key: memberPrefix + name, Expect: expect})
	}
	op, err := putRecord(self.Name, rec, revision)
	if err != nil {
		return fmt.Errorf("encode the record: %w", err)
	}
	err = s.propose(ctx, "write the record of this server", append(ops, op)...)
	if err == nil && len(former) > 0 {
		s.c.Logger.Warn("this server has another name than before, and is no member under the former one any more", "name", self.Name, "former", former)
	}
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w: look again", err)
	}
	return err
}

// takeOver gives the writes that end the membership of who held this server's
// name before: a snapshot that was restored on a new data directory names the
// server that it was taken on. One that is a member still keeps its name.
func (s *Service) takeOver(ctx context.Context, self Server, old Record) ([]fsm.Op, error) {
	for name, other := range s.records() {
		if other.ID == self.ID && name != self.Name {
			return nil, refuse(http.StatusConflict, "the name %s is taken by another member, at %s, and this server is a member already, as %s: start it with --name %s", self.Name, old.Address, name, name)
		}
	}
	alive := slices.ContainsFunc(s.c.Peers(), func(p Peer) bool { return p.ID == old.ID && p.State == Alive })
	if alive || s.inConfiguration(old.ID) {
		return nil, refuse(http.StatusConflict, "the name %s is taken by another member, at %s: give this server another with --name", self.Name, old.Address)
	}
	if s.c.Now().Sub(s.c.Started) < settleTime {
		return nil, fmt.Errorf("%w: this server has just started and does not know yet whether the former member %s lives", errTryAgain, self.Name)
	}
	ops, err := s.replace(ctx, self.Name, old)
	if err == nil {
		s.c.Logger.Info("the name of this server was that of another, which is no member any more; it is taken over", "name", self.Name, "former", old.ID)
	}
	return ops, err
}
