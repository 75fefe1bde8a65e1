package membership

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Record says who holds a member's name.
type Record struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	Joined  time.Time `json:"joined"`
	Address string    `json:"address"` // when it joined; of a server, at its last start
	// Ports on which others reach it, by which a server on a restored snapshot
	// finds the members; 0 where they are not known.
	APIPort    uint16 `json:"apiPort,omitempty"`
	RaftPort   uint16 `json:"raftPort,omitempty"`
	GossipPort uint16 `json:"gossipPort,omitempty"`
}

// Removal says who is a member no more. While it is pending the member still
// votes, or may: it is not admitted again, but not cut off either.
type Removal struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Pending bool      `json:"pending,omitempty"`
}

// removalMemory is how long a removed agent is remembered: longer than its
// certificate is good for. An expired one is renewed only for who holds a name.
// Removed servers are remembered for ever: they issue their own certificates.
const removalMemory = 500 * 24 * time.Hour

func (r *Removal) error() error {
	what := "node"
	if r.Role.Votes() {
		what = "server"
	}
	return &Refusal{Status: http.StatusForbidden, Removed: true, Message: fmt.Sprintf(
		"this %s was removed from the cluster by %s at %s; run skiff reset --delete-data and join again", what, r.By, r.At.Format(time.RFC3339))}
}

// Removal of the member with that ID, nil if there is none. It reads the local
// state.
func (s *Service) removal(id string) *Removal {
	if id == "" {
		return nil
	}
	kv, ok := s.c.Store.View().Get(removedPrefix + id)
	if !ok {
		return nil
	}
	r, err := decodeJSON[Removal](kv.Value)
	if err != nil { // the key alone says enough
		return &Removal{By: "an administrator"}
	}
	return r
}

// Removed tells whether the member with that ID was removed for good: no port
// should let it in. It reads the local state and never blocks.
func (s *Service) Removed(id string) bool {
	r := s.removal(id)
	return r != nil && !r.Pending
}

// Admit refuses a server that was removed, or is just being removed, to vote
// again. It reads the local state and never blocks.
func (s *Service) Admit(id, _ string) error {
	if r := s.removal(id); r != nil {
		return r.error()
	}
	return nil
}

// CheckCertificate refuses a certificate whose holder was removed. Members have
// their ID among the DNS names.
func (s *Service) CheckCertificate(c *x509.Certificate) error {
	for _, id := range c.DNSNames {
		if r := s.removal(id); r != nil && !r.Pending {
			return r.error()
		}
	}
	return nil
}

// record is the member of that name, with the revision of its entry; nil and 0
// if the name is free.
func (s *Service) record(name string) (*Record, int64, error) {
	kv, ok := s.c.Store.View().Get(memberPrefix + name)
	if !ok {
		return nil, 0, nil
	}
	r, err := decodeJSON[Record](kv.Value)
	if err != nil {
		return nil, 0, fmt.Errorf("member %s in the state: %w", name, err)
	}
	return r, kv.ModRevision, nil
}

// records are all members by name.
func (s *Service) records() map[string]Record {
	out := map[string]Record{}
	s.c.Store.View().Ascend(memberPrefix, "", func(kv *store.KeyValue) bool {
		if r, err := decodeJSON[Record](kv.Value); err == nil {
			out[strings.TrimPrefix(kv.Key, memberPrefix)] = *r
		}
		return true
	})
	return out
}

// Records reads those in a state, by name.
func Records(state map[string][]byte) (map[string]Record, error) {
	out := map[string]Record{}
	for key, value := range state {
		name, ok := strings.CutPrefix(key, memberPrefix)
		if !ok {
			continue
		}
		r, err := decodeJSON[Record](value)
		if err != nil {
			return nil, fmt.Errorf("member %s in the state: %w", name, err)
		}
		out[name] = *r
	}
	return out, nil
}

// at says whether r has the address and ports of a server.
func (r *Record) at(s Server) bool {
	return r.Address == s.Address.String() && r.APIPort == s.APIPort && r.RaftPort == s.RaftPort && r.GossipPort == s.GossipPort
}

func putRecord(name string, r Record, expect int64) (fsm.Op, error) {
	b, err := json.Marshal(r)
	return fsm.Op{Type: fsm.Put, Key: memberPrefix + name, Value: b, Expect: expect}, err
}

func putRemoval(id string, r Removal) (fsm.Op, error) {
	b, err := json.Marshal(r)
	op := fsm.Op{Type: fsm.Put, Key: removedPrefix + id, Value: b, Expect: fsm.Any}
	if !r.Role.Votes() {
		op.Expires = r.At.Add(removalMemory).Unix()
	}
	return op, err
}
