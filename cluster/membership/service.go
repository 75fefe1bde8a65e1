package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Log is where writes go; cluster/consensus implements it.
type Log interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
	ReadIndex(ctx context.Context) error
}

// Raft is the part of the log that knows who votes.
type Raft interface {
	Stats() consensus.Stats
	// Members is the local view of the configuration; only ID, Address and Voter
	// are set.
	Members() []RaftMember
	// MemberStats is the leader's view.
	MemberStats(ctx context.Context) ([]RaftMember, error)
	// Remove takes a server out of the configuration. It fails with
	// consensus.ErrQuorumRisk if those that stay are no live quorum: then the
	// removal itself could not be committed.
	Remove(ctx context.Context, id string) error
	// HandOver lets another voter lead, if this server does.
	HandOver(ctx context.Context) error
	// Promote makes a member that does not vote yet a voter.
	Promote(ctx context.Context, id string) error
	// CallLeader runs a method of Service.Methods on the leader.
	CallLeader(ctx context.Context, method string, body []byte) ([]byte, error)
}

// RaftMember is a server as the leader of the log sees it.
type RaftMember struct {
	ID          string
	Address     string
	Voter       bool
	Healthy     bool
	Term        uint64
	LastIndex   uint64
	Applied     uint64
	Lag         uint64        // entries behind the leader
	LastContact time.Duration // how long ago the leader heard of it; negative: never
	FsyncP99    time.Duration
	Version     string
	Problem     string // why it takes no writes, or could not be asked
}

// State of a member in gossip.
type State string

// The states. A member that gossip does not know is Unknown.
const (
	Alive   State = "alive"
	Dead    State = "dead"
	Left    State = "left"
	Unknown State = "unknown"
)

// Peer is a member as gossip knows it.
type Peer struct {
	Server
	Role     Role
	NodePort uint16
	Version  string
	State    State
	Since    time.Time // of the state
	Load     uint8     // percent of CPU
	Trust    uint64    // generation that it has installed
	// Epoch of a server's log, by number and hash of its ID.
	Epoch     uint64
	EpochHash uint32

	Orders             uint64 // of a server: the newest order that it knows, see package upgrade
	MinLevel, MaxLevel int    // feature levels that its program works at; 0: it does not say
	Free               uint64 // MiB where its data directory is; 0: it does not say
}

// Authority signs certificates of agents; cluster/pki implements it.
type Authority interface {
	// Bundle are the CA certificates that are trusted, as PEM; the first signs.
	Bundle() []byte
	SignCSR(csrPEM []byte, r pki.Request) (certPEM []byte, err error)
}

// Config of a Service. The fields without a default are required.
type Config struct {
	Self    func() Server // how others reach this server
	Role    Role          // of this server
	Version string        // of skiff, on this server
	Started time.Time

	Store     *store.Store
	Log       Log
	Raft      Raft
	Authority Authority

	// Peers is what gossip knows, this server included; default: only this server.
	Peers func() []Peer
	// Servers are all that this server has heard of, alive or not; default: those
	// of Peers. It asks them whether it was removed while it was down.
	Servers func() []Server
	// Forget drops a member from gossip, by name; LeaveGossip says that this
	// server goes. Both default to nothing.
	Forget      func(name string)
	LeaveGossip func(ctx context.Context) error

	Settings func() Settings
	// Trust gives the generation and the gossip keys; default none.
	Trust func() (generation uint64, gossipKeys [][]byte)
	// Epoch of the log; default the first.
	Epoch func() raftdir.Epoch
	// Upgrade says in a line how a roll-out goes that is going on. Optional.
	Upgrade func() string
	// EpochWarnings say what is wrong between epochs, a line each. Optional.
	EpochWarnings func() []string
	// ServerFiles are the files of <data-dir>/pki that a server needs.
	ServerFiles func() (map[string][]byte, error)
	// Leaves is the generation of the trust since which certificates of agents
	// must be: older ones are replaced. Default 0.
	Leaves func() uint64
	// Client reaches the API, to delete Node objects; nil: there are none. It is
	// asked for when it is needed.
	Client func() kubernetes.Interface

	// Duties that this server does as the leader, Evictions as the leader sees
	// them, Certificates of this server. All are optional.
	Duties       func() []string
	Evictions    func() *EvictionStatus
	Certificates func() []Certificate
	// Snapshots asks a server, which may be this one, for its scheduled ones; nil:
	// nobody is asked.
	Snapshots func(ctx context.Context, id string) (SnapshotStatus, error)

	// Now replaces time.Now, for tests.
	Now    func() time.Time
	Logger *slog.Logger
}

// Service is the server side. Safe for concurrent use.
type Service struct {
	c        Config
	attempts *attempts

	member context.Context         // ends when this server was removed, with the reason as its cause
	leave  context.CancelCauseFunc // ends member
	once   sync.Once               // of leave
	busy   sync.Mutex              // held while another server removes this one for it: leave waits for the answer
	told   chan *Removal           // of one place: that this server was removed
	asked  chan struct{}           // closed when the others were asked at the start

	unfitWord chan string // of one place
}

