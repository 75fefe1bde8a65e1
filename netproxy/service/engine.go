package service

import (
	"maps"
	"slices"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
)

// Engine holds what the kernel's maps contain and what the services need, and
// computes the difference. It does no I/O and is not safe for concurrent use.
type Engine struct {
	plans  map[string]*Plan // by namespace/name
	claims map[frontKey]map[string]bool
	listOf map[ruleset.ListID]string // whose list

	front map[frontKey]ruleset.Frontend
	lists map[ruleset.ListID][]ruleset.Endpoint // by slot
	stick map[ruleset.ListID]bool               // lists whose members are in SetMembers
	flags map[frontKey]bool

	// rank orders services that want the same frontend: the lowest gets it.
	rank map[string]string
}

// frontKey is a key in one of the sets.
type frontKey struct {
	set string
	key ruleset.Key
}

// keyedSets are the sets whose elements are frontends.
var keyedSets = append([]string{ruleset.SetFrontends, ruleset.SetExternal}, ruleset.FlagSets...)

// Delta is the result of a step: what to send, and which UDP frontends may
// have connections that follow old state.
type Delta struct {
	Unit *ruleset.Unit
	UDP  []ruleset.Key
}

// NewEngine makes an engine over what the kernel holds. The returned unit
// repairs what is inconsistent in itself, such as lists with holes.
func NewEngine(s *ruleset.State) (*Engine, *ruleset.Unit) {
	e := &Engine{
		plans: map[string]*Plan{}, claims: map[frontKey]map[string]bool{}, listOf: map[ruleset.ListID]string{}, rank: map[string]string{},
		front: map[frontKey]ruleset.Frontend{}, lists: map[ruleset.ListID][]ruleset.Endpoint{},
		stick: map[ruleset.ListID]bool{}, flags: map[frontKey]bool{},
	}
	repair := &ruleset.Unit{}
	for k, f := range s.Frontends {
		e.front[frontKey{ruleset.SetFrontends, k}] = f
	}
	for k, f := range s.External {
		e.front[frontKey{ruleset.SetExternal, k}] = f
	}
	for set, keys := range s.Flags {
		for k := range keys {
			e.flags[frontKey{set, k}] = true
		}
	}
	for id, slots := range s.Lists {
		list := make([]ruleset.Endpoint, 0, len(slots))
		for i := range len(slots) {
			ep, ok := slots[i]
			if !ok {
				break
			}
			list = append(list, ep)
		}
		for i, ep := range slots {
			if i >= len(list) {
				repair.SetSlot(id, i, &ep, nil)
			}
		}
		if len(list) > 0 {
			e.lists[id] = list
		}
	}
	// Member sets must equal their lists; where they do not, start again.
	for id, members := range s.Members {
		same := len(members) == len(e.lists[id])
		for _, ep := range e.lists[id] {
			same = same && members[ep]
		}
		if same {
			e.stick[id] = true
			continue
		}
		for ep := range members {
			repair.Member(id, ep, false)
		}
	}
	return e, repair
}

// Ranked is a plan and its service's place among services that want the same
// frontend: the lowest rank gets it.
type Ranked struct {
	Rank string
	*Plan
}

// Set gives a service a new plan; a nil plan removes the service.
func (e *Engine) Set(name string, plan Ranked) Delta {
	keys, lists := e.register(name, plan)
	return e.reconcile(keys, lists)
}

