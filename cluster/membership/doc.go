// Package membership is how hosts become members of a cluster and stop being
// members: join tokens, the requests of joining hosts, certificates of agents and
// their renewal, removal, and the status of all members.
//
// Its server side (Service) answers on any server: what it writes goes through
// the log. Its client side (Join, Identity) runs on the host that joins.
//
// State keys:
//
//	/skiff/tokens/ID    a join token, without its secret
//	/skiff/members/NAME who holds the name
//	/skiff/removed/ID   a former member; its certificates are refused
//
// Limits: who is alive is what gossip says; who votes is what the log's
// configuration says. Nothing here decides about either.
package membership

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Paths on the API port. Join, renewal, CA and node configuration are open: they
// check their callers themselves.
const (
	JoinPath       = "/skiff/v1/join"
	RenewPath      = "/skiff/v1/certificates"
	CAPath         = "/skiff/v1/ca"
	NodeConfigPath = "/skiff/v1/node-config"
	TokensPath     = "/skiff/v1/tokens"
	MembersPath    = "/skiff/v1/members"
	LeavePath      = "/skiff/v1/leave"
	StatusPath     = "/skiff/v1/status"
	// RemovedPath, with ?id=, tells whoever knows a member's ID whether that
	// member was removed, and whether the program that it has started (see
	// Program) works here.
	RemovedPath = "/skiff/v1/removed"
)

const (
	tokenPrefix   = "/skiff/tokens/"
	memberPrefix  = "/skiff/members/"
	removedPrefix = "/skiff/removed/"
)

// DefaultPort of the API.
const DefaultPort = 6443

// MaxClockSkew is how far the clock of a host that joins may be from a server's.
const MaxClockSkew = 5 * time.Minute

// Role of a member.
type Role string

// The roles. A witness is a server that votes and runs no pods.
const (
	RoleServer  Role = "server"
	RoleWitness Role = "witness"
	RoleAgent   Role = "agent"
)

// Votes tells the roles that take part in the log.
func (r Role) Votes() bool { return r == RoleServer || r == RoleWitness }

// Settings are the same on all members.
type Settings struct {
	ClusterCIDR        netip.Prefix  `json:"clusterCIDR"`
	ServiceCIDR        netip.Prefix  `json:"serviceCIDR"`
	ClusterDomain      string        `json:"clusterDomain"`
	PodEvictionTimeout time.Duration `json:"podEvictionTimeout"` // nanoseconds; 0 is no time at all
}

// Agree returns an error that names the flag if what a host was told, where it
// was told anything, is not what the cluster has. The eviction timeout may
// differ.
func (s Settings) Agree(told Settings) error {
	for _, f := range []struct {
		flag       string
		differs    bool
		told, have any
	}{
		{"cluster-cidr", told.ClusterCIDR.IsValid() && told.ClusterCIDR != s.ClusterCIDR, told.ClusterCIDR, s.ClusterCIDR},
		{"service-cidr", told.ServiceCIDR.IsValid() && told.ServiceCIDR != s.ServiceCIDR, told.ServiceCIDR, s.ServiceCIDR},
		{"cluster-domain", told.ClusterDomain != "" && told.ClusterDomain != s.ClusterDomain, told.ClusterDomain, s.ClusterDomain},
	} {
		if f.differs {
			return fmt.Errorf("--%s %v: the cluster has %v, which cannot be changed; leave the flag out", f.flag, f.told, f.have)
		}
	}
	return nil
}

// Server is how to reach a server.
type Server struct {
	Name       string     `json:"name"`
	ID         string     `json:"id"`
	Address    netip.Addr `json:"address"`
	APIPort    uint16     `json:"apiPort"`
	RaftPort   uint16     `json:"raftPort"`
	GossipPort uint16     `json:"gossipPort"`
}

// API is host:port of the server's API.
func (s Server) API() string { return netip.AddrPortFrom(s.Address, s.APIPort).String() }

// Raft is host:port of the servers among themselves.
func (s Server) Raft() string { return netip.AddrPortFrom(s.Address, s.RaftPort).String() }

