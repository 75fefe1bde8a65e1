package membership

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestAnAgentJoins(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.setPeers(peer("a", "id-a", "10.0.0.1", RoleServer, Alive), peer("b", "id-b", "10.0.0.2", RoleWitness, Alive),
		peer("c", "id-c", "10.0.0.3", RoleServer, Dead), peer("w1", "id-w1", "10.0.0.4", RoleAgent, Alive))
	a := b.mustJoin(t, agentRequest(t, "w", "id-w"))
	if a.ClusterID != "c1" || a.Generation != 7 || len(a.GossipKeys) != 1 || a.Settings.ClusterDomain != "cluster.local" {
		t.Errorf("%+v", a.Cluster)
	}
	if len(a.Servers) != 2 || a.Servers[0].Name != "a" || a.Servers[1].Raft() != "10.0.0.2:6444" {
		t.Errorf("servers %v", a.Servers)
	}
	if a.PKI != nil {
		t.Error("an agent got the keys of the cluster")
	}
	c := parseOne(t, a.Cert)
	name, id, err := nodeOf(c)
	if err != nil || name != "w" || id != "id-w" {
		t.Errorf("certificate of %s with ID %s, %v", name, id, err)
	}
	if err := c.VerifyHostname("10.0.0.9"); err != nil {
		t.Error(err)
	}
	if rec, _, _ := b.record("w"); rec == nil || rec.ID != "id-w" || rec.Role != RoleAgent {
		t.Errorf("record %+v", rec)
	}
	// The answer was lost: it asks again.
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
}

func TestAServerJoins(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a := b.mustJoin(t, serverRequest("b", "id-b"))
	if string(a.PKI["ca.key"]) != "secret" || a.Cert != nil {
		t.Errorf("%+v", a)
	}
	w := serverRequest("w", "id-w")
	w.Role, w.Address = RoleWitness, "10.0.0.3"
	b.mustJoin(t, w)
	if rec, _, _ := b.record("w"); rec == nil || rec.Role != RoleWitness {
		t.Errorf("record %+v", rec)
	}
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, want string
		token      Role
		request    func(*JoinRequest)
		bench      func(*bench)
	}{
		{name: "token of the other role", want: "the token is for the role server, and this host wants to be agent: make one with skiff token create --role agent", token: RoleServer},
		{name: "name of a live member", want: "the name w is taken by a live member at 10.0.0.5", bench: func(b *bench) {
			b.setPeers(peer("w", "id-other", "10.0.0.5", RoleAgent, Alive))
		}},
		{name: "newer agent", want: "this host runs skiff 1.5.0 and server a 1.4.0, an older one: upgrade the servers first", request: func(r *JoinRequest) { r.Version = "1.5.0" }},
		{name: "old agent", want: "agents may be 3 minor versions behind", request: func(r *JoinRequest) { r.Version = "1.0.9" }},
		{name: "level of later", want: "the cluster is at feature level 2, and skiff 1.4.0 on this host works up to 1: install skiff 1.4.0 here", request: func(r *JoinRequest) { r.MinLevel, r.MaxLevel = 0, 0 }, bench: func(b *bench) { b.level(t, 2) }},
		{name: "level of before", want: "works from 3 on: finish the upgrade of the cluster first", request: func(r *JoinRequest) { r.MinLevel, r.MaxLevel = 3, 4 }},
		{name: "other major", want: "install skiff 1.4.0 here", request: func(r *JoinRequest) { r.Version = "2.4.0" }},
		{name: "no version", want: `"banana" is no version`, request: func(r *JoinRequest) { r.Version = "banana" }},
		{name: "name for the API", want: "the name kubernetes.default is kept for the API", request: func(r *JoinRequest) { r.Name = "kubernetes.default" }},
		{name: "bad name", want: `name "W_1": a lowercase RFC 1123 subdomain`, request: func(r *JoinRequest) { r.Name = "W_1" }},
		{name: "address of a server", want: "the address 10.0.0.1 is that of server a", request: func(r *JoinRequest) { r.Address = "10.0.0.1" }},
		{name: "no address", want: `address "0.0.0.0" is no address of a host`, request: func(r *JoinRequest) { r.Address = "0.0.0.0" }},
		{name: "no ID", want: `node ID "" is none`, request: func(r *JoinRequest) { r.NodeID = "" }},
		{name: "no CSR", want: "lacks the certificate request", request: func(r *JoinRequest) { r.CSR = nil }},
		{name: "damaged CSR", want: "certificate request of w", request: func(r *JoinRequest) { r.CSR = []byte("x") }},
		{name: "other settings", want: "--cluster-domain other.example: the cluster has cluster.local, which cannot be changed; leave the flag out", request: func(r *JoinRequest) { r.Told.ClusterDomain = "other.example" }},
		{name: "unknown role", want: `role "king"`, request: func(r *JoinRequest) { r.Role = "king" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if tc.bench != nil {
				tc.bench(b)
			}
			r := agentRequest(t, "w", "id-w")
			if tc.request != nil {
				tc.request(&r)
			}
			role := RoleAgent
			if tc.token != "" {
				role = tc.token
			}
			_, err := b.join(b.token(t, role), r)
			refusedWith(t, err, tc.want)
			if rec, _, _ := b.record("w"); rec != nil {
				t.Error("it has a record all the same")
			}
		})
	}
}