// SetAll gives every service its plan and removes whatever else the kernel
// holds. Each delta can be applied by itself; the last one removes leftovers.
func (e *Engine) SetAll(plans map[string]Ranked) []Delta {
	type touched struct {
		keys  map[frontKey]bool
		lists map[ruleset.ListID]bool
	}
	all := map[string]touched{}
	for name, p := range plans {
		k, l := e.register(name, p)
		all[name] = touched{k, l}
	}
	for name := range maps.Clone(e.plans) {
		if _, ok := plans[name]; !ok {
			k, l := e.register(name, Ranked{})
			all[name] = touched{k, l}
		}
	}
	var out []Delta
	for _, t := range all {
		if d := e.reconcile(t.keys, t.lists); !d.Unit.Empty() {
			out = append(out, d)
		}
	}
	keys, lists := map[frontKey]bool{}, map[ruleset.ListID]bool{}
	for fk := range e.front {
		keys[fk] = true
	}
	for fk := range e.flags {
		keys[fk] = true
	}
	for id := range e.lists {
		if e.listOf[id] == "" {
			lists[id] = true
		}
	}
	return append(out, e.reconcile(keys, lists))
}

// register replaces a plan and returns what its old and new form touch.
func (e *Engine) register(name string, plan Ranked) (keys map[frontKey]bool, lists map[ruleset.ListID]bool) {
	keys, lists = map[frontKey]bool{}, map[ruleset.ListID]bool{}
	if old := e.plans[name]; old != nil {
		for fk := range old.wants() {
			keys[fk] = true
			delete(e.claims[fk], name)
			if len(e.claims[fk]) == 0 {
				delete(e.claims, fk)
			}
		}
		for id := range old.Lists {
			lists[id] = true
			delete(e.listOf, id)
		}
		delete(e.plans, name)
		delete(e.rank, name)
	}
	if plan.Plan != nil {
		e.plans[name], e.rank[name] = plan.Plan, plan.Rank
		for fk := range plan.wants() {
			keys[fk] = true
			if e.claims[fk] == nil {
				e.claims[fk] = map[string]bool{}
			}
			e.claims[fk][name] = true
		}
		for id := range plan.Lists {
			lists[id] = true
			e.listOf[id] = name
		}
	}
	return keys, lists
}

// Targets returns the endpoints that a key leads to.
func (e *Engine) Targets(k ruleset.Key) []ruleset.Endpoint {
	var out []ruleset.Endpoint
	for _, set := range []string{ruleset.SetFrontends, ruleset.SetExternal} {
		if f, ok := e.front[frontKey{set, k}]; ok {
			out = append(out, e.lists[f.List]...)
		}
	}
	return out
}

// Known reports whether a service claims the key.
func (e *Engine) Known(k ruleset.Key) bool { return e.holder(k) != nil }

// wants returns every element, by set and key, that the plan asks for.
func (p *Plan) wants() map[frontKey]bool {
	out := make(map[frontKey]bool, len(p.Frontends)+len(p.External))
	for k := range p.Frontends {
		out[frontKey{ruleset.SetFrontends, k}] = true
	}
	for k := range p.External {
		out[frontKey{ruleset.SetExternal, k}] = true
	}
	for set, keys := range p.Flags {
		for k := range keys {
			out[frontKey{set, k}] = true
		}
	}
	return out
}

// holder returns the plan that a key belongs to. Over all sets, one key belongs
// to one service: a service without endpoints does not lose its port to
// another that has some.
func (e *Engine) holder(k ruleset.Key) *Plan {
	best := ""
	for _, set := range keyedSets {
		for name := range e.claims[frontKey{set, k}] {
			if best == "" || e.rank[name]+name < e.rank[best]+best {
				best = name
			}
		}
	}
	return e.plans[best]
}

func (e *Engine) reconcile(keys map[frontKey]bool, lists map[ruleset.ListID]bool) Delta {
	d := Delta{Unit: &ruleset.Unit{}}
	// A key's other sets may change hands with it.
	all := map[frontKey]bool{}
	for fk := range keys {
		for _, set := range keyedSets {
			all[frontKey{set, fk.key}] = true
		}
	}
	udp := map[ruleset.Key]bool{}
	touched := map[ruleset.ListID]bool{}
	for _, id := range slices.Sorted(maps.Keys(lists)) {
		if e.setList(d.Unit, id) {
			touched[id] = true
		}
	}
	for fk := range all {
		changed := e.setKey(d.Unit, fk)
		f, ok := e.front[fk]
		if fk.key.Proto == protoUDP && (changed || ok && touched[f.List]) {
			udp[fk.key] = true
		}
	}
	d.UDP = slices.Collect(maps.Keys(udp))
	return d
}

