package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

func TestPrintPlan(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
	seen := now.Add(-90 * time.Second)
	other := raftdir.Epoch{Number: 2, ID: "x", Cause: raftdir.Recovered, By: "c", At: now}
	p := epoch.Plan{Server: "a", Epoch: raftdir.Epoch{Number: 1}, Index: 120, Term: 4, Next: raftdir.Epoch{Number: 2, Followers: []string{"id-b"}},
		Losses: []string{"writes after entry 120"}, Doubts: []string{"b has more"},
		Members: []epoch.Member{
			{Name: "a", Voter: true, Self: true, Answers: true, Index: 120, Term: 4},
			{Name: "b", Voter: true, Answers: true, Index: 121, Term: 4},
			{Name: "c", Voter: true, Answers: true, Index: 9, Term: 9, Epoch: &other},
			{Name: "d", Seen: &seen, Problem: "no route"},
		}}
	var out strings.Builder
	if err := printPlan(&out, &p, false, now); err != nil {
		t.Fatal(err)
	}
	const want = `Server   a
Log      ends with entry 120 of term 4, epoch 1
Begins   epoch 2, with this server alone; 1 other survivors follow by themselves
LOSS     writes after entry 120
DOUBT    b has more

SERVER   VOTES   ANSWERS   LAST ENTRY   TERM   SEEN        NOTE
a        yes     yes       120          4      now         this server
b        yes     yes       121          4      now         
c        yes     yes       9            9      now         has epoch 2 (by recover on c, 2026-11-21T20:00:00Z)
d        no      no        ?            ?      1m30s ago   no route
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestRecoverIsUsedWrongly(t *testing.T) {
	t.Parallel()
	agent := t.TempDir()
	if err := os.MkdirAll(filepath.Join(agent, "agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(agent, "agent", "node.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"now"}, `unexpected argument "now"`},
		{[]string{"--data-dir", filepath.Join(agent, "none")}, "is not the data directory of a server"},
		{[]string{"--data-dir", agent}, "this host is an agent"},
		{[]string{"--output", "yaml"}, "--output"},
	} {
		err := run(t.Context(), append([]string{"skiff", "recover"}, tc.args...))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.args, err, tc.want)
		}
	}
}