// TestStartedProgramIsChecked: a member that starts asks the others whether its
// program works beside theirs.
func TestStartedProgramIsChecked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.setPeers(peer("a", "id-a", "10.0.0.1", RoleServer, Alive), peer("b", "id-b", "10.0.0.2", RoleServer, Alive))
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.mustJoin(t, serverRequest("b", "id-b"))
	for _, tc := range []struct{ id, query, want string }{
		{"id-w", Program{Version: "1.4.7"}.query(), ""},
		{"id-w", Program{Version: "1.5.0"}.query(), "upgrade the servers first"},
		{"id-b", Program{Version: "1.5.0"}.query(), ""},
		{"id-b", Program{Version: "1.6.0"}.query(), "servers may be one minor version apart"},
		{"id-b", Program{Version: "1.4.0", MinLevel: 2, MaxLevel: 2}.query(), "skiff upgrade finalize"},
		{"id-b", "", ""},
		{"id-stranger", Program{Version: "9.9.9"}.query(), ""},
	} {
		r := httptest.NewRequest(http.MethodGet, RemovedPath+"?id="+tc.id+tc.query, nil)
		w := httptest.NewRecorder()
		b.OpenHandlers()[RemovedPath].ServeHTTP(w, r)
		a, err := decodeJSON[removedAnswer](w.Body.Bytes())
		if err != nil || a.Unfit == "" != (tc.want == "") || !strings.Contains(a.Unfit, tc.want) {
			t.Errorf("%s%s: %q, %v", tc.id, tc.query, a.Unfit, err)
		}
	}
}

// TestStartedProgramWaitsForNews: gossip may not have told yet that another
// member, too, has just started with another program.
func TestStartedProgramWaitsForNews(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, serverRequest("b", "id-b"))
	asked, told := 0, -1 // from so many questions on gossip knows it
	b.c.Peers = func() []Peer {
		w := peer("w", "id-w", "10.0.0.3", RoleAgent, Alive)
		if w.Version = "1.5.0"; asked == told {
			w.Version = "1.4.7"
		} else {
			asked++
		}
		return []Peer{peer("a", "id-a", "10.0.0.1", RoleServer, Alive), w}
	}
	q := url.Values{"version": {"1.4.7"}}
	if got := b.unfitNow("id-b", q); !strings.Contains(got, "agents may not be ahead of a server") {
		t.Fatalf("%q", got)
	}
	told = 2 * asked // with the second attempt
	if got := b.unfit(t.Context(), "id-b", q); got != "" {
		t.Error(got)
	}
}

func TestForeignAndWrongTokens(t *testing.T) {
	t.Parallel()
	b, other := newBench(t), newBench(t)
	_, err := b.join(other.token(t, RoleAgent), agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "the token is of another cluster")
	unknown := b.token(t, RoleAgent)
	unknown.ID = "nobody"
	_, err = b.join(unknown, agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "the token is wrong or has expired")
	for _, shown := range b.shown {
		if strings.Contains(shown, "skiff1") {
			t.Errorf("more than id and secret was sent: %s", shown)
		}
	}
}

// Somebody between the host and the server sees no token.
func TestTheTokenGoesOnlyToAServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tok := b.token(t, RoleAgent)
	for name, impostor := range map[string]*httptest.Server{
		"another CA":       serve(t, newPKI(t), apiServerName, b.port()),
		"a node's service": serve(t, b.pki, "system:node:evil", b.port()),
	} {
		_, err := Join(context.Background(), impostor.Listener.Addr().String(), tok, agentRequest(t, "w", "id-w"))
		refusedWith(t, err, "does not use the CA that the token names")
		for _, shown := range b.shown {
			if shown != "" {
				t.Errorf("%s has seen %s", name, shown)
			}
		}
	}
}

func TestClocks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.stop()
	tok := b.token(t, RoleAgent)
	// The server decides by the time in the request.
	r := agentRequest(t, "w", "id-w")
	r.Time = b.now().Add(6 * time.Minute)
	_, err := b.Join(context.Background(), tok.bearer(), r)
	refusedWith(t, err, "is 6m0s ahead of the server's")
	r.Time = time.Now().Add(-4 * time.Minute)
	if _, err := b.Join(context.Background(), tok.bearer(), r); err != nil {
		t.Errorf("4 minutes: %v", err)
	}
	// The host sees it before anything else, whatever it does to certificates.
	b.date = time.Now().Add(time.Hour)
	_, err = b.join(tok, r)
	refusedWith(t, err, "behind that of the server at 127.0.0.1")
	b.date = time.Now().Add(-24 * time.Hour)
	_, err = b.join(tok, r)
	refusedWith(t, err, "the server's is wrong: the cluster was made at")
}