// Gossip is host:port of the server's gossip.
func (s Server) Gossip() string { return netip.AddrPortFrom(s.Address, s.GossipPort).String() }

// Cluster is what every member knows of the cluster. It holds secrets.
type Cluster struct {
	ClusterID  string   `json:"clusterID"`
	Settings   Settings `json:"settings"`
	Servers    []Server `json:"servers"`    // that were alive
	GossipKeys [][]byte `json:"gossipKeys"` // the first is used, the others are understood
	Generation uint64   `json:"generation"` // of the trust (CA certificates and gossip keys)
	// Epoch of the servers' log.
	Epoch raftdir.Epoch `json:"epoch,omitzero"`
	// Seeds are further members that may be reached by gossip, as ip:port: those
	// that a restored snapshot names.
	Seeds []string `json:"seeds,omitempty"`
	// JoinedCA is the hash in the token with which this host joined; the host itself
	// notes it.
	JoinedCA []byte `json:"joinedCA,omitempty"`
}

// JoinRequest is what a host says of itself.
type JoinRequest struct {
	Role       Role      `json:"role"`
	Name       string    `json:"name"`
	NodeID     string    `json:"nodeID"`
	Version    string    `json:"version"`            // of skiff
	MinLevel   int       `json:"minLevel,omitempty"` // see Program; Join sets both if MaxLevel is 0
	MaxLevel   int       `json:"maxLevel,omitempty"`
	Time       time.Time `json:"time"`    // on the host's clock; Join sets it
	Address    string    `json:"address"` // IP under which others reach the host
	APIPort    uint16    `json:"apiPort,omitempty"`
	RaftPort   uint16    `json:"raftPort,omitempty"`
	GossipPort uint16    `json:"gossipPort"`
	NodePort   uint16    `json:"nodePort,omitempty"`
	CSR        []byte    `json:"csr,omitempty"` // PEM, of agents
	Told       Settings  `json:"told"`          // what the host was told, which must be what the cluster has
}

// Answer is what an admitted host gets.
type Answer struct {
	Cluster
	CA   []byte `json:"ca"`             // PEM, all that are trusted
	Cert []byte `json:"cert,omitempty"` // PEM, of agents
	// PKI are the files of <data-dir>/pki, for servers.
	PKI map[string][]byte `json:"pki,omitempty"`
	// Warnings say what the cluster is like with this host in it, a line each.
	Warnings []string `json:"warnings,omitempty"`
}

// NodeConfig is what an agent asks for when the trust or the servers changed.
type NodeConfig struct {
	Cluster
	CA []byte `json:"ca"`
	// Renew says that the agent's certificate is to be replaced now: it is of a
	// CA that will be dropped, or was asked to be.
	Renew bool `json:"renew,omitempty"`
	// FeatureLevel of the cluster.
	FeatureLevel int `json:"featureLevel,omitempty"`
	// Unfit says why the agent's program does not work in this cluster, and what
	// to run instead.
	Unfit string `json:"unfit,omitempty"`
}

// RenewRequest asks for a new certificate for a node that has one, valid or
// expired. Signature is made with the key of the old certificate over
// renewalMessage.
type RenewRequest struct {
	Time      time.Time `json:"time"`
	Address   string    `json:"address"`
	Old       []byte    `json:"old"` // PEM
	CSR       []byte    `json:"csr"` // PEM
	Signature []byte    `json:"signature"`
}

// RenewAnswer is the new certificate.
type RenewAnswer struct {
	Cert []byte `json:"cert"`
	CA   []byte `json:"ca"`
}

// Refusal is an error that trying again does not help against. Its text says
// what to do.
type Refusal struct {
	Status  int    // of HTTP
	Message string // one line
	Removed bool   // the caller was a member and is none any more
}

func (r *Refusal) Error() string { return r.Message }

func refuse(status int, format string, args ...any) error {
	return &Refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// failure is the body of an answer that is no success.
type failure struct {
	Message string `json:"message"`
	Removed bool   `json:"removed,omitempty"`
}

func decodeJSON[T any](b []byte) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, err
	}
	return v, nil
}
