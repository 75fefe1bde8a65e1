package membership

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Status is what `skiff status` shows. Fields are only added.
type Status struct {
	Name    string    `json:"name"`    // of the server that was asked
	Version string    `json:"version"` // of skiff on it
	Started time.Time `json:"started"`
	// Duties that this server does as the leader.
	Duties []string        `json:"duties,omitempty"`
	Raft   consensus.Stats `json:"raft"`

	Role Role `json:"role"`
	// Epoch of the log on this server.
	Epoch raftdir.Epoch `json:"epoch"`
	// Leader is its name; empty when none is known.
	Leader  string         `json:"leader,omitempty"`
	Members []MemberStatus `json:"members"`
	// FeatureLevel of the cluster, and in a line how the roll-out of a version goes
	// that is going on.
	FeatureLevel int    `json:"featureLevel"`
	Upgrade      string `json:"upgrade,omitempty"`
	// FailureTolerance is how many more servers may fail before writes stop.
	FailureTolerance int `json:"failureTolerance"`
	// Partial says why this is only what the server knows itself; empty if the
	// leader was asked.
	Partial      string          `json:"partial,omitempty"`
	Evictions    *EvictionStatus `json:"evictions,omitempty"`
	Certificates []Certificate   `json:"certificates,omitempty"`
	// Snapshots are the scheduled ones of each server that answered.
	Snapshots []SnapshotStatus `json:"snapshots,omitempty"`
	Warnings  []string         `json:"warnings,omitempty"`
}

// MemberStatus is one member. What only servers have, or only the leader knows,
// is nil otherwise.
type MemberStatus struct {
	Name    string     `json:"name"`
	ID      string     `json:"id,omitempty"`
	Role    Role       `json:"role"`
	Address string     `json:"address,omitempty"`
	State   State      `json:"state"`
	Since   *time.Time `json:"since,omitempty"` // of the state
	Version string     `json:"version,omitempty"`
	// MaxLevel is the highest feature level that its program works at; 0: it does
	// not say.
	MaxLevel int   `json:"maxLevel,omitempty"`
	Load     uint8 `json:"load"` // percent of CPU

	Voter       bool           `json:"voter"`
	Leader      bool           `json:"leader"`
	Healthy     *bool          `json:"healthy,omitempty"`
	Term        *uint64        `json:"term,omitempty"`
	LastIndex   *uint64        `json:"lastIndex,omitempty"`
	Lag         *uint64        `json:"lag,omitempty"`         // log entries behind the leader
	LastContact *time.Duration `json:"lastContact,omitempty"` // nanoseconds ago; -1: never
	FsyncP99    *time.Duration `json:"fsyncP99,omitempty"`    // nanoseconds
	Problem     string         `json:"problem,omitempty"`     // why its log takes no writes, or does not answer
}

