package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

func ep(n byte) ruleset.Endpoint { return ruleset.Endpoint{Addr: [4]byte{10, 42, 0, n}, Port: 8080} }

func epList(ns ...byte) []ruleset.Endpoint {
	var out []ruleset.Endpoint
	for _, n := range ns {
		out = append(out, ep(n))
	}
	return out
}

func TestAssign(t *testing.T) {
	for _, c := range []struct{ have, want, next []byte }{
		{nil, []byte{1, 2}, []byte{1, 2}},
		{[]byte{1, 2}, []byte{1, 2, 3}, []byte{1, 2, 3}},
		{[]byte{1, 2, 3}, []byte{1, 3}, []byte{1, 3}},
		{[]byte{1, 2, 3}, []byte{2, 3}, []byte{3, 2}},
		{[]byte{3, 2, 1}, []byte{1, 2, 3}, []byte{3, 2, 1}},
		{[]byte{1, 2, 3}, []byte{4, 5}, []byte{4, 5}},
		{[]byte{1, 2}, nil, nil},
	} {
		if got := Assign(epList(c.have...), epList(c.want...)); !slices.Equal(got, epList(c.next...)) {
			t.Errorf("%v -> %v: got %v, want %v", c.have, c.want, got, c.next)
		}
	}
}

// A change of one endpoint touches few elements, however many there are.
func TestChangeIsSmall(t *testing.T) {
	e, _ := NewEngine(emptyState())
	var words []string
	for i := range 200 {
		words = append(words, fmt.Sprintf("%d@n1", i+1))
	}
	e.Set("ns/web", Ranked{"", NewPlan(web(), eps(words...), self)})
	for _, c := range []struct {
		name  string
		words []string
	}{
		{"one more", append(slices.Clone(words), "201@n1")},
		{"one less", words},
		{"another less", slices.Delete(slices.Clone(words), 10, 11)},
	} {
		d := e.Set("ns/web", Ranked{"", NewPlan(web(), eps(c.words...), self)})
		if d.Unit.Empty() || d.Unit.Size() > 7 { // two frontends replaced, three slots
			t.Errorf("%s: %d elements", c.name, d.Unit.Size())
		}
	}
	if d := e.Set("ns/web", Ranked{"", NewPlan(web(), eps(c1(words)...), self)}); !d.Unit.Empty() {
		t.Errorf("no change: %d elements", d.Unit.Size())
	}
}

func c1(words []string) []string { return slices.Delete(slices.Clone(words), 10, 11) }

func emptyState() *ruleset.State {
	return &ruleset.State{Frontends: map[ruleset.Key]ruleset.Frontend{}, External: map[ruleset.Key]ruleset.Frontend{},
		Lists: map[ruleset.ListID]map[int]ruleset.Endpoint{}, Members: map[ruleset.ListID]map[ruleset.Endpoint]bool{}, Flags: map[string]map[ruleset.Key]bool{}}
}

// stateOf is what the engine believes the kernel holds.
func stateOf(e *Engine) *ruleset.State {
	s := emptyState()
	for fk, f := range e.front {
		if fk.set == ruleset.SetFrontends {
			s.Frontends[fk.key] = f
		} else {
			s.External[fk.key] = f
		}
	}
	for id, l := range e.lists {
		s.Lists[id] = map[int]ruleset.Endpoint{}
		for i, x := range l {
			s.Lists[id][i] = x
			if e.stick[id] {
				if s.Members[id] == nil {
					s.Members[id] = map[ruleset.Endpoint]bool{}
				}
				s.Members[id][x] = true
			}
		}
	}
	for fk := range e.flags {
		if s.Flags[fk.set] == nil {
			s.Flags[fk.set] = map[ruleset.Key]bool{}
		}
		s.Flags[fk.set][fk.key] = true
	}
	return s
}

func randomService(i int, r *rand.Rand) (*v1.Service, []*discovery.EndpointSlice) {
	svc := web(func(s *v1.Service) {
		s.Name = fmt.Sprint("s", i)
		s.Spec.ClusterIP = fmt.Sprintf("10.43.1.%d", i)
		s.Spec.Ports[0].NodePort = 30000 + int32(r.IntN(6)) // some want the same
		if r.IntN(2) == 0 {
			s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal
		}
		if r.IntN(3) == 0 {
			s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		}
		if r.IntN(3) == 0 {
			s.Spec.ExternalIPs = []string{"1.2.3.4"}
		}
	})
	var words []string
	for n := range r.IntN(7) {
		words = append(words, fmt.Sprintf("%d@n%d%s", n+1+r.IntN(3)*10, 1+r.IntN(2), []string{"", "/not", "/leaving"}[r.IntN(3)]))
	}
	slices.Sort(words)
	return svc, eps(words...)
}

