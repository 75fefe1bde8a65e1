package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// Role is what a member does.
type Role string

// The roles.
const (
	RoleServer  Role = "server"
	RoleWitness Role = "witness"
	RoleAgent   Role = "agent"
)

// State is what is known of a member's life.
type State string

// The states. Alive includes members that are merely suspected.
const (
	Alive State = "alive"
	Dead  State = "dead" // failed
	Left  State = "left" // said goodbye
)

// Tags are what a member says of itself.
type Tags struct {
	ID        string // stable, unlike the name and the address
	Role      Role
	ClusterID string
	Version   string
	APIPort   uint16
	RaftPort  uint16
	NodePort  uint16
	Trust     uint64 // installed generation of certificates and keys
	Load      uint8  // percent of CPU; published in steps of 10, at most every 30 s
	Epoch     uint64 // number of the log's history that a server has; 0 of agents
	EpochHash uint32 // of its ID: two may have one number
	Orders    uint64 // of a server: how new the newest order to a member is that it knows, see package upgrade
	MinLevel  uint16 // lowest and
	MaxLevel  uint16 // highest feature level that the program works at; 0: it does not say
	Free      uint64 // MiB that are free where the data directory is, about; 0: it does not say
}

// Member is one member as this process sees it.
type Member struct {
	Name  string
	Addr  netip.Addr
	Port  uint16
	Tags  Tags
	State State
	Since time.Time // of State, by the clock of this process
}

// Config describes a Gossip.
type Config struct {
	// Name is unique in the cluster; it contains no slash.
	Name string
	// Bind is where to listen. The zero Addr is every address.
	Bind netip.Addr
	// Advertise is what the others are told; it must be set if Bind is every
	// address.
	Advertise netip.Addr
	// Port is UDP and TCP. 0 takes a free one, for tests.
	Port uint16
	// Keys are of 32 bytes. The first encrypts, all decrypt.
	Keys [][]byte
	// Tags are what this member says of itself at first. ID, Role and ClusterID
	// must be set.
	Tags Tags
	// Seeds returns addresses ("ip:port") that are worth asking while this
	// member is alone or misses others. nil: none.
	Seeds func() []string
	// Conflict hears of two live members with one name: the one that keeps it,
	// and the one that is refused. If this member is one of them it is the first.
	// A machine and its clone (one name, one ID, two addresses) are reported
	// too, though none of them is refused. At most once a minute for each pair;
	// called from a goroutine of Run. nil: only the log hears.
	Conflict func(existing, other Member)
	// Lose, for tests, loses what this member sends or dials to that address.
	// nil: nothing is lost.
	Lose func(to netip.AddrPort) bool
	// Logger receives what an operator should know; memberlist's own lines at Debug.
	Logger *slog.Logger
	// Timing replaces production values, for tests.
	Timing Timing
}

// Timing is how fast a Gossip is. Zero fields have the production value.
type Timing struct {
	Probe       time.Duration // each member looks at one other per Probe
	ProbeWait   time.Duration // for a direct answer, before others are asked to help
	Gossip      time.Duration // between rounds of news
	PushPull    time.Duration // between full exchanges with a random member
	Suspicion   int           // in Probe times log10(members): how long a suspect may object
	Patience    time.Duration // for an answer of one that is reported dead, before that is believed
	Rejoin      time.Duration // between attempts, of all members together, to reach one that is missing
	Gap         time.Duration // a clock that jumps so far means that this process was stopped
	Calm        time.Duration // how long after such a gap deaths are not believed
	LoadEvery   time.Duration // between publications of Load
	GossipDead  time.Duration // how long dead members are still told of their death
	CloneWait   time.Duration // two processes of one ID live so long: a clone
	ConnTimeout time.Duration // of one exchange over TCP
}

// production says what the defaults are; DESIGN.md says why.
var production = Timing{
	Probe:       500 * time.Millisecond,
	ProbeWait:   200 * time.Millisecond,
	Gossip:      200 * time.Millisecond,
	PushPull:    10 * time.Second,
	Suspicion:   3,
	Patience:    600 * time.Millisecond,
	Rejoin:      time.Second,
	Gap:         time.Second,
	Calm:        3 * time.Second,
	LoadEvery:   30 * time.Second,
	GossipDead:  30 * time.Second,
	CloneWait:   30 * time.Second,
	ConnTimeout: 5 * time.Second,
}

func (t Timing) orProduction() Timing {
	or := func(d *time.Duration, p time.Duration) {
		if *d == 0 {
			*d = p
		}
	}
	or(&t.Probe, production.Probe)
	or(&t.ProbeWait, production.ProbeWait)
	or(&t.Gossip, production.Gossip)
	or(&t.PushPull, production.PushPull)
	if t.Suspicion == 0 {
		t.Suspicion = production.Suspicion
	}
	or(&t.Patience, production.Patience)
	or(&t.Rejoin, production.Rejoin)
	or(&t.Gap, production.Gap)
	or(&t.Calm, production.Calm)
	or(&t.LoadEvery, production.LoadEvery)
	or(&t.GossipDead, production.GossipDead)
	or(&t.CloneWait, production.CloneWait)
	or(&t.ConnTimeout, production.ConnTimeout)
	return t
}

func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("gossip: "+format, args...)) }
	if c.Name == "" || len(c.Name) > 253 || strings.ContainsAny(c.Name, "/ \x00") {
		bad("Name %q must have 1 to 253 characters, none of them a slash or space", c.Name)
	}
	if c.Tags.ID == "" {
		bad("Tags.ID is empty")
	}
	if c.Tags.ClusterID == "" {
		bad("Tags.ClusterID is empty")
	}
	if _, ok := roleCodes[c.Tags.Role]; !ok {
		bad("Tags.Role %q is none of server, witness, agent", c.Tags.Role)
	}
	if _, err := encodeTags(c.Tags, true); err != nil {
		errs = append(errs, err)
	}
	if !c.Advertise.IsValid() {
		c.Advertise = c.Bind
	}
	if !c.Advertise.IsValid() || c.Advertise.IsUnspecified() {
		bad("Advertise must be set when Bind is every address")
	}
	if c.Logger == nil {
		bad("Logger is nil")
	}
	if err := checkKeys(c.Keys); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