// EvictionStatus says whether pods of lost nodes are evicted.
type EvictionStatus struct {
	Frozen  bool       `json:"frozen"`
	Reason  string     `json:"reason,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Waiting int        `json:"waiting"` // nodes whose pods wait for their eviction
}

// Certificate is one that the server uses.
type Certificate struct {
	Name      string    `json:"name"` // what it is for
	Issuer    string    `json:"issuer,omitempty"`
	Issued    time.Time `json:"issued"`
	NotBefore time.Time `json:"notBefore"` // a while before Issued, for clocks that are behind
	NotAfter  time.Time `json:"notAfter"`
	// RenewAt is when it is replaced by itself; nil: by hand.
	RenewAt *time.Time `json:"renewAt,omitempty"`
}

// twoVoters is what to know of a cluster whose configuration has two voters.
const twoVoters = "losing either server stops writes: add a third or a --witness"

// leaderTimeout bounds how long the leader is asked for its view.
const leaderTimeout = 2 * time.Second

// MethodStatus asks the leader for what only it knows.
const MethodStatus = "membership/status"

// Methods are run on the leader, by Raft.CallLeader.
func (s *Service) Methods() map[string]func(ctx context.Context, from string, body []byte) ([]byte, error) {
	return map[string]func(context.Context, string, []byte) ([]byte, error){
		MethodRemove: s.answerRemove,
		MethodStatus: func(context.Context, string, []byte) ([]byte, error) {
			return json.Marshal(leaderView{Evictions: s.c.Evictions()})
		},
	}
}

type leaderView struct {
	Evictions *EvictionStatus `json:"evictions,omitempty"`
}

// Status gathers what this server, gossip and the leader know. It never fails:
// without a leader it says so and is what this server knows.
func (s *Service) Status(ctx context.Context) Status {
	self := s.c.Self()
	st := Status{Name: self.Name, Version: s.c.Version, Started: s.c.Started, Duties: s.c.Duties(), Raft: s.c.Raft.Stats(), Role: s.c.Role,
		Certificates: s.c.Certificates()}
	snapshots := s.gatherSnapshots(ctx)
	raft, err := s.askLeader(ctx, &st)
	if err != nil {
		st.Partial = fmt.Sprintf("the leader's view is missing: %v", err)
		raft = s.c.Raft.Members()
	}
	st.Members = s.members(raft, st.Raft.LeaderID, err == nil)
	if st.Raft.LeaderID != "" {
		st.Leader = s.nameOf(st.Raft.LeaderID)
		if st.Raft.LeaderID == self.ID {
			st.Leader = self.Name
		}
	}
	st.FailureTolerance = tolerance(st.Members)
	st.Epoch = s.c.Epoch()
	st.FeatureLevel, st.Upgrade = fsm.LevelOf(s.c.Store.View()), s.c.Upgrade()
	st.Warnings = append(s.c.EpochWarnings(), warnings(&st, s.c.Now())...)
	st.Snapshots = snapshots()
	st.Warnings = append(st.Warnings, versionWarnings(&st)...)
	st.Warnings = append(st.Warnings, snapshotWarnings(st.Snapshots, st.Leader, s.c.Now())...)
	if err := context.Cause(s.member); err != nil {
		st.Warnings = []string{err.Error()} // what it knows of the rest is old
	}
	return st
}

func (s *Service) askLeader(ctx context.Context, st *Status) ([]RaftMember, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	raft, err := s.c.Raft.MemberStats(ctx)
	if err != nil {
		return nil, err
	}
	b, err := s.c.Raft.CallLeader(ctx, MethodStatus, nil)
	if err != nil {
		return raft, nil // an older leader
	}
	if v, err := decodeJSON[leaderView](b); err == nil {
		st.Evictions = v.Evictions
	}
	return raft, nil
}

// members joins what the log's configuration, gossip and the records say.
func (s *Service) members(raft []RaftMember, leader string, fromLeader bool) []MemberStatus {
	byName := map[string]*MemberStatus{}
	nameOfID := map[string]string{}
	for name, r := range s.records() {
		byName[name] = &MemberStatus{Name: name, ID: r.ID, Role: r.Role, Address: r.Address, State: Unknown}
		nameOfID[r.ID] = name
	}
	for _, p := range s.c.Peers() {
		m := byName[p.Name]
		if s.Removed(p.ID) {
			continue // gossip has not forgotten it yet, or it still runs
		}
		if m == nil {
			m = &MemberStatus{Name: p.Name, ID: p.ID, Role: p.Role}
			byName[p.Name] = m
		} else if m.ID != p.ID && p.State != Alive {
			continue // who had the name before
		}
		since := p.Since
		m.ID, m.Role, m.Address, m.State, m.Version, m.MaxLevel, m.Load = p.ID, p.Role, p.Address.String(), p.State, p.Version, p.MaxLevel, p.Load
		if !since.IsZero() {
			m.Since = &since
		}
		nameOfID[p.ID] = p.Name
	}
	for _, r := range raft {
		name := nameOfID[r.ID]
		if name == "" {
			name = r.ID
		}
		m := byName[name]
		if m == nil {
			m = &MemberStatus{Name: name, ID: r.ID, Role: RoleServer, Address: hostOf(r.Address), State: Unknown}
			byName[name] = m
		}
		m.Problem = r.Problem
		m.Voter, m.Leader = r.Voter, r.ID == leader && leader != ""
		if fromLeader {
			m.Healthy, m.LastContact = &r.Healthy, &r.LastContact
			if r.LastIndex > 0 { // it answered
				m.Term, m.LastIndex, m.Lag, m.FsyncP99 = &r.Term, &r.LastIndex, &r.Lag, &r.FsyncP99
			}
			if m.Version == "" {
				m.Version = r.Version
			}
		}
	}
	out := make([]MemberStatus, 0, len(byName))
	for _, m := range byName {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b MemberStatus) int {
		if a.Role.Votes() != b.Role.Votes() {
			if a.Role.Votes() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func hostOf(addr string) string {
	if i := strings.LastIndexByte(addr, ':'); i > 0 {
		return strings.Trim(addr[:i], "[]")
	}
	return addr
}

// up tells whether a voter takes part: as the leader says, or else gossip.
func (m *MemberStatus) up() bool {
	if m.Healthy != nil {
		return *m.Healthy
	}
	return m.State == Alive || m.State == Unknown
}

// tolerance is how many voters may fail before the rest is no majority.
func tolerance(members []MemberStatus) int {
	voters, up := 0, 0
	for i := range members {
		if members[i].Voter {
			voters++
			if members[i].up() {
				up++
			}
		}
	}
	return max(up-(voters/2+1), 0)
}

// certWarning is how long before its end a certificate that nobody renews is
// warned of.
const certWarning = 30 * 24 * time.Hour

func warnings(st *Status, now time.Time) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var voters int
	var down, waiting []string
	for i := range st.Members {
		m := &st.Members[i]
		switch {
		case m.Voter:
			voters++
			if !m.up() {
				down = append(down, m.Name)
			}
		case m.Role.Votes():
			waiting = append(waiting, m.Name)
		}
	}
	if st.Raft.LeaderID == "" {
		add("there is no leader: reads and running pods go on, writes wait")
	}
	if st.Raft.Problem != "" {
		add("the log of %s takes no writes: %s", st.Name, st.Raft.Problem)
	}
	for i := range st.Members {
		if m := &st.Members[i]; m.Problem != "" && m.Name != st.Name {
			add("server %s: %s", m.Name, m.Problem)
		}
	}
	if len(down) > 0 {
		add("%d of %d voting servers are down: %s", len(down), voters, strings.Join(down, ", "))
	}
	switch {
	case voters == 2:
		add(twoVoters)
	case voters > 2 && voters%2 == 0 && len(down) == 0:
		add("%d voting servers tolerate no more failures than %d: add or remove one", voters, voters-1)
	}
	if len(waiting) > 0 {
		add("not voting yet: %s", strings.Join(waiting, ", "))
	}
	if e := st.Evictions; e != nil && e.Frozen {
		add("evictions are frozen: %s", e.Reason)
	}
	for _, c := range st.Certificates {
		switch left := c.NotAfter.Sub(now); {
		case left <= 0:
			add("the certificate %q has expired at %s", c.Name, c.NotAfter.Format(time.RFC3339))
		case c.RenewAt == nil && left < certWarning:
			add("the certificate %q expires at %s: see skiff certs", c.Name, c.NotAfter.Format(time.RFC3339))
		}
	}
	return out
}
