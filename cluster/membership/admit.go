package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Names that certificates carry.
const (
	nodeUserPrefix = "system:node:"
	nodesGroup     = "system:nodes"
	apiServerName  = "skiff:apiserver"
)

// reservedNames would make a node's certificate good for the API.
var reservedNames = []string{"kubernetes", "localhost"}

// Join admits a host that shows a token, or says in one line why not.
func (s *Service) Join(ctx context.Context, shown string, r JoinRequest) (*Answer, error) {
	if err := s.current(ctx); err != nil {
		return nil, err
	}
	t, err := s.checkToken(shown)
	if err != nil {
		return nil, err
	}
	if err := s.checkRequest(t, &r); err != nil {
		return nil, err
	}
	ops, err := s.claim(ctx, &r)
	if err != nil {
		return nil, err
	}
	a := &Answer{Cluster: s.cluster(), CA: s.c.Authority.Bundle()}
	if r.Role.Votes() {
		if a.PKI, err = s.c.ServerFiles(); err != nil {
			return nil, fmt.Errorf("keys of the cluster: %w", err)
		}
	} else if a.Cert, err = s.sign(r.Name, r.NodeID, r.Address, r.CSR); err != nil {
		return nil, err
	}
	err = s.propose(ctx, "admit "+r.Name, ops...)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
		return nil, refuse(http.StatusConflict, "another host is joining under the name %s at the same time: choose another with --name, or try again", r.Name)
	}
	if err != nil {
		return nil, err
	}
	if others := s.c.Raft.Members(); r.Role.Votes() && countOthers(others, r.NodeID) == 1 {
		a.Warnings = append(a.Warnings, "with this server two vote, and "+twoVoters)
	}
	s.c.Logger.Info("a host has joined", "name", r.Name, "role", r.Role, "address", r.Address, "token", t.ID)
	return a, nil
}

// countOthers is how many servers beside the one with that ID vote, or will when
// they have caught up.
func countOthers(members []RaftMember, id string) (n int) {
	for _, m := range members {
		if m.ID != id {
			n++
		}
	}
	return n
}

// checkRequest is what can be refused without looking at other members.
func (s *Service) checkRequest(t *tokenRecord, r *JoinRequest) error {
	if err := checkClock(r.Time, s.c.Now()); err != nil {
		return err
	}
	switch {
	case r.Role != RoleAgent && !r.Role.Votes():
		return refuse(http.StatusBadRequest, "role %q: want server, witness or agent", r.Role)
	case r.Role.Votes() != t.Role.Votes():
		return refuse(http.StatusForbidden, "the token is for the role %s, and this host wants to be %s: make one with skiff token create --role %s", t.Role, r.Role, tokenRole(r.Role))
	case r.NodeID == "" || len(validation.IsDNS1123Subdomain(r.NodeID)) > 0:
		return refuse(http.StatusBadRequest, "node ID %q is none", r.NodeID)
	case r.Role == RoleAgent && len(r.CSR) == 0:
		return refuse(http.StatusBadRequest, "the request of an agent lacks the certificate request")
	}
	if msgs := validation.IsDNS1123Subdomain(r.Name); len(msgs) > 0 {
		return refuse(http.StatusBadRequest, "name %q: %s", r.Name, msgs[0])
	}
	first, _, _ := strings.Cut(r.Name, ".")
	if slices.Contains(reservedNames, first) {
		return refuse(http.StatusBadRequest, "the name %s is kept for the API: choose another with --name", r.Name)
	}
	if err := s.checkAddress(r.Role, r.Name, r.Address); err != nil {
		return err
	}
	if err := s.c.Settings().Agree(r.Told); err != nil {
		return refuse(http.StatusConflict, "%v", err)
	}
	if r := s.removal(r.NodeID); r != nil {
		return r.error()
	}
	return s.checkProgram(r.Role, r.Name, r.NodeID, Program{Version: r.Version, MinLevel: r.MinLevel, MaxLevel: r.MaxLevel})
}

// checkAddress refuses an agent that claims the address of a server: its
// certificate would be good for the API of that server.
func (s *Service) checkAddress(role Role, name, address string) error {
	a, err := validAddress(address)
	if err != nil || role.Votes() || a.IsLoopback() {
		return err
	}
	for _, server := range append(s.cluster().Servers, s.c.Self()) {
		if server.Address == a && server.Name != name {
			return refuse(http.StatusConflict, "the address %s is that of server %s: give this host its own with --advertise-address", a, server.Name)
		}
	}
	return nil
}

