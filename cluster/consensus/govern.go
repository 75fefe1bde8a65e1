package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// What a leader does about the members, in units of Config.HeartbeatTimeout (a
// second): it looks at them every two, makes those voters that were healthy for
// five, and takes for dead what is not heard for three.
const (
	lookBeats    = 2
	stableBeats  = 5
	silentBeats  = 3
	surplusBeats = 10 // a dead voter that makes the number even goes after so many
	fewVoters    = 3  // below which no dead voter is removed: two tolerate no failure, as three with one dead
)

// governor is the leader's autopilot.ApplicationIntegration.
type governor struct {
	n   *Node
	ctx context.Context // of the reign

	looked chan struct{} // of one place

	mu   sync.Mutex
	dead map[string]time.Time // since when, or since this member leads
}

// govern promotes, removes and hands over, until ctx ends. While the leader is
// alone it does nothing, and it writes only what changes the configuration.
func (n *Node) govern(ctx context.Context, r *raft.Raft) {
	g := &governor{n: n, ctx: ctx, looked: make(chan struct{}, 1), dead: map[string]time.Time{}}
	every := lookBeats * n.c.HeartbeatTimeout
	pilot := autopilot.New(ofMembers{r}, g, autopilot.WithLogger(newHCLogger(n.c.Logger)), autopilot.WithPromoter(&promoter{}),
		autopilot.WithUpdateInterval(every), autopilot.WithReconcileInterval(every))
	running := false
	stop := func() {
		if running {
			ended := pilot.Stop()
			n.behind.Go(func() { <-ended })
		}
		running = false
	}
	defer stop()
	for {
		if many := len(n.Members()) > 1; many && !running {
			pilot.Start(ctx)
			running = true
		} else if !many {
			stop()
		}
		if n.c.Witness && running && len(n.heirs(false)) > 0 {
			if err := n.transferHere(ctx, ""); err != nil && ctx.Err() == nil {
				n.c.Logger.Info("a witness could not hand over leadership; it is tried again", "error", err)
			}
		}
		select {
		case <-g.looked:
		case <-n.lead.peers:
		case <-n.lead.full:
			n.handOverFull(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// ofMembers is the log as autopilot gets to see it. Autopilot decides on a view
// that can be seconds old; what it promotes may have been removed meanwhile, or
// have another address, and must not come back by that.
type ofMembers struct{ *raft.Raft }

// AddVoter makes a member a voter, if it still is one at that address.
func (o ofMembers) AddVoter(id raft.ServerID, addr raft.ServerAddress, _ uint64, timeout time.Duration) raft.IndexFuture {
	now := o.GetConfiguration()
	if err := now.Error(); err != nil {
		return failed{err}
	}
	for _, s := range now.Configuration().Servers {
		if s.ID == id && s.Address == addr {
			return o.Raft.AddVoter(id, addr, now.Index(), timeout) // fails if the configuration changes before
		}
	}
	return failed{fmt.Errorf("promote server %s at %s: %w", id, addr, ErrNotMember)}
}

// failed is a change of the configuration that was not tried.
type failed struct{ err error }

func (f failed) Error() error  { return f.err }
func (f failed) Index() uint64 { return 0 }

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (g *governor) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers: true, MinQuorum: fewVoters, MaxTrailingLogs: maxLag,
		LastContactThreshold:    silentBeats * g.n.c.HeartbeatTimeout,
		ServerStabilizationTime: stableBeats * g.n.c.HeartbeatTimeout,
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (g *governor) NotifyState(*autopilot.State) {
	select {
	case g.looked <- struct{}{}:
	default:
	}
}

// FetchServerStats implements autopilot.ApplicationIntegration.
func (g *governor) FetchServerStats(ctx context.Context, _ map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	out := map[raft.ServerID]*autopilot.ServerStats{}
	for _, s := range g.n.askMembers(ctx) {
		st := &autopilot.ServerStats{LastContact: s.LastContact, LastTerm: s.LastTerm, LastIndex: s.LastIndex}
		if s.Error != "" || s.Problem != "" {
			st.LastContact = -1 // not healthy
		}
		out[raft.ServerID(s.ID)] = st
	}
	return out
}

// KnownServers implements autopilot.ApplicationIntegration. Failed are those
// that should be removed.
func (g *governor) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := map[raft.ServerID]*autopilot.Server{}
	for _, m := range g.n.Members() {
		s := &autopilot.Server{
			ID: raft.ServerID(m.ID), Name: m.ID, Address: raft.ServerAddress(m.Address),
			NodeStatus: autopilot.NodeAlive, IsLeader: m.ID == g.n.c.NodeID, RaftVersion: 3,
		}
		if m.Voter {
			s.NodeType = autopilot.NodeVoter
		}
		if g.expired(m) {
			s.NodeStatus = autopilot.NodeFailed
		}
		out[s.ID] = s
	}
	return out
}

// expired says whether a member was dead for so long that it is removed.
func (g *governor) expired(m Member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.ID == g.n.c.NodeID || !g.n.silent(m.ID) {
		delete(g.dead, m.ID)
		return false
	}
	since, ok := g.dead[m.ID]
	if !ok {
		since = time.Now()
		g.dead[m.ID] = since
	}
	silent := time.Since(since)
	if silent < surplusBeats*g.n.c.HeartbeatTimeout {
		return false
	}
	if silent >= g.n.c.DeadServerGrace {
		return true
	}
	voters, live := 0, 0
	for _, o := range g.n.Members() {
		if o.Voter {
			voters++
			if o.ID == g.n.c.NodeID || g.n.lives(o.ID) {
				live++
			}
		}
	}
	return m.Voter && voters%2 == 0 && live == voters-1
}

// RemoveFailedServer implements autopilot.ApplicationIntegration.
func (g *governor) RemoveFailedServer(s *autopilot.Server) {
	g.n.behind.Go(func() {
		ctx, cancel := context.WithTimeout(g.ctx, changeTimeout)
		defer cancel()
		if err := g.n.removeHere(ctx, string(s.ID)); err != nil {
			g.n.c.Logger.Warn("remove a dead server", "server", s.ID, "error", err)
			return
		}
		g.n.c.Logger.Info("removed a dead server", "server", s.ID)
	})
}

// promoter makes those voters that are stable, also when the leader is new.
type promoter struct{ autopilot.StablePromoter }

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (*promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) (changes autopilot.RaftChanges) {
	for id, m := range s.Servers {
		if m.State == autopilot.RaftNonVoter && m.Health.IsStable(time.Now(), c.ServerStabilizationTime) {
			changes.Promotions = append(changes.Promotions, id)
		}
	}
	return changes
}

// GetNodeTypes implements autopilot.Promoter: they are as KnownServers says.
func (*promoter) GetNodeTypes(*autopilot.Config, *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	return nil
}

// leaveToOthers is what a leader without room for writes answers: if another
// voter may have room, that one shall lead, and the write is tried again there.
func (n *Node) leaveToOthers(noRoom error) error {
	if !errors.Is(noRoom, ErrNoSpace) || len(n.heirs(true)) == 0 {
		return noRoom
	}
	select {
	case n.lead.full <- struct{}{}:
	default:
	}
	return fmt.Errorf("%w: %w", ErrNotLeader, errFull)
}

// handOverFull lets a voter lead whose disk has room, if there is one by now.
func (n *Node) handOverFull(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	n.askMembers(ctx)
	if len(n.heirs(true)) == 0 || n.log.Room() == nil {
		return
	}
	n.c.Logger.Warn("the disk is full; leadership is left to a server with room", "file", n.log.Path())
	if err := n.transferHere(ctx, ""); err != nil && ctx.Err() == nil {
		n.c.Logger.Info("handing over leadership because of a full disk", "error", err)
	}
}

var errFull = errors.New("its disk is full")

// handOver lets another member lead before this one stops.
func (n *Node) handOver(r *raft.Raft) {
	if r.State() != raft.Leader || n.soleVoter(r) || n.stall.problem() != nil || n.abrupt {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	if err := n.transferHere(ctx, ""); err != nil {
		n.c.Logger.Info("stopping without handing leadership over", "error", err)
	}
}

const handOverTimeout = 2 * time.Second
