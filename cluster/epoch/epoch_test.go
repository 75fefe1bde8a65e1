package epoch

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

var (
	first     = raftdir.Epoch{Number: 1}
	restored  = raftdir.Epoch{Number: 2, ID: "r", Cause: raftdir.Restored, By: "r", At: time.Unix(1e9, 0)}
	restored2 = raftdir.Epoch{Number: 2, ID: "s", Cause: raftdir.Restored, By: "s", At: time.Unix(2e9, 0)}
	recovered = raftdir.Epoch{Number: 3, ID: "c", Cause: raftdir.Recovered, By: "b", At: time.Unix(1e9, 0), Followers: []string{"id-b"}}
)

func server(name string) membership.Server {
	return membership.Server{Name: name, ID: "id-" + name, Address: netip.MustParseAddr("10.0.0.1"), APIPort: 6443, RaftPort: 6444}
}

func view(name string, e raftdir.Epoch, led bool) View {
	return View{ClusterID: "x", Server: server(name), Epoch: e, Led: led, Index: 9, Term: 2}
}

func TestDecide(t *testing.T) {
	long := Patience + time.Second
	for _, tc := range []struct {
		name string
		s    Situation
		want Action
		why  string // part of it
	}{
		{"alone", Situation{Self: view("a", first, false), Starting: true}, Stay, ""},
		{"its own epoch lives", Situation{Self: view("a", first, false), Starting: true, Others: []View{view("b", first, true), view("c", restored, true)}}, Stay, ""},
		{"a later one that nobody leads", Situation{Self: view("a", first, false), Starting: true, Others: []View{view("c", restored, false)}}, Stay, ""},
		{"restored elsewhere, at the start", Situation{Self: view("a", first, false), Starting: true, Others: []View{view("c", restored, true)}}, Follow, "goes on in epoch 2"},
		{"restored elsewhere, just without a leader", Situation{Self: view("a", first, false), Leaderless: time.Second, Others: []View{view("c", restored, true)}}, Stay, ""},
		{"restored elsewhere, long without a leader", Situation{Self: view("a", first, false), Leaderless: long, Others: []View{view("c", restored, true)}}, Follow, "server c"},
		{"restored elsewhere beside a quorum", Situation{Self: view("a", first, true), Leaderless: 0, Others: []View{view("c", restored, true)}}, Stay, "two histories"},
		{"the later of two histories", Situation{Self: view("c", restored, true), Others: []View{view("a", first, true)}}, Stay, "goes on with epoch 1, while this one has the later"},
		{"restored twice, here earlier", Situation{Self: view("a", restored, false), Starting: true, Others: []View{view("b", restored2, true)}}, Follow, ""},
		{"restored twice, here later", Situation{Self: view("a", restored2, false), Starting: true, Others: []View{view("b", restored, true)}}, Stay, ""},
		{"the latest of several", Situation{Self: view("a", first, false), Starting: true, Others: []View{view("c", restored, true), view("b", recovered, true)}}, KeepOut, "server b"},
		{"a minority after recovery", Situation{Self: view("a", first, false), Starting: true, Others: []View{view("c", recovered, true)}}, KeepOut, "ends with entry 9 of term 2, which may hold writes that the others never had; to give them up and join again run skiff recover --rejoin"},
		{"a survivor after recovery", Situation{Self: view("b", first, false), Leaderless: long, Others: []View{view("c", recovered, true)}}, Follow, ""},
		{"with an empty log", Situation{Self: View{ClusterID: "x", Server: server("a"), Epoch: first}, Starting: true, Others: []View{view("c", recovered, true)}}, Follow, ""},
		{"another cluster", Situation{Self: view("a", first, false), Starting: true, Others: []View{{ClusterID: "y", Server: server("c"), Epoch: restored, Led: true}}}, Stay, ""},
		{"restored here beside a living cluster", Situation{Self: view("r", restored, false), Unasked: true, Starting: true, Others: []View{view("a", first, false), view("b", first, true)}}, Refuse, "is alive: server b at 10.0.0.1:6443"},
		{"restored here beside a later one", Situation{Self: view("r", restored, false), Unasked: true, Starting: true, Others: []View{view("b", recovered, true)}}, Refuse, "epoch 3"},
		{"restored here beside the rest of a cluster", Situation{Self: view("r", restored, false), Unasked: true, Starting: true, Others: []View{view("a", first, false)}}, Stay, ""},
	} {
		d := Decide(tc.s)
		if d.Action != tc.want || !strings.Contains(d.Why, tc.why) || tc.why == "" && d.Action == Stay && d.Why != "" {
			t.Errorf("%s: %s because %q, want %s because %q", tc.name, d.Action, d.Why, tc.want, tc.why)
		}
		if (d.Action == Follow || d.Action == KeepOut) && (d.Target == nil || !d.Target.Epoch.After(tc.s.Self.Epoch)) {
			t.Errorf("%s: target %+v", tc.name, d.Target)
		}
	}
}