// New validates c and starts nothing.
func New(c Config) (*Service, error) {
	switch {
	case c.Self == nil || !c.Role.Votes():
		return nil, errors.New("membership: Self and the Role of a server are needed")
	case c.Store == nil || c.Log == nil || c.Raft == nil:
		return nil, errors.New("membership: Store, Log and Raft are needed")
	case c.Authority == nil || c.Settings == nil || c.ServerFiles == nil:
		return nil, errors.New("membership: Authority, Settings and ServerFiles are needed")
	case c.Logger == nil:
		return nil, errors.New("membership: Logger is missing")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Started.IsZero() {
		c.Started = c.Now()
	}
	if c.Peers == nil {
		self, role, v, since := c.Self, c.Role, c.Version, c.Started
		c.Peers = func() []Peer {
			return []Peer{{Server: self(), Role: role, Version: v, State: Alive, Since: since}}
		}
	}
	if c.Servers == nil {
		peers := c.Peers
		c.Servers = func() (out []Server) {
			for _, p := range peers() {
				if p.Role.Votes() {
					out = append(out, p.Server)
				}
			}
			return out
		}
	}
	if c.Forget == nil {
		c.Forget = func(string) {}
	}
	if c.LeaveGossip == nil {
		c.LeaveGossip = func(context.Context) error { return nil }
	}
	if c.Trust == nil {
		c.Trust = func() (uint64, [][]byte) { return 0, nil }
	}
	if c.Epoch == nil {
		c.Epoch = func() raftdir.Epoch { return raftdir.Epoch{Number: 1} }
	}
	if c.Upgrade == nil {
		c.Upgrade = func() string { return "" }
	}
	if c.EpochWarnings == nil {
		c.EpochWarnings = func() []string { return nil }
	}
	if c.Leaves == nil {
		c.Leaves = func() uint64 { return 0 }
	}
	if c.Duties == nil {
		c.Duties = func() []string { return nil }
	}
	if c.Evictions == nil {
		c.Evictions = func() *EvictionStatus { return nil }
	}
	if c.Certificates == nil {
		c.Certificates = func() []Certificate { return nil }
	}
	s := &Service{c: c, attempts: newAttempts(c.Now), told: make(chan *Removal, 1), asked: make(chan struct{}), unfitWord: make(chan string, 1)}
	s.member, s.leave = context.WithCancelCause(context.Background())
	return s, nil
}

// signer is the CA certificate that signs now.
func (s *Service) signer() (*x509.Certificate, error) {
	certs, err := parseCerts(s.c.Authority.Bundle())
	if err != nil {
		return nil, fmt.Errorf("CA of the cluster: %w", err)
	}
	return certs[0], nil
}

// current makes the local state as new as the cluster's.
func (s *Service) current(ctx context.Context) error {
	if err := s.c.Log.ReadIndex(ctx); err != nil {
		return fmt.Errorf("read the cluster's state: %w", err)
	}
	return nil
}

// propose writes ops, all or none.
func (s *Service) propose(ctx context.Context, what string, ops ...fsm.Op) error {
	r, err := s.c.Log.Propose(ctx, fsm.Batch(ops...))
	if err = errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// cluster is what members are told.
func (s *Service) cluster() Cluster {
	c := Cluster{ClusterID: s.c.Raft.Stats().ClusterID, Settings: s.c.Settings(), Epoch: s.c.Epoch()}
	c.Generation, c.GossipKeys = s.c.Trust()
	self := s.c.Self()
	c.Servers = append(c.Servers, self)
	for _, p := range s.c.Peers() {
		if p.Role.Votes() && p.State == Alive && p.ID != self.ID && !s.Removed(p.ID) {
			c.Servers = append(c.Servers, p.Server)
		}
	}
	return c
}

// peer finds a member by name in gossip.
func (s *Service) peer(name string) (Peer, bool) {
	for _, p := range s.c.Peers() {
		if p.Name == name {
			return p, true
		}
	}
	return Peer{Server: Server{Name: name}, State: Unknown}, false
}

// statusOf is the HTTP status of an error.
func statusOf(err error) int {
	var r *Refusal
	switch {
	case errors.As(err, &r):
		return r.Status
	case errors.Is(err, errTryAgain), errors.Is(err, consensus.ErrNoLeader), errors.Is(err, consensus.ErrUnknownOutcome), errors.Is(err, consensus.ErrStopped), errors.Is(err, consensus.ErrNoSpace), errors.Is(err, consensus.ErrRemoved):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// validAddress reads the address that a host says it has.
func validAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() {
		return a, refuse(http.StatusBadRequest, "address %q is no address of a host; set --advertise-address", s)
	}
	return a, nil
}
