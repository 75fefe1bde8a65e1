package garbagecollector

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// object says where an object is found.
type object struct {
	gvr             schema.GroupVersionResource
	namespace, name string
	uid             types.UID
}

func (o object) key() string {
	if o.namespace == "" {
		return o.name
	}
	return o.namespace + "/" + o.name
}

// graph knows who owns whom. Only objects that have owners, or wait for what
// they own, are in it.
type graph struct {
	mu    sync.Mutex
	nodes map[types.UID]*vertex
	owned map[types.UID]map[types.UID]bool // owner -> owned -> blocks the owner
}

type vertex struct {
	object
	owners []metav1.OwnerReference
	held   bool // is being deleted and waits for what it owns
}

func newGraph() *graph {
	return &graph{nodes: map[types.UID]*vertex{}, owned: map[types.UID]map[types.UID]bool{}}
}

// set records an object; true if it is new here or its owners have changed.
func (g *graph) set(o object, owners []metav1.OwnerReference, held bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, known := g.nodes[o.uid]
	if known && v.held == held && slices.EqualFunc(v.owners, owners, sameReference) {
		return false
	}
	moved := !known || !slices.EqualFunc(v.owners, owners, sameReference)
	if known {
		g.unlink(v)
		delete(g.nodes, o.uid)
	}
	if len(owners) == 0 && !held {
		return moved
	}
	v = &vertex{object: o, owners: slices.Clone(owners), held: held}
	g.nodes[o.uid] = v
	for _, ref := range owners {
		if g.owned[ref.UID] == nil {
			g.owned[ref.UID] = map[types.UID]bool{}
		}
		g.owned[ref.UID][o.uid] = ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
	}
	return moved
}

func sameReference(a, b metav1.OwnerReference) bool {
	blocks := func(r metav1.OwnerReference) bool { return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion }
	return a.UID == b.UID && a.APIVersion == b.APIVersion && a.Kind == b.Kind && a.Name == b.Name && blocks(a) == blocks(b)
}

func (g *graph) unlink(v *vertex) {
	for _, ref := range v.owners {
		delete(g.owned[ref.UID], v.uid)
		if len(g.owned[ref.UID]) == 0 {
			delete(g.owned, ref.UID)
		}
	}
}

func (g *graph) drop(uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.nodes[uid]; ok {
		g.unlink(v)
		delete(g.nodes, uid)
	}
}

// dropKind forgets every object of a kind that is no longer served.
func (g *graph) dropKind(gvr schema.GroupVersionResource) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for uid, v := range g.nodes {
		if v.gvr == gvr {
			g.unlink(v)
			delete(g.nodes, uid)
		}
	}
}

func (g *graph) find(uid types.UID) (object, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.nodes[uid]
	if !ok {
		return object{}, false
	}
	return v.object, true
}

func (g *graph) isHeld(uid types.UID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.nodes[uid]
	return ok && v.held
}

// dependents returns what uid owns.
func (g *graph) dependents(uid types.UID) []object {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]object, 0, len(g.owned[uid]))
	for d := range g.owned[uid] {
		out = append(out, g.nodes[d].object)
	}
	return out
}

// blocking returns those of the dependents that keep uid from going.
func (g *graph) blocking(uid types.UID) []object {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []object
	for d, blocks := range g.owned[uid] {
		if blocks {
			out = append(out, g.nodes[d].object)
		}
	}
	return out
}

// uidSet is a set that forgets its oldest members when it is full.
type uidSet struct {
	mu    sync.Mutex
	limit int
	in    map[types.UID]bool
	order []types.UID
}

func newUIDSet(limit int) *uidSet { return &uidSet{limit: limit, in: map[types.UID]bool{}} }

func (s *uidSet) add(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in[uid] {
		return
	}
	s.in[uid] = true
	s.order = append(s.order, uid)
	for len(s.order) > s.limit {
		delete(s.in, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *uidSet) drop(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in[uid] {
		delete(s.in, uid)
		s.order = slices.DeleteFunc(s.order, func(u types.UID) bool { return u == uid })
	}
}

func (s *uidSet) has(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in[uid]
}

// take empties the set.
func (s *uidSet) take() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.order
	s.in, s.order = map[types.UID]bool{}, nil
	return out
}