func member(name string, voter bool) Member {
	return Member{Name: name, ID: "id-" + name, Address: "10.0.0.1:6444", Voter: voter}
}

func TestRecovery(t *testing.T) {
	ahead := view("b", first, false)
	ahead.Index = 10
	term := view("b", first, false)
	term.Term, term.Index = 3, 1
	silent := Answer{Server: server("c"), Err: errors.New("no route")}
	three := []Member{member("c", true), member("a", true), member("b", true)}
	five := append(three, member("d", true), member("e", true))
	for _, tc := range []struct {
		name      string
		s         Survey
		refused   string
		doubt     string
		followers string
		number    uint64
	}{
		{name: "alone of three", s: Survey{Self: view("a", first, false), Members: three, Answers: []Answer{silent}}, number: 2},
		{name: "two of five", s: Survey{Self: view("a", first, false), Members: five, Answers: []Answer{silent, {View: view("b", first, false)}}}, followers: "id-b", number: 2},
		{name: "another has more", s: Survey{Self: view("a", first, false), Members: five, Answers: []Answer{{View: ahead}}}, doubt: "server b has more of the log (entry 10 of term 2, here it is entry 9 of term 2): recover there", followers: "id-b", number: 2},
		{name: "another is of a later term", s: Survey{Self: view("a", first, false), Members: five, Answers: []Answer{{View: term}}}, doubt: "server b has more", followers: "id-b", number: 2},
		{name: "a quorum answers", s: Survey{Self: view("a", first, false), Members: three, Answers: []Answer{{View: view("b", first, false)}}}, doubt: "2 of 3 voting servers answer", followers: "id-b", number: 2},
		{name: "it leads", s: Survey{Self: view("a", first, true), Members: three}, refused: "nothing is to be recovered"},
		{name: "another has a leader", s: Survey{Self: view("a", first, false), Members: three, Answers: []Answer{{View: view("b", first, true)}}}, refused: "the cluster has a quorum: server b"},
		{name: "it was left behind", s: Survey{Self: view("a", first, false), Members: three, Answers: []Answer{{View: view("b", recovered, true)}}}, refused: "run skiff recover --rejoin here"},
		{name: "the later epoch is dead too", s: Survey{Self: view("a", first, false), Members: three, Answers: []Answer{{View: view("b", recovered, false)}}}, number: 4},
		{name: "no vote", s: Survey{Self: view("a", first, false), Members: []Member{member("a", false), member("b", true)}}, doubt: "has no vote", number: 2},
		{name: "damaged", s: Survey{Self: view("a", first, false), Damage: "raft.db is cut short", Members: three}, refused: "can't be read (raft.db is cut short)"},
		{name: "empty", s: Survey{Self: View{Server: server("a"), Epoch: first}, Members: three}, refused: "is empty"},
	} {
		p := tc.s.Recovery(time.Now())
		if (p.Refused == "") != (tc.refused == "") || !strings.Contains(p.Refused, tc.refused) {
			t.Errorf("%s: refused: %q, want %q", tc.name, p.Refused, tc.refused)
		}
		if tc.refused != "" {
			continue
		}
		if (len(p.Doubts) == 0) != (tc.doubt == "") || !strings.Contains(strings.Join(p.Doubts, "\n"), tc.doubt) {
			t.Errorf("%s: doubts: %q, want %q", tc.name, p.Doubts, tc.doubt)
		}
		if got := strings.Join(p.Next.Followers, ","); got != tc.followers || p.Next.Number != tc.number || p.Next.Cause != raftdir.Recovered {
			t.Errorf("%s: next %+v", tc.name, p.Next)
		}
		if i := p.Intent(raftdir.Member{ID: "id-a", Addr: "10.0.0.1:6444"}); i.Do != Begin || !i.Epoch.Same(p.Next) || i.Member.ID != "id-a" {
			t.Errorf("%s: intent %+v", tc.name, i)
		}
	}
	p := Survey{Self: view("a", first, false), Members: five, Answers: []Answer{silent, {View: view("b", first, false)}}}.Recovery(time.Now())
	losses := strings.Join(p.Losses, "\n")
	if !strings.Contains(losses, "after entry 9 are lost, if there were any, unless c or d or e") || !strings.Contains(losses, "b: what only their logs have") {
		t.Errorf("losses %q", p.Losses)
	}
	for _, m := range p.Members {
		if m.Name == "c" && (m.Answers || m.Problem != "no route") || m.Name == "b" && (!m.Answers || m.Index != 9) || m.Name == "a" && !m.Self {
			t.Errorf("member %+v", m)
		}
	}
}