func tokenRole(r Role) Role {
	if r.Votes() {
		return RoleServer
	}
	return r
}

// checkClock compares the clock of a host with this server's.
func checkClock(host, server time.Time) error {
	return clockError(host, server, "the server's")
}

func clockError(host, server time.Time, whose string) error {
	d := host.Sub(server)
	direction := "ahead of"
	if d < 0 {
		d, direction = -d, "behind"
	}
	if d <= MaxClockSkew {
		return nil
	}
	const layout = "2006-01-02 15:04:05Z"
	return refuse(http.StatusConflict, "this host's clock (%s) is %s %s %s (%s), at most %s are allowed: set the clocks, best by NTP on both, and try again",
		host.UTC().Format(layout), d.Round(time.Second), direction, whose, server.UTC().Format(layout), MaxClockSkew)
}

// settleTime is how long after its start a server may not have heard of all that
// live.
const settleTime = 15 * time.Second

var errTryAgain = errors.New("try again in a few seconds")

// claim gives the writes that make r the holder of its name. A holder that is
// dead loses it; a live one keeps it.
func (s *Service) claim(ctx context.Context, r *JoinRequest) ([]fsm.Op, error) {
	for name, other := range s.records() {
		if other.ID == r.NodeID && name != r.Name {
			return nil, refuse(http.StatusConflict, "this host is a member already, as %s: start it with --name %s; or, if it is a copy of that host, remove node-id from its data directory", name, name)
		}
	}
	old, revision, err := s.record(r.Name)
	if err != nil {
		return nil, err
	}
	p, known := s.peer(r.Name)
	if !known && old != nil && old.ID != r.NodeID && s.c.Now().Sub(s.c.Started) < settleTime {
		return nil, fmt.Errorf("%w: this server has just started and does not know yet whether the member %s lives", errTryAgain, r.Name)
	}
	if known && p.ID != r.NodeID && p.State == Alive {
		return nil, refuse(http.StatusConflict, "the name %s is taken by a live member at %s: choose another with --name, or stop that one first", r.Name, p.Address)
	}
	var ops []fsm.Op
	if old == nil || old.ID != r.NodeID {
		if err := s.vacant(ctx, r.Name); err != nil {
			return nil, err
		}
	}
	if old != nil && old.ID != r.NodeID {
		if ops, err = s.replace(ctx, r.Name, *old); err != nil {
			return nil, err
		}
		if err := s.vacant(ctx, r.Name); err != nil { // the replacement took its time
			return nil, err
		}
	}
	rec, err := putRecord(r.Name, Record{ID: r.NodeID, Role: r.Role, Joined: s.c.Now().UTC().Truncate(time.Second), Address: r.Address,
		APIPort: r.APIPort, RaftPort: r.RaftPort, GossipPort: r.GossipPort}, revision)
	return append(ops, rec), err
}

// replace removes a dead member whose name another host takes, and gives the
// writes that make it so.
func (s *Service) replace(ctx context.Context, name string, old Record) ([]fsm.Op, error) {
	if old.Role.Votes() {
		if s.healthy(ctx, old.ID) {
			return nil, refuse(http.StatusConflict, "the name %s is taken by a server that still follows the log: choose another with --name, or stop that one first", name)
		}
		if err := s.removeVoter(ctx, name, old.ID, old.Role, "the host that took its name"); err != nil {
			if errors.Is(err, consensus.ErrQuorumRisk) {
				return nil, refuse(http.StatusConflict, "the name %s is that of a dead server which can't be replaced now: %v; bring up another server first", name, err)
			}
			return nil, err
		}
	}
	op, err := putRemoval(old.ID, Removal{Name: name, Role: old.Role, By: "the host that took its name", At: s.c.Now().UTC().Truncate(time.Second)})
	return []fsm.Op{op}, err
}

// sign makes the certificate of a node: client towards the API, server of its
// own.
func (s *Service) sign(name, id, address string, csr []byte) ([]byte, error) {
	req := pki.Request{CommonName: nodeUserPrefix + name, Organization: []string{nodesGroup}, DNSNames: []string{name, id}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	a, err := validAddress(address)
	if err != nil {
		return nil, err
	}
	if ip := net.IP(a.AsSlice()); !req.IPs[0].Equal(ip) {
		req.IPs = append(req.IPs, ip)
	}
	generation, _ := s.c.Trust() // before the signature: if it changes meanwhile, the agent asks once too often
	cert, err := s.c.Authority.SignCSR(csr, req)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "certificate request of %s: %v", name, err)
	}
	return withGeneration(cert, generation), nil
}
