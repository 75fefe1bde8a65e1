package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

const (
	startPatience   = time.Second     // for the others' word at the start, where some are silent
	unaskedPatience = 3 * time.Second // likewise of a server on a restored snapshot
	askLimit        = 2 * time.Second // for their word later
	epochLook       = time.Second     // how often it is looked whether there is a reason to ask
	epochAsk        = 2 * time.Second // between questions for a reason
	// Servers of a later epoch greet those that they know and that have not joined
	// it, who may not know where it is: greetEvery in the first greetLong, then
	// greetRarely.
	greetEvery, greetRarely, greetLong = 2 * time.Second, time.Minute, 5 * time.Minute
	maxHeard                           = 32
)

// ErrRefusedStart says that this server must not begin; its text says what to do
// instead.
var ErrRefusedStart = errors.New("this server does not start")

// refusedStart is an ErrRefusedStart.
type refusedStart string

func (r refusedStart) Error() string        { return string(r) }
func (r refusedStart) Is(target error) bool { return target == ErrRefusedStart }

// epochs is what this server knows of other epochs.
type epochs struct {
	mu      sync.Mutex
	warning string                       // that two histories live; guarded by mu
	heard   map[string]membership.Server // that have said they are of another one; guarded by mu
	news    chan struct{}                // of one place
	restart chan struct{}                // of one place: an intent was saved
}

func (e *epochs) init() {
	e.heard, e.news, e.restart = map[string]membership.Server{}, make(chan struct{}, 1), make(chan struct{}, 1)
}

// EpochHash is how gossip carries the ID of an epoch.
func EpochHash(e raftdir.Epoch) uint32 {
	if e.ID == "" {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(e.ID))
	return h.Sum32()
}

// openEpoch reads the epoch of the log. A server that has just joined has none,
// and takes that which the cluster told.
func (s *Server) openEpoch() (err error) {
	told := s.known.cluster.Epoch
	s.epoch, err = raftdir.LoadEpoch(s.cfg.DataDir)
	damaged := errors.Is(err, raftdir.ErrDamaged)
	if !errors.Is(err, unix.EISDIR) && s.known.cluster.ClusterID != "" && raftdir.Exists(s.cfg.DataDir) && (damaged || err == nil && s.epoch.ID == "" && told.ID != "") {
		// cluster.json never tells of a later one than the log is of.
		s.cfg.Logger.Warn("the file with the epoch of the log is lost or damaged; it is written anew", "epoch", told.String(), "error", err)
		s.epoch = told
		s.epoch.Number = max(told.Number, 1)
		return raftdir.SaveEpoch(s.cfg.DataDir, s.epoch)
	}
	if damaged {
		return fmt.Errorf("%w; move it away where %s is whole, which tells the epoch too; or get the log from the other servers: skiff recover --rejoin --data-dir %s", err, membership.ClusterFile, s.cfg.DataDir)
	}
	if err != nil {
		return err
	}
	if s.epoch.ID != "" || told.Number <= 1 || raftdir.Exists(s.cfg.DataDir) {
		return nil
	}
	if err := os.MkdirAll(raftdir.Path(s.cfg.DataDir), 0o700); err != nil {
		return fmt.Errorf("epoch of the log: %w", err)
	}
	s.epoch = told
	return raftdir.SaveEpoch(s.cfg.DataDir, told)
}

// view is what this server says of itself to the one with that ID.
func (s *Server) view(caller string) epoch.View {
	v := epoch.View{ClusterID: s.node.Stats().ClusterID, Server: s.self(), Epoch: s.epoch}
	s.known.mu.Lock()
	if v.ClusterID == "" {
		v.ClusterID = s.known.cluster.ClusterID
	}
	s.known.mu.Unlock()
	v.Index, v.Term = s.node.LastEntry()
	if id, _ := s.node.Leader(); id != "" && s.members.Membership().Err() == nil {
		v.Led = true
		for _, o := range s.servers() {
			if o.ID == id {
				v.Leader = o.Name
			}
		}
	}
	for _, m := range s.node.Members() {
		v.Voter = v.Voter || m.ID == caller && m.Voter
	}
	return v
}

// hear notes a server of another epoch that has called.
func (s *Server) hear(v epoch.View) {
	if v.Epoch.Same(s.epoch) || v.ClusterID != s.view("").ClusterID {
		return
	}
	s.epochs.mu.Lock()
	if _, have := s.epochs.heard[v.Server.ID]; have || len(s.epochs.heard) < maxHeard {
		s.epochs.heard[v.Server.ID] = v.Server
	}
	s.epochs.mu.Unlock()
	select {
	case s.epochs.news <- struct{}{}:
	default:
	}
}

// otherServers are all that this server knows of or has heard from, but itself.
func (s *Server) otherServers() []membership.Server {
	byID := map[string]membership.Server{}
	s.epochs.mu.Lock()
	maps.Copy(byID, s.epochs.heard)
	s.epochs.mu.Unlock()
	for _, o := range s.servers() {
		byID[o.ID] = o
	}
	delete(byID, s.id)
	out := slices.Collect(maps.Values(byID))
	// Its own address is what it had under a former ID.
	return slices.DeleteFunc(out, func(o membership.Server) bool { return o.Raft() == s.self().Raft() })
}

func (s *Server) askEpochs(ctx context.Context, limit time.Duration, enough func(epoch.View) bool) []epoch.Answer {
	return epoch.Ask(ctx, s.memberTLS, s.view(""), s.otherServers(), limit, enough)
}

