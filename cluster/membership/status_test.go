package membership

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
)

func TestStatusOfACluster(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.servers("abC")
	b.raft.leader = "id-b"
	b.raft.members[0].Lag = 4
	b.setPeers(append(b.c.Peers(), peer("w", "id-w", "10.0.0.9", RoleAgent, Alive))...)
	since := time.Now().Add(-time.Hour)
	b.c.Evictions = func() *EvictionStatus {
		return &EvictionStatus{Frozen: true, Reason: "6 of 10 nodes seem dead", Since: &since, Waiting: 6}
	}
	b.c.Duties = func() []string { return []string{"expiry"} }
	s := b.Status(context.Background())
	if s.Leader != "b" || s.Partial != "" || s.FailureTolerance != 0 || s.Role != RoleServer {
		t.Errorf("leader %q, partial %q, tolerance %d", s.Leader, s.Partial, s.FailureTolerance)
	}
	var names []string
	for _, m := range s.Members {
		names = append(names, m.Name)
	}
	if !slices.Equal(names, []string{"a", "b", "c", "w"}) {
		t.Fatalf("members %v", names)
	}
	a, leader, dead, agent := s.Members[0], s.Members[1], s.Members[2], s.Members[3]
	if !a.Voter || a.Leader || *a.Lag != 4 || !*a.Healthy || *a.FsyncP99 != time.Millisecond || a.Version != "1.4.0" || a.Address != "10.0.0.1" {
		t.Errorf("%+v", a)
	}
	if !leader.Leader {
		t.Errorf("%+v", leader)
	}
	if dead.State != Dead || *dead.Healthy || dead.Lag != nil || *dead.LastContact != time.Minute || dead.Problem == "" {
		t.Errorf("%+v", dead)
	}
	if agent.Voter || agent.Healthy != nil || agent.Role != RoleAgent || agent.State != Alive || agent.Since == nil {
		t.Errorf("%+v", agent)
	}
	if s.Evictions == nil || !s.Evictions.Frozen || s.Evictions.Waiting != 6 {
		t.Errorf("evictions %+v", s.Evictions)
	}
	for _, want := range []string{"1 of 3 voting servers are down: c", "evictions are frozen: 6 of 10 nodes seem dead"} {
		if !slices.Contains(s.Warnings, want) {
			t.Errorf("warnings %q lack %q", s.Warnings, want)
		}
	}
}

func TestStatusWithoutALeader(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("aBC")
	b.raft.leader = ""
	b.log.fails(errTest)
	s := b.Status(context.Background())
	if !strings.Contains(s.Partial, "the leader's view is missing") || s.Leader != "" || len(s.Members) != 3 {
		t.Errorf("partial %q, leader %q, members %v", s.Partial, s.Leader, s.Members)
	}
	if m := s.Members[1]; !m.Voter || m.State != Dead || m.Healthy != nil {
		t.Errorf("%+v", m)
	}
	if !slices.Contains(s.Warnings, "there is no leader: reads and running pods go on, writes wait") {
		t.Errorf("warnings %q", s.Warnings)
	}
}

func TestFailureToleranceAndItsWarnings(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]struct {
		tolerance int
		warning   string
	}{
		"a":     {0, ""},
		"ab":    {0, "losing either server stops writes: add a third or a --witness"},
		"abc":   {1, ""},
		"abcd":  {1, "4 voting servers tolerate no more failures than 3: add or remove one"},
		"abcde": {2, ""},
		"abC":   {0, "1 of 3 voting servers are down: c"},
		"abcDE": {0, "2 of 5 voting servers are down: d, e"},
		"abcdE": {1, "1 of 5 voting servers are down: e"},
		"ab?c":  {0, "not voting yet: c"},
	} {
		b := newBench(t)
		b.servers(spec)
		s := b.Status(context.Background())
		if s.FailureTolerance != want.tolerance {
			t.Errorf("%s: tolerance %d, want %d", spec, s.FailureTolerance, want.tolerance)
		}
		if want.warning == "" && len(s.Warnings) > 0 || want.warning != "" && !slices.Contains(s.Warnings, want.warning) {
			t.Errorf("%s: warnings %q, want %q", spec, s.Warnings, want.warning)
		}
	}
}

