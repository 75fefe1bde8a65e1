package consensus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// TestMembersAreCompared: a follower whose state is another is named, and a leader
// whose state is another leaves leading to the others.
func TestMembersAreCompared(t *testing.T) {
	members := cluster(t, 3, steady)
	leader, others := leaderOf(t, members)
	for i := range 50 {
		leader.put(t, fmt.Sprintf("/k%d", i), "v", 0)
	}
	rev := leader.config.FSM.Store().Revision()
	problems := func(m *member) (out []string) {
		all, err := m.MemberStats(t.Context())
		if err != nil {
			return []string{err.Error()}
		}
		for _, s := range all {
			if s.Problem != "" {
				out = append(out, s.ID+": "+s.Problem)
			}
		}
		return out
	}
	if !leader.compareNow(t.Context(), rev) || len(problems(leader)) != 0 {
		t.Fatalf("equal states: %q", problems(leader))
	}
	spoil := func(m *member) { // as memory that failed would
		kv, _ := m.config.FSM.Store().View().Get("/k7")
		kv.Value[0] ^= 1
	}
	spoil(others[0])
	eventually(t, "all are compared again", func() bool { return leader.compareNow(t.Context(), rev) && len(problems(leader)) > 0 })
	if p := problems(leader); len(p) != 1 || !strings.HasPrefix(p[0], others[0].c.NodeID+": its state at revision") || !strings.Contains(p[0], "that of the other servers") {
		t.Errorf("the follower's state is another: %q", p)
	}
	spoil(others[0]) // right again
	spoil(leader)
	eventually(t, "another server leads", func() bool { return leader.compareNow(t.Context(), rev) && !leader.IsLeader() })
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ hashes, want string }{
		{"aaa", ""}, {"aab", "2"}, {"abb", "0"}, {"aa", ""}, {"ab", "1"}, {"abc", "12"}, {"aabbb", "01"}, {"aabb", "23"},
	} {
		answers := map[string]stateAnswer{}
		for i, h := range c.hashes {
			answers[fmt.Sprint(i)] = stateAnswer{Hash: string(h)}
		}
		got := judge(answers, "0", 7) // 0 leads
		var ids string
		for i := range c.hashes {
			if _, ok := got[fmt.Sprint(i)]; ok {
				ids += fmt.Sprint(i)
			}
		}
		if ids != c.want {
			t.Errorf("%s: %q differ, want %q", c.hashes, ids, c.want)
		}
	}
}

// BenchmarkHashState is what comparing costs a member.
func BenchmarkHashState(b *testing.B) {
	s := store.New(store.Config{})
	for i := range 100_000 {
		s.Update(func(tx *store.Txn) {
			if _, err := tx.Put(fmt.Sprintf("/registry/pods/default/p%06d", i), make([]byte, 1000), fsm.Any, 0); err != nil {
				b.Fatal(err)
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		began := time.Now()
		if _, err := hashView(b.Context(), s.View(), 0); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/state")
	}
}
