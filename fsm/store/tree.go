package store

import (
	"slices"
	"sort"
	"strings"
)

// maxEntries is the fan-out of the tree. Writes copy one node a level, so
// larger nodes make reads faster and writes slower.
const maxEntries = 64

// node is a node of a persistent B+tree from string keys to KeyValues. A
// reader holds a root and never sees it change. A writer owns the nodes whose
// gen equals its own number and changes those in place; all others it copies
// first. A nil node is the empty tree.
type node struct {
	gen   uint64
	count int      // values in this subtree
	keys  []string // leaf: the keys; inner: a lower bound of each child
	vals  []*KeyValue
	kids  []*node // nil in a leaf
}

// own returns n if gen may change it, else a copy that gen may change.
func (n *node) own(gen uint64) *node {
	if n.gen == gen {
		return n
	}
	c := &node{gen: gen, count: n.count, keys: cloneFull(n.keys)}
	if n.kids != nil {
		c.kids = cloneFull(n.kids)
	} else {
		c.vals = cloneFull(n.vals)
	}
	return c
}

// cloneFull copies s with some room, so that an insert need not copy again.
func cloneFull[T any](s []T) []T {
	c := make([]T, len(s), min(maxEntries, len(s)+4))
	copy(c, s)
	return c
}

// child is the index of the child that holds key.
func (n *node) child(key string) int {
	i := sort.Search(len(n.keys), func(i int) bool { return n.keys[i] > key })
	return max(i-1, 0)
}

func (n *node) get(key string) *KeyValue {
	if n == nil {
		return nil
	}
	for n.kids != nil {
		n = n.kids[n.child(key)]
	}
	if i, ok := slices.BinarySearch(n.keys, key); ok {
		return n.vals[i]
	}
	return nil
}

// put returns the tree with key set to v, and the value it replaced.
func (n *node) put(gen uint64, key string, v *KeyValue) (root *node, old *KeyValue) {
	if n == nil {
		return &node{gen: gen, count: 1, keys: []string{key}, vals: []*KeyValue{v}}, nil
	}
	n = n.own(gen)
	old, right := n.insert(gen, key, v)
	if right == nil {
		return n, old
	}
	return &node{
		gen: gen, count: n.count + right.count,
		keys: []string{n.keys[0], right.keys[0]},
		kids: []*node{n, right},
	}, old
}

// insert sets key in a node that gen owns. If the node had to be split, right
// is its new right neighbour.
func (n *node) insert(gen uint64, key string, v *KeyValue) (old *KeyValue, right *node) {
	if n.kids == nil {
		i, found := slices.BinarySearch(n.keys, key)
		if found {
			old, n.vals[i] = n.vals[i], v
			return old, nil
		}
		n.keys = slices.Insert(n.keys, i, key)
		n.vals = slices.Insert(n.vals, i, v)
		n.count++
		return nil, n.split(gen, i)
	}
	i := n.child(key)
	kid := n.kids[i].own(gen)
	n.kids[i] = kid
	old, r := kid.insert(gen, key, v)
	if key < n.keys[i] {
		n.keys[i] = key
	}
	if old == nil {
		n.count++
	}
	if r == nil {
		return old, nil
	}
	n.keys = slices.Insert(n.keys, i+1, r.keys[0])
	n.kids = slices.Insert(n.kids, i+1, r)
	return old, n.split(gen, i+1)
}

// split halves an overfull node that gen owns. When the last insert was at the
// end (keys arriving in order), the left part stays nearly full.
func (n *node) split(gen uint64, at int) *node {
	if len(n.keys) <= maxEntries {
		return nil
	}
	m := len(n.keys) / 2
	if at == len(n.keys)-1 {
		m = len(n.keys) - maxEntries/8
	}
	r := &node{gen: gen, keys: cloneFull(n.keys[m:])}
	clear(n.keys[m:])
	n.keys = n.keys[:m]
	if n.kids == nil {
		r.vals = cloneFull(n.vals[m:])
		clear(n.vals[m:])
		n.vals = n.vals[:m]
		r.count = len(r.vals)
	} else {
		r.kids = cloneFull(n.kids[m:])
		clear(n.kids[m:])
		n.kids = n.kids[:m]
		for _, k := range r.kids {
			r.count += k.count
		}
	}
	n.count -= r.count
	return r
}

// del returns the tree without key, and the value it had (nil if none).
func (n *node) del(gen uint64, key string) (root *node, old *KeyValue) {
	if n.get(key) == nil {
		return n, nil
	}
	n = n.own(gen)
	old = n.remove(gen, key)
	for len(n.kids) == 1 {
		n = n.kids[0]
	}
	if n.count == 0 {
		return nil, old
	}
	return n, old
}

// remove deletes a key that exists from a node that gen owns.
func (n *node) remove(gen uint64, key string) (old *KeyValue) {
	n.count--
	if n.kids == nil {
		i, _ := slices.BinarySearch(n.keys, key)
		old = n.vals[i]
		n.keys = slices.Delete(n.keys, i, i+1)
		n.vals = slices.Delete(n.vals, i, i+1)
		return old
	}
	i := n.child(key)
	kid := n.kids[i].own(gen)
	n.kids[i] = kid
	old = kid.remove(gen, key)
	switch {
	case len(kid.keys) == 0:
		n.keys = slices.Delete(n.keys, i, i+1)
		n.kids = slices.Delete(n.kids, i, i+1)
	case len(kid.keys) < maxEntries/4:
		if i > 0 && len(n.kids[i-1].keys)+len(kid.keys) <= maxEntries/2 {
			n.merge(gen, i-1)
		} else if i+1 < len(n.kids) && len(kid.keys)+len(n.kids[i+1].keys) <= maxEntries/2 {
			n.merge(gen, i)
		}
	}
	return old
}

// merge joins child i+1 into child i.
func (n *node) merge(gen uint64, i int) {
	l, r := n.kids[i].own(gen), n.kids[i+1]
	if l.kids == nil {
		l.keys = append(l.keys, r.keys...)
		l.vals = append(l.vals, r.vals...)
	} else {
		// The bound the parent has for r is the right one; r.keys[0] may be older.
		l.keys = append(append(l.keys, n.keys[i+1]), r.keys[1:]...)
		l.kids = append(l.kids, r.kids...)
	}
	l.count += r.count
	n.kids[i] = l
	n.keys = slices.Delete(n.keys, i+1, i+2)
	n.kids = slices.Delete(n.kids, i+1, i+2)
}

// ascend calls fn for the values whose key is at least from and has prefix, in
// order, until fn returns false. from must not sort before prefix.
func (n *node) ascend(prefix, from string, fn func(*KeyValue) bool) bool {
	if n == nil {
		return true
	}
	if n.kids == nil {
		i := sort.SearchStrings(n.keys, from)
		for ; i < len(n.keys); i++ {
			if !strings.HasPrefix(n.keys[i], prefix) || !fn(n.vals[i]) {
				return false
			}
		}
		return true
	}
	for i := n.child(from); i < len(n.kids); i++ {
		if !n.kids[i].ascend(prefix, from, fn) {
			return false
		}
	}
	return true
}

// rank is the number of keys that sort before key.
func (n *node) rank(key string) int {
	if n == nil {
		return 0
	}
	r := 0
	for n.kids != nil {
		c := n.child(key)
		for _, k := range n.kids[:c] {
			r += k.count
		}
		n = n.kids[c]
	}
	return r + sort.SearchStrings(n.keys, key)
}

// size is the number of values.
func (n *node) size() int {
	if n == nil {
		return 0
	}
	return n.count
}