// Whatever the order of changes and restarts, the kernel ends up with what the
// services need, every list is dense, and every frontend counts its list.
func TestEngineConverges(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		e, _ := NewEngine(emptyState())
		plans := map[string]Ranked{}
		for range 60 {
			i := r.IntN(8)
			name := fmt.Sprint("ns/s", i)
			if r.IntN(5) == 0 {
				delete(plans, name)
				e.Set(name, Ranked{})
			} else {
				svc, sl := randomService(i, r)
				plans[name] = Ranked{fmt.Sprint(9 - i), NewPlan(svc, sl, self)}
				e.Set(name, plans[name])
			}
			if r.IntN(10) == 0 { // restart
				fresh, repair := NewEngine(stateOf(e))
				if !repair.Empty() {
					t.Fatalf("seed %d: repair of a consistent state: %d elements", seed, repair.Size())
				}
				for _, d := range fresh.SetAll(maps.Clone(plans)) {
					if !d.Unit.Empty() {
						t.Fatalf("seed %d: a restart changes %d elements", seed, d.Unit.Size())
					}
				}
				e = fresh
			}
		}
		fresh, _ := NewEngine(emptyState())
		fresh.SetAll(maps.Clone(plans))
		if d := cmp.Diff(normal(fresh), normal(e)); d != "" {
			t.Fatalf("seed %d: (-from scratch +by changes)\n%s", seed, d)
		}
		for fk, f := range e.front {
			if int(f.Count) != len(e.lists[f.List]) || f.Count == 0 {
				t.Fatalf("seed %d: %v counts %d of %d", seed, fk, f.Count, len(e.lists[f.List]))
			}
		}
	}
}

// normal drops the order of slots, which depends on history.
func normal(e *Engine) *ruleset.State {
	s := stateOf(e)
	for id, l := range e.lists {
		sorted := slices.SortedFunc(slices.Values(l), ruleset.Endpoint.Compare)
		for i, x := range sorted {
			s.Lists[id][i] = x
		}
	}
	return s
}

func TestConflictGoesToTheOldest(t *testing.T) {
	key := ruleset.NewKey(netip.Addr{}, 6, 30080)
	plan := func(name string, sl []*discovery.EndpointSlice) *Plan {
		return NewPlan(web(func(s *v1.Service) { s.Name = name; s.Spec.ClusterIP = "10.43.1.1" + name }), sl, self)
	}
	e, _ := NewEngine(emptyState())
	e.Set("ns/1", Ranked{"2020", plan("1", eps("1@n1"))})
	e.Set("ns/2", Ranked{"2019", plan("2", eps("2@n1"))})
	if got := e.Targets(key); !slices.Equal(got, epList(2)) {
		t.Errorf("the older service does not hold the port: %v", got)
	}
	// It keeps it when it has no endpoints, too.
	e.Set("ns/2", Ranked{"2019", plan("2", nil)})
	if got := e.Targets(key); len(got) != 0 || !e.flags[frontKey{ruleset.SetReject, key}] {
		t.Errorf("an older service without endpoints lost the port to %v", got)
	}
	e.Set("ns/2", Ranked{})
	if got := e.Targets(key); !slices.Equal(got, epList(1)) || e.flags[frontKey{ruleset.SetReject, key}] {
		t.Errorf("the younger service does not get the port: %v", got)
	}
}

// A list with a hole, as a crash between transactions might leave, is repaired.
func TestRepair(t *testing.T) {
	s := emptyState()
	id := ruleset.NewListID("ns", "web", "http", "TCP", "cluster")
	s.Lists[id] = map[int]ruleset.Endpoint{0: ep(1), 2: ep(3)}
	s.Members[id] = map[ruleset.Endpoint]bool{ep(9): true}
	e, repair := NewEngine(s)
	if repair.Size() != 2 {
		t.Errorf("repair of %d elements", repair.Size())
	}
	e.SetAll(map[string]Ranked{"ns/web": {"", NewPlan(web(), eps("1@n1", "3@n1"), self)}})
	if !slices.Equal(e.lists[id], epList(1, 3)) {
		t.Errorf("list %v", e.lists[id])
	}
}