func TestCertificatesInTheStatus(t *testing.T) {
	t.Parallel()
	now := time.Now()
	renew := now.Add(time.Hour)
	st := &Status{Certificates: []Certificate{
		{Name: "old", NotAfter: now.Add(-time.Hour)}, {Name: "soon", NotAfter: now.Add(24 * time.Hour)},
		{Name: "self", NotAfter: now.Add(24 * time.Hour), RenewAt: &renew}, {Name: "far", NotAfter: now.Add(90 * 24 * time.Hour)}}}
	st.Raft.LeaderID = "x"
	w := strings.Join(warnings(st, now), "\n")
	for name, want := range map[string]string{"old": `"old" has expired`, "soon": `"soon" expires at`} {
		if !strings.Contains(w, want) {
			t.Errorf("%s: %s", name, w)
		}
	}
	if strings.Contains(w, "self") || strings.Contains(w, "far") {
		t.Error(w)
	}
}

// Who was replaced or removed, and is still in gossip's memory, is no member.
func TestFormerMembersAreNotShown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	if _, err := b.Remove(context.Background(), "w", "skiff:admin", false); err != nil {
		t.Fatal(err)
	}
	b.setPeers(peer("w", "id-w", "10.0.0.9", RoleAgent, Dead))
	if m := b.Status(context.Background()).Members; len(m) != 1 {
		t.Errorf("members %+v", m)
	}
	b.mustJoin(t, agentRequest(t, "w", "id-2"))
	for _, m := range b.Status(context.Background()).Members {
		if m.Name == "w" && (m.ID != "id-2" || m.State != Unknown) {
			t.Errorf("%+v", m)
		}
	}
}

func TestTheAPIOfAdministrators(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.servers("abcd")
	admin, err := b.pki.Leaf(pki.Request{CommonName: "skiff:admin", Organization: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	client := clientOf(t, pki.ClientTLS(admin, pki.TLSOptions{Protos: []string{"http/1.1"}}))
	do := func(method, path, body string, status int, out any) {
		t.Helper()
		req, err := http.NewRequest(method, "https://"+b.addr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s %s: %s, want %d", method, path, resp.Status, status)
		}
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
	}
	var st Status
	do("GET", StatusPath, "", 200, &st)
	var members []MemberStatus
	do("GET", MembersPath, "", 200, &members)
	if len(st.Members) != 4 || len(members) != 4 {
		t.Errorf("%d and %d members", len(st.Members), len(members))
	}
	var tok NewToken
	do("POST", TokensPath, `{"role":"agent","ttl":3600000000000}`, 200, &tok)
	var list []TokenInfo
	do("GET", TokensPath, "", 200, &list)
	if len(list) != 1 || list[0].ID != tok.ID {
		t.Errorf("tokens %v", list)
	}
	var f failure
	do("POST", TokensPath, `{`, 400, &f)
	if !strings.Contains(f.Message, "the request is damaged") {
		t.Errorf("%+v", f)
	}
	do("DELETE", TokensPath+"/"+tok.ID, "", 200, &struct{}{})
	do("DELETE", TokensPath+"/"+tok.ID, "", 404, &f)
	do("PUT", TokensPath, "", 405, &f)
	do("DELETE", MembersPath+"/nobody", "", 404, &f)
	do("DELETE", MembersPath+"/d?force=perhaps", "", 400, &f)
	do("POST", MembersPath+"/b/promote", "", 409, &f)
	do("POST", MembersPath+"/b/demote", "", 404, &f)
	do("POST", LeavePath, "", 400, &f)
	do("POST", LeavePath+"?id=id-nobody", "", 404, &f)
	var r Removed
	do("POST", LeavePath+"?id=id-d", "", 200, &r)
	if r.Name != "d" || b.removal("id-d").By != "skiff leave on d" {
		t.Errorf("%+v, %+v", r, b.removal("id-d"))
	}
	do("POST", LeavePath+"?id=id-d", "", 409, &f)
	do("DELETE", MembersPath+"/c?force=true", "", 200, &r)
	if b.removal("id-c").By != "skiff:admin" {
		t.Errorf("removed by %s", b.removal("id-c").By)
	}
	b.raft.leader = ""
	do("DELETE", MembersPath+"/b?force=true", "", 503, &f)
}
