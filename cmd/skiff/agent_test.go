package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// TestAgentBehind: an agent asks for keys when a server has newer ones, and when
// it hears of no server: the gossip's key may be another by now.
func TestAgentBehind(t *testing.T) {
	t.Parallel()
	a := &agent{known: membership.Cluster{Generation: 7}}
	peer := func(r membership.Role, s membership.State, trust uint64) membership.Peer {
		return membership.Peer{Role: r, State: s, Trust: trust}
	}
	self := peer(membership.RoleAgent, membership.Alive, 7)
	in := func(epoch uint64, p membership.Peer) membership.Peer { p.Epoch = epoch; return p }
	for _, c := range []struct {
		what   string
		peers  []membership.Peer
		behind bool
	}{
		{"up to date", []membership.Peer{self, peer(membership.RoleServer, membership.Alive, 7)}, false},
		{"a witness has newer keys", []membership.Peer{self, peer(membership.RoleServer, membership.Alive, 7), peer(membership.RoleWitness, membership.Alive, 8)}, true},
		{"an agent says nothing of that", []membership.Peer{self, peer(membership.RoleAgent, membership.Alive, 8), peer(membership.RoleServer, membership.Alive, 7)}, false},
		{"alone", []membership.Peer{self}, true},
		{"a later epoch, whose keys are older", []membership.Peer{self, in(1, peer(membership.RoleServer, membership.Alive, 7)), in(2, peer(membership.RoleServer, membership.Alive, 3))}, true},
		{"a later epoch, of a server that is gone", []membership.Peer{self, in(1, peer(membership.RoleServer, membership.Alive, 7)), in(2, peer(membership.RoleServer, membership.Dead, 3))}, false},
		{"cut off together with another agent", []membership.Peer{self, peer(membership.RoleAgent, membership.Alive, 7), peer(membership.RoleServer, membership.Dead, 7)}, true},
	} {
		if got := a.behind(c.peers); got != c.behind {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}

// TestRefusedNodeAsksWhy: an answer that the node is not known makes it ask what
// became of it, once for many of them; other answers do not.
func TestRefusedNodeAsksWhy(t *testing.T) {
	t.Parallel()
	code := http.StatusForbidden
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
	defer server.Close()
	asked := 0
	client := &http.Client{Transport: &watchful{RoundTripper: http.DefaultTransport, refused: func() { asked++ }}}
	get := func() {
		t.Helper()
		resp, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	get()
	if asked != 0 {
		t.Error("asked though it is known")
	}
	code = http.StatusUnauthorized
	for range 3 {
		get()
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// An agent that is stopped was not removed: its pods go on.
func TestStoppedIsNotRemoved(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what    string
		stop    bool
		cause   error
		removed bool
	}{
		{"a member", false, nil, false},
		{"stopped", true, nil, false},
		{"removed", false, &membership.Refusal{Removed: true}, true},
		{"removed, then stopped", true, &membership.Refusal{Removed: true}, true},
	} {
		ctx, stop := context.WithCancel(context.Background())
		a := &agent{}
		a.member, a.leave = context.WithCancelCause(ctx)
		if c.cause != nil {
			a.leave(c.cause)
		}
		if c.stop {
			stop()
		}
		if got := a.removed(); got != c.removed {
			t.Errorf("%s: removed is %t", c.what, got)
		}
		stop()
		a.leave(nil)
	}
}

// In a new epoch newer keys of those that were left behind mean nothing.
func TestAgentInALaterEpoch(t *testing.T) {
	t.Parallel()
	a := &agent{known: membership.Cluster{Generation: 3, Epoch: raftdir.Epoch{Number: 2, ID: "x"}}}
	server := func(epoch, trust uint64) membership.Peer {
		return membership.Peer{Role: membership.RoleServer, State: membership.Alive, Epoch: epoch, Trust: trust}
	}
	if a.behind([]membership.Peer{server(2, 3), server(1, 7)}) {
		t.Error("it asks for the keys of a server that was left behind")
	}
	if !a.behind([]membership.Peer{server(2, 4), server(1, 7)}) {
		t.Error("it does not ask for newer keys")
	}
}