func TestNoServerThere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tok, r := b.token(t, RoleAgent), agentRequest(t, "w", "id-w")
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	foreign := serve(t, newPKI(t), "x", http.NotFoundHandler())
	for addr, want := range map[string]string{
		"127.0.0.1:1":                    "does not answer: dial tcp",
		plain.Listener.Addr().String():   "does not answer",
		foreign.Listener.Addr().String(): "is no skiff server, or an older one",
		"a/b":                            "want HOST or HOST:PORT",
		"host:99999":                     "want HOST or HOST:PORT",
		"":                               "want HOST or HOST:PORT",
	} {
		_, err := Join(context.Background(), addr, tok, r)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", addr, err, want)
		}
	}
	for in, want := range map[string]string{"h": "h:6443", "h:1": "h:1", "[::1]": "[::1]:6443", "fd00::1": "[fd00::1]:6443", "https://h:7": "h:7"} {
		if got, err := serverAddress(in); got != want || err != nil {
			t.Errorf("%s is %s, %v", in, got, err)
		}
	}
}

// Without a leader the host may try again.
func TestNoLeaderIsNotFinal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tok := b.token(t, RoleAgent)
	b.log.fails(errTest)
	_, err := b.join(tok, agentRequest(t, "w", "id-w"))
	var r *Refusal
	if err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("got %v", err)
	}
}

func TestOneHostHasOneName(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	_, err := b.join(b.token(t, RoleAgent), agentRequest(t, "v", "id-w"))
	refusedWith(t, err, "this host is a member already, as w: start it with --name w")
}

func TestADeadMemberIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.setPeers(peer("w", "id-w", "10.0.0.9", RoleAgent, Dead))
	a := b.mustJoin(t, agentRequest(t, "w", "id-new"))
	if rec, _, _ := b.record("w"); rec.ID != "id-new" {
		t.Errorf("record %+v", rec)
	}
	if !b.Removed("id-w") || b.Removed("id-new") {
		t.Error("the certificate of the old host is not refused, or that of the new one is")
	}
	if err := b.CheckCertificate(parseOne(t, a.Cert)); err != nil {
		t.Error(err)
	}
	_, err := b.join(b.token(t, RoleAgent), agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "this node was removed from the cluster by the host that took its name")
}

// Gossip of a server that has just started may not know yet who lives.
func TestNobodyIsReplacedByAServerThatKnowsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.stop()
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	_, err := b.join(b.token(t, RoleAgent), agentRequest(t, "w", "id-new"))
	if r := new(Refusal); err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), "try again in a few seconds: this server has just started") {
		t.Errorf("got %v", err)
	}
	b.mu.Lock()
	b.offset = settleTime
	b.mu.Unlock()
	b.mustJoin(t, agentRequest(t, "w", "id-new"))
}

func TestADeadServerIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, serverRequest("b", "id-b"))
	b.raft.members = append(b.raft.members, RaftMember{ID: "id-b", Voter: true}, RaftMember{ID: "id-c", Voter: true, Healthy: true})
	b.setPeers(peer("b", "id-b", "10.0.0.2", RoleServer, Dead))

	b.raft.members[1].Healthy = true // gossip is wrong about it
	_, err := b.join(b.token(t, RoleServer), serverRequest("b", "id-new"))
	refusedWith(t, err, "the name b is taken by a server that still follows the log")

	b.raft.members[1].Healthy = false
	b.raft.onRemove = func(id string) {
		if err := b.Admit(id, ""); err == nil || b.Removed(id) {
			t.Errorf("during the removal it is admitted (%v), or cut off already (%v)", err, b.Removed(id))
		}
	}
	b.mustJoin(t, serverRequest("b", "id-new"))
	if !b.Removed("id-b") || len(b.raft.members) != 2 {
		t.Errorf("members %v", b.raft.members)
	}
}

func TestADeadServerIsNotReplacedAtTheCostOfTheQuorum(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, serverRequest("b", "id-b"))
	b.raft.members = append(b.raft.members, RaftMember{ID: "id-b", Voter: true})
	b.setPeers(peer("b", "id-b", "10.0.0.2", RoleServer, Dead))
	b.raft.refuse = errQuorumRisk
	_, err := b.join(b.token(t, RoleServer), serverRequest("b", "id-new"))
	refusedWith(t, err, "is that of a dead server which can't be replaced now")
	if b.removal("id-b") != nil {
		t.Error("it is still marked as removed")
	}
}

func TestServerAddresses(t *testing.T) {
	t.Parallel()
	s := Server{Address: netip.MustParseAddr("fd00::1"), APIPort: 1, RaftPort: 2, GossipPort: 3}
	if s.API() != "[fd00::1]:1" || s.Raft() != "[fd00::1]:2" || s.Gossip() != "[fd00::1]:3" {
		t.Errorf("%s %s %s", s.API(), s.Raft(), s.Gossip())
	}
}