func TestRejoining(t *testing.T) {
	known := view("c", first, true)
	known.Voter = true
	for _, tc := range []struct {
		name    string
		s       Survey
		refused string
		target  string
		newID   bool
		doubt   string
	}{
		{name: "left behind", s: Survey{Self: view("a", first, false), Answers: []Answer{{View: view("b", restored, true)}, {View: view("c", recovered, true)}}}, target: "c"},
		{name: "of two histories", s: Survey{Self: view("a", first, true), Answers: []Answer{{View: view("b", restored, true)}}}, target: "b"},
		{name: "its log is damaged", s: Survey{Self: view("a", first, false), Damage: "raft.db is cut short", Answers: []Answer{{View: known}}}, target: "c", newID: true},
		{name: "a member that works", s: Survey{Self: view("a", first, true), Answers: []Answer{{View: known}}}, target: "c", refused: "has nothing to give up"},
		{name: "nobody leads", s: Survey{Self: view("a", first, false), Answers: []Answer{{View: view("b", restored, false)}}}, refused: "there is nothing to join"},
		{name: "only an earlier one", s: Survey{Self: view("a", restored, true), Answers: []Answer{{View: view("b", first, true)}}}, target: "b", doubt: "earlier than that of this server"},
	} {
		p := tc.s.Rejoining()
		if (p.Refused == "") != (tc.refused == "") || !strings.Contains(p.Refused, tc.refused) || p.Target != tc.target {
			t.Errorf("%s: %+v", tc.name, p)
			continue
		}
		if (len(p.Doubts) == 0) != (tc.doubt == "") || !strings.Contains(strings.Join(p.Doubts, "\n"), tc.doubt) {
			t.Errorf("%s: doubts %q", tc.name, p.Doubts)
		}
		if tc.refused == "" {
			if i := p.Intent(raftdir.Member{}); i.Do != Rejoin || (i.NodeID != "") != tc.newID || i.Servers[0].Name != tc.target || len(p.Losses) == 0 {
				t.Errorf("%s: intent %+v", tc.name, i)
			}
		}
	}
}