const protoUDP = 17

// setList brings one list to what its plan wants.
func (e *Engine) setList(u *ruleset.Unit, id ruleset.ListID) (changed bool) {
	var want []ruleset.Endpoint
	sticky := false
	if p := e.plans[e.listOf[id]]; p != nil {
		want, sticky = p.Lists[id], p.Sticky[id]
	}
	have := e.lists[id]
	next := Assign(have, want)
	for i := range max(len(have), len(next)) {
		var o, n *ruleset.Endpoint
		if i < len(have) {
			o = &have[i]
		}
		if i < len(next) {
			n = &next[i]
		}
		if o != nil && n != nil && *o == *n {
			continue
		}
		changed = true
		u.SetSlot(id, i, o, n)
	}
	e.setMembers(u, id, have, next, sticky)
	if len(next) == 0 {
		delete(e.lists, id)
	} else {
		e.lists[id] = next
	}
	return changed
}

func (e *Engine) setMembers(u *ruleset.Unit, id ruleset.ListID, have, next []ruleset.Endpoint, sticky bool) {
	if !e.stick[id] {
		have = nil
	}
	if !sticky {
		next = nil
	}
	for _, ep := range have {
		if !slices.Contains(next, ep) {
			u.Member(id, ep, false)
		}
	}
	for _, ep := range next {
		if !slices.Contains(have, ep) {
			u.Member(id, ep, true)
		}
	}
	if len(next) > 0 {
		e.stick[id] = true
	} else {
		delete(e.stick, id)
	}
}

// setKey brings one key of one set to what its holder wants.
func (e *Engine) setKey(u *ruleset.Unit, fk frontKey) (changed bool) {
	p := e.holder(fk.key)
	if fk.set == ruleset.SetFrontends || fk.set == ruleset.SetExternal {
		var o, n *ruleset.Frontend
		if f, ok := e.front[fk]; ok {
			o = &f
		}
		owner := ""
		if p != nil {
			specs := p.Frontends
			if fk.set == ruleset.SetExternal {
				specs = p.External
			}
			if spec, ok := specs[fk.key]; ok {
				n = &ruleset.Frontend{List: spec.List, Picker: ruleset.Picker{Count: uint32(len(e.lists[spec.List])), Opts: spec.Opts}}
			}
			owner = p.Owner
		}
		if o == nil && n == nil || o != nil && n != nil && *o == *n {
			return false
		}
		u.SetFrontend(fk.set, fk.key, o, n, owner)
		if n == nil {
			delete(e.front, fk)
		} else {
			e.front[fk] = *n
		}
		return true
	}
	want := p != nil && p.Flags[fk.set][fk.key]
	if want == e.flags[fk] {
		return false
	}
	u.Flag(fk.set, fk.key, want)
	if want {
		e.flags[fk] = true
	} else {
		delete(e.flags, fk)
	}
	return true
}

// Assign places the wanted endpoints, which must be distinct, into slots 0 …
// len(want)-1. It leaves an endpoint that is already in such a slot there.
func Assign(have, want []ruleset.Endpoint) []ruleset.Endpoint {
	if len(want) == 0 {
		return nil
	}
	missing := make(map[ruleset.Endpoint]bool, len(want))
	for _, ep := range want {
		missing[ep] = true
	}
	next := make([]ruleset.Endpoint, len(want))
	taken := make([]bool, len(want))
	for i, ep := range have {
		if i < len(next) && missing[ep] {
			next[i], taken[i] = ep, true
			delete(missing, ep)
		}
	}
	i := 0
	for _, ep := range want {
		if !missing[ep] {
			continue
		}
		for taken[i] {
			i++
		}
		next[i], taken[i] = ep, true
	}
	return next
}