// consult asks the other servers, before Raft starts, which epoch is alive: a
// server that was away must not make a quorum of a history that was given up.
func (s *Server) consult(ctx context.Context) error {
	unasked, limit := raftdir.Unasked(s.cfg.DataDir), startPatience
	if unasked {
		limit = unaskedPatience
	}
	answers := s.askEpochs(ctx, limit, func(v epoch.View) bool { return v.Led && (unasked || v.Epoch.Same(s.epoch)) })
	d := epoch.Decide(epoch.Situation{Self: s.view(""), Unasked: unasked, Starting: true, Others: epoch.Views(answers)})
	switch d.Action {
	case epoch.Refuse:
		return refusedStart(d.Why)
	case epoch.Follow:
		return s.follow(ctx, d)
	case epoch.KeepOut:
		s.members.KeepOut(ctx, d.Why)
		<-ctx.Done()
		return nil
	}
	if unasked {
		return raftdir.SetUnasked(s.cfg.DataDir, false)
	}
	return nil
}

// follow lets the next run of this server join another epoch.
func (s *Server) follow(ctx context.Context, d epoch.Decision) error {
	s.cfg.Logger.Warn("this server gives up its log and joins the cluster's present epoch; the log is moved aside, pods go on", "because", d.Why)
	return s.intend(ctx, epoch.RejoinIntent(*d.Target))
}

// intend saves an intent and gives the error that starts the server again.
func (s *Server) intend(ctx context.Context, i epoch.Intent) error {
	if err := i.Save(s.cfg.DataDir); err != nil {
		return err
	}
	if i.NodeID != "" { // else the others take the old ID for alive until it is missed
		leave, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := s.leaveGossip(leave); err != nil {
			s.cfg.Logger.Debug("gossip was not told that the former ID leaves", "error", err)
		}
	}
	return ErrRestart
}

// followEpochs looks for servers of another epoch while there is a reason to,
// until ctx ends. ErrRestart says that this server joins it.
func (s *Server) followEpochs(ctx context.Context) error {
	began, led, asked, greeted := time.Now(), time.Now(), time.Time{}, time.Now()
	tick := time.NewTicker(epochLook)
	defer tick.Stop()
	news := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.epochs.restart:
			return ErrRestart
		case <-s.epochs.news:
			news = true
		case <-tick.C:
		}
		if s.members.Membership().Err() != nil || !s.node.Started() {
			continue
		}
		now := time.Now()
		if id, _ := s.node.Leader(); id != "" {
			led = now
		}
		greet := greetEvery
		if now.Sub(began) > greetLong {
			greet = greetRarely
		}
		reason := news || now.Sub(led) >= epoch.Patience/2 || s.foreignPeers()
		switch {
		case reason && now.Sub(asked) >= epochAsk:
		case s.epoch.Number > 1 && now.Sub(greeted) >= greet && s.missing():
			greeted = now
		default:
			continue
		}
		asked, news = now, false
		views := epoch.Views(s.askEpochs(ctx, askLimit, nil))
		d := epoch.Decide(epoch.Situation{Self: s.view(""), Leaderless: time.Since(led), Others: views})
		switch d.Action {
		case epoch.Follow:
			err := s.follow(ctx, d)
			if errors.Is(err, ErrRestart) {
				return err
			}
			s.cfg.Logger.Error("this server cannot join the cluster's present epoch, will try again", "error", err) // as on a full disk
			continue
		case epoch.KeepOut:
			s.members.KeepOut(ctx, d.Why)
			continue
		}
		s.warnOfEpochs(d.Why)
		s.forgetHeard(views)
	}
}

// foreignPeers says whether gossip hears of a server of another epoch.
func (s *Server) foreignPeers() bool {
	hash := EpochHash(s.epoch)
	return slices.ContainsFunc(s.peers(), func(p membership.Peer) bool {
		return p.Role.Votes() && p.State == membership.Alive && p.ID != s.id && (max(p.Epoch, 1) != s.epoch.Number || p.EpochHash != hash)
	})
}

// missing says whether a server that is known is not seen in this epoch.
func (s *Server) missing() bool {
	present, hash := map[string]bool{}, EpochHash(s.epoch)
	for _, p := range s.peers() {
		present[p.ID] = p.State == membership.Alive && max(p.Epoch, 1) == s.epoch.Number && p.EpochHash == hash
	}
	return slices.ContainsFunc(s.otherServers(), func(o membership.Server) bool { return !present[o.ID] })
}

func (s *Server) warnOfEpochs(why string) {
	s.epochs.mu.Lock()
	news := why != s.epochs.warning
	s.epochs.warning = why
	s.epochs.mu.Unlock()
	if news && why != "" {
		s.cfg.Logger.Error("the cluster is divided", "because", why)
	}
}

// epochWarnings are for the status.
func (s *Server) epochWarnings() []string {
	s.epochs.mu.Lock()
	defer s.epochs.mu.Unlock()
	if s.epochs.warning == "" {
		return nil
	}
	return []string{s.epochs.warning}
}

// forgetHeard drops those that have said nothing of another epoch.
func (s *Server) forgetHeard(views []epoch.View) {
	s.epochs.mu.Lock()
	defer s.epochs.mu.Unlock()
	for id := range s.epochs.heard {
		if !slices.ContainsFunc(views, func(v epoch.View) bool { return v.Server.ID == id && !v.Epoch.Same(s.epoch) }) {
			delete(s.epochs.heard, id)
		}
	}
}