// member of a cluster on disk, with a log.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := raftdir.Create(dir, raftdir.Member{ID: "old", Addr: "10.0.0.1:6444"}, 5, 2, writeState)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "node-id"), []byte("old\n"), 0o600)
	}
	if err == nil {
		err = membership.SaveCluster(dir, &membership.Cluster{ClusterID: "x", Servers: []membership.Server{{Name: "me", ID: "old"}, server("b")}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// An intent is carried out once, however often it is resumed, and from whichever
// step on.
func TestIntentsAreResumed(t *testing.T) {
	target := view("c", restored, true)
	target.Voter = true
	for _, first := range []Intent{RejoinIntent(target), {ID: NewID(), Do: Begin, Epoch: recovered, Member: raftdir.Member{ID: "old", Addr: "10.0.0.1:6444"}}} {
		steps := len(first.steps(t.Context(), "unused"))
		for killed := 0; killed <= steps; killed++ {
			dir := dataDir(t)
			if i, err := Resume(t.Context(), dir); i != nil || err != nil {
				t.Fatalf("without one: %v, %v", i, err)
			}
			if err := first.Save(dir); err != nil {
				t.Fatal(err)
			}
			for _, step := range first.steps(t.Context(), dir)[:killed] {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if i, err := Resume(t.Context(), dir); err != nil || (i == nil) != (killed == steps) {
				t.Fatalf("%s after %d steps: %v, %v", first.Do, killed, i, err)
			}
			if left, err := LoadIntent(dir); left != nil || err != nil {
				t.Errorf("%s after %d steps: it is still there", first.Do, killed)
			}
			if e, err := raftdir.LoadEpoch(dir); err != nil || !e.Same(first.Epoch) {
				t.Errorf("%s after %d steps: %s, %v", first.Do, killed, e, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "raft.epoch-1", "raft.db")); err != nil {
				t.Errorf("%s after %d steps: the former log is not kept: %v", first.Do, killed, err)
			}
			id, err := os.ReadFile(filepath.Join(dir, "node-id"))
			if err != nil {
				t.Fatal(err)
			}
			known, err := membership.LoadCluster(dir)
			if err != nil {
				t.Fatal(err)
			}
			byName := map[string]membership.Server{}
			for _, s := range known.Servers {
				byName[s.Name] = s
			}
			if first.Do == Begin {
				if string(id) != "old\n" || !raftdir.Exists(dir) {
					t.Errorf("after %d steps: ID %q", killed, id)
				}
				continue
			}
			if string(id) != first.NodeID+"\n" || byName["me"].ID != first.NodeID || byName["c"].ID != "id-c" || byName["b"].ID != "id-b" || !known.Epoch.Same(restored) {
				t.Errorf("after %d steps: ID %q, known %+v", killed, id, known)
			}
			if raftdir.Exists(dir) {
				t.Errorf("after %d steps there is a log", killed)
			}
		}
	}
}

// A log of the same epoch is given up all the same, and only once.
func TestRejoinInTheSameEpoch(t *testing.T) {
	dir := dataDir(t)
	for range 2 {
		i := RejoinIntent(view("c", first, true))
		if err := i.Save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Resume(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if raftdir.Exists(dir) {
			t.Error("the log is in place")
		}
		if err := raftdir.Create(dir, raftdir.Member{ID: "old", Addr: "10.0.0.1:6444"}, 5, 2, writeState); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedIntent(t *testing.T) {
	dir := dataDir(t)
	for _, bad := range []string{"", "{", `{"id":"x","do":"dance"}`} {
		if err := os.WriteFile(filepath.Join(dir, IntentFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Resume(t.Context(), dir); err == nil || !strings.Contains(err.Error(), IntentFile) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%q: %v", bad, err)
		}
		if !raftdir.Exists(dir) {
			t.Fatal("something was done")
		}
	}
}

// writeState is a small state machine's snapshot.
func writeState(w io.Writer) error {
	f := fsm.New(store.New(store.Config{}))
	return f.Capture().Write(context.Background(), w)
}
